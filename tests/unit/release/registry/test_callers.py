"""The list of callers: names, scopes, and nothing that a thief could use."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedlora.errors import ReleaseError
from fedlora.release.registry.callers import Callers, CallersFile, new_token

NOBODY = Callers(callers=())


def test_a_token_is_known_and_no_other() -> None:
    """Also not its beginning, or one more letter."""
    token = new_token()
    callers = NOBODY.adding("ci", scope="publish", token=token)

    assert callers.with_token(token) == callers.callers[0]
    assert [callers.with_token(other) for other in (token[:-1], f"{token}x", "")] == [None] * 3
    assert callers.with_certificate(["ci"]) is None


def test_a_certificate_s_name_is_known_and_no_other() -> None:
    """Who has a certificate has no token, and the other way round."""
    callers = NOBODY.adding("engine.example.org", scope="read", token=None)

    assert callers.with_certificate(["x", "engine.example.org"]) == callers.callers[0]
    assert callers.with_certificate(["engine.example.com"]) is None
    assert callers.with_token("") is None


def test_publish_includes_read_but_not_the_other_way() -> None:
    """Two scopes."""
    callers = NOBODY.adding("a", scope="read", token="x").adding("b", scope="publish", token="y")

    may = {c.name: (c.may("read"), c.may("publish")) for c in callers.callers}
    assert may == {"a": (True, False), "b": (True, True)}


def test_the_file_holds_no_token(tmp_path: Path) -> None:
    """Only its digest; what was written is read again."""
    token, path = new_token(), tmp_path / "callers.yaml"
    callers = NOBODY.adding("ci", scope="read", token=token)
    callers.write(path)

    assert token not in path.read_text()
    assert Callers.read(path) == callers


def test_who_is_removed_is_out_at_once(tmp_path: Path) -> None:
    """The file is read again when it has changed."""
    token, path = new_token(), tmp_path / "callers.yaml"
    callers = NOBODY.adding("ci", scope="read", token=token)
    callers.write(path)
    file = CallersFile(path)
    assert file.callers().with_token(token) == callers.callers[0]

    callers.removing("ci").write(path)

    assert file.callers().with_token(token) is None


def test_a_file_that_breaks_lets_nobody_in(tmp_path: Path) -> None:
    """Not those either who were in it before, and those again once it is mended."""
    path = tmp_path / "callers.yaml"
    NOBODY.adding("ci", scope="read", token="x").write(path)
    file, text = CallersFile(path), path.read_text()
    for broken in ("callers: [", "callers: [{name: ci, scope: all}]", None):
        path.unlink() if broken is None else path.write_text(broken)
        for _ in range(2):
            with pytest.raises(ReleaseError):
                file.callers()
    path.write_text(text)
    os.utime(path)
    assert file.callers().with_token("x") is not None


def test_of_many_that_are_added_at_once_none_is_lost(tmp_path: Path) -> None:
    """Whoever changes the file waits for who does so already."""
    path = tmp_path / "callers.yaml"

    def add(name: str) -> None:
        def adding(callers: Callers) -> Callers:
            time.sleep(0.01)
            return callers.adding(name, scope="read", token=name)

        Callers.change(path, adding)

    names = [f"caller-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, names))

    assert {caller.name for caller in Callers.read(path).callers} == set(names)


def test_names_are_names_and_come_once() -> None:
    """A second of a name, an odd one, and one that is not there."""
    callers = NOBODY.adding("ci", scope="read", token="x")

    with pytest.raises(ReleaseError, match="there already"):
        callers.adding("ci", scope="read", token="y")
    with pytest.raises(ReleaseError, match="were expected"):
        callers.adding("a b", scope="read", token="y")
    with pytest.raises(ReleaseError, match="only: ci"):
        callers.removing("other")
