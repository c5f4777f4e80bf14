"""Documented functions of Python source, read from its syntax tree without importing it."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DocumentedFunction:
    """One function or method of a module with the documentation that its author wrote."""

    module: str
    """Dotted name of the module, such as ``email.message``."""
    name: str
    """Name inside the module, such as ``Message.get_payload``."""
    signature: str
    """Parameters and return annotation, such as ``(self, i=None) -> str``."""
    docstring: str
    """The whole docstring, its indentation removed."""

    @property
    def call(self) -> str:
        """The function as one would look it up: dotted name and signature."""
        return f"{self.module}.{self.name}{self.signature}"

    @property
    def first_paragraph(self) -> str:
        """The first paragraph of the docstring on one line."""
        return " ".join(self.docstring.split("\n\n", maxsplit=1)[0].split())


def read_package(folder: Path, *, package: str) -> Iterator[DocumentedFunction]:
    """Yield the documented functions of every module below ``folder``, in sorted order.

    Files that this interpreter cannot parse (test data of another Python version) are passed over.
    """
    for path in sorted(folder.rglob("*.py")):
        parts = (package, *path.relative_to(folder).with_suffix("").parts)
        yield from read_module(path, module=".".join(part for part in parts if part != "__init__"))


def read_module(path: Path, *, module: str) -> Iterator[DocumentedFunction]:
    """Yield the documented functions and methods of one source file, in the file's order."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _walk(tree.body, module=module, prefix="")


def _walk(body: list[ast.stmt], *, module: str, prefix: str) -> Iterator[DocumentedFunction]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _walk(node.body, module=module, prefix=f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and docstring.strip():
                returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                yield DocumentedFunction(
                    module=module,
                    name=f"{prefix}{node.name}",
                    signature=f"({ast.unparse(node.args)}){returns}",
                    docstring=inspect.cleandoc(docstring),
                )
