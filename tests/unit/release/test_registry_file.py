"""The one file that a reader gets says what it must, and keeps what is secret."""

import stat
from pathlib import Path

import pytest

from fedlora.document import write_yaml
from fedlora.errors import ReleaseError
from fedlora.release.registry_file import RegistryFile
from fedlora.signing import new_key
from tests.registry import Authority


def values(tmp_path: Path) -> dict[str, str]:
    """Return what a file says without secrets."""
    publisher = new_key(tmp_path / "publisher.key").text
    ca = Authority(tmp_path / "ca").certificate.read_text()
    return {"publisher": publisher, "address": "127.0.0.1:9445", "ca_certificate": ca}


def test_a_file_with_a_secret_is_its_owner_s_alone(tmp_path: Path) -> None:
    """A token or a key; without one, everybody may read it. What is written is read again."""
    plain, pair = values(tmp_path), Authority(tmp_path / "ca").pair("engine")
    identity = {
        "client_certificate": pair.certificate.read_text(),
        "client_key": pair.key.read_text(),
    }
    path, rights = tmp_path / "registry.yaml", []
    for more in ({}, {"token": "fedlora_x"}, {}, identity):
        file = RegistryFile(**plain, **more)
        file.write(path)
        rights.append(stat.S_IMODE(path.stat().st_mode) & 0o077)
        assert RegistryFile.read(path) == file
    assert (rights[0] > 0, rights[1], rights[3]) == (True, 0, 0)


def test_what_is_not_of_its_form_is_told_with_its_line(tmp_path: Path) -> None:
    """The line and the key; a token is not shown."""
    plain, path = values(tmp_path), tmp_path / "registry.yaml"
    for more, expected in (
        ({"token": "fedlora_x\n"}, r"line \d+: token: letters, digits and signs"),
        ({"ca_certificate": "garbage"}, "line 3: ca_certificate: certificates in PEM"),
        ({"client_key": "x"}, "client_certificate and client_key: certificates in PEM"),
    ):
        path.write_text(write_yaml({**plain, **more}))
        with pytest.raises(ReleaseError, match=expected) as caught:
            RegistryFile.read(path)
        assert "fedlora_x" not in str(caught.value)
    del plain["address"]
    path.write_text(write_yaml(plain))
    with pytest.raises(ReleaseError, match="name its address too"):
        RegistryFile.read(path)
