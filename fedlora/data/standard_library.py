"""The demo corpus: what functions of the running interpreter's standard library say of themselves."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fedlora.data.docstrings import DocumentedFunction, read_module, read_package

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "__pycache__", "lib-dynload"}


def read_standard_library() -> Iterator[DocumentedFunction]:
    """Yield the documented functions of the interpreter's standard library, in sorted order."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).iterdir()):
        if path.name in _NOT_LIBRARY:
            continue
        if path.is_dir():
            yield from read_package(path, package=path.name)
        elif path.suffix == ".py":
            yield from read_module(path, module=path.stem)
