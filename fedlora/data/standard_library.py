"""The demo corpus: what the functions of the interpreter's standard library say of themselves."""

import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path

from fedlora.data.docstrings import DocumentedFunction, read_module, read_package

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "__pycache__", "lib-dynload"}
_WORDS = range(3, 61)
"""Length of a first paragraph that tells something and fits a small model."""
_LONGEST_SIGNATURE = 300
"""In characters; longer ones are tables of constants rather than parameters."""


def read_standard_library(packages: Collection[str] = ()) -> Iterator[DocumentedFunction]:
    """Yield the documented functions of the interpreter's standard library, in sorted order.

    Args:
        packages: top-level packages or modules to read, all when empty. Those that this
            interpreter lacks are passed over.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in _NOT_LIBRARY or (packages and path.stem not in packages):
            continue
        if path.is_dir():
            yield from read_package(path, package=path.name)
        elif path.suffix == ".py":
            yield from read_module(path, module=path.stem)


def explained_functions(packages: Collection[str] = ()) -> Iterator[DocumentedFunction]:
    """Yield those functions whose documentation makes a question and its answer.

    That is: not of a test module, a first paragraph of 3 to 60 words, a signature of at most 300
    characters, and each call once.
    """
    seen: set[str] = set()
    for function in read_standard_library(packages):
        if (
            function.call not in seen
            and not _is_test(function.module)
            and len(function.first_paragraph.split()) in _WORDS
            and len(function.signature) <= _LONGEST_SIGNATURE
        ):
            seen.add(function.call)
            yield function


def _is_test(module: str) -> bool:
    return any(part.startswith("test") or part == "idle_test" for part in module.split("."))
