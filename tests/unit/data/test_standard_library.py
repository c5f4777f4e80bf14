"""The demo corpus keeps what makes a question and its answer."""

import sysconfig
from pathlib import Path

import pytest

from fedlora.data.standard_library import explained_functions, read_standard_library

SOURCE = '''
def good(a: int, *, b=1) -> str:
    """Say what this does.

    Not this.
    """

def terse():
    """Too short."""

def wordy():
    """{words}"""

def table(x={constant!r}):
    """Has a signature like a table."""

class C:
    @property
    def p(self):
        """Say what it is."""

    @p.setter
    def p(self, value):
        """Set what it is."""

    @p.deleter
    def p(self):
        """Say what it is, again."""
'''.format(words="word " * 61, constant="x" * 300)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of our own in place of the interpreter's."""
    for name in ("top.py", "other.py", "pkg/__init__.py", "pkg/mod.py", "pkg/tests/a.py",
                 "pkg/test_b.py", "pkg/idle_test/c.py", "site-packages/peer.py"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE)
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("library")
def test_only_explained_calls_of_the_named_packages_are_kept() -> None:
    """Terse, wordy, tabular and test functions are dropped, calls come once, order is fixed."""
    calls = [function.call for function in explained_functions(("top", "pkg", "nonesuch"))]
    assert calls == [
        f"{module}.{call}"
        for module in ("pkg", "pkg.mod", "top")
        for call in ("good(a: int, *, b=1) -> str", "C.p(self)", "C.p(self, value)")
    ]


@pytest.mark.usefixtures("library")
def test_all_packages_are_read_when_none_is_named() -> None:
    """Installed peers are not the standard library."""
    modules = {function.module for function in read_standard_library()}
    assert {"top", "other", "pkg", "pkg.mod", "pkg.tests.a"} <= modules
    assert "peer" not in modules


def test_an_interpreter_without_source_files_has_no_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is yielded where the folder does not exist, as in a zipped Python."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path / "python.zip"))
    assert list(read_standard_library()) == []
