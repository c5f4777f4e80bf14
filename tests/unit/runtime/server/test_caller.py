"""The front takes a body only from who signs with an admitted site's key, now."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlora.runtime.enrolment import EnrolmentRequest
from fedlora.runtime.server.caller import Callers
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder
from tests.deployment import new_gate_key, openssh

TOKEN = "t" * 43


@pytest.fixture(name="key", scope="module")
def _key():
    return ec.generate_private_key(ec.SECP384R1())


@pytest.fixture(name="directory")
def _directory(tmp_path, key):
    folder = ServerFolder(tmp_path)
    folder.directory.mkdir()
    directory = Directory(folder)
    directory.invite("bank", token=TOKEN)
    sent = EnrolmentRequest(
        site="bank", token=TOKEN, node_key=openssh(key), gate_key=new_gate_key()
    )
    directory.enrol(sent)
    directory.admit("bank", expected=sent.fingerprint, node_id=7)
    return directory


def signed(key, *, age=0.0, signer=None):
    at = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signature = (signer or key).sign(at.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(pem).decode(),
        "flwr-timestamp": at,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


def test_an_admitted_site_is_known_by_its_signature(directory, key):
    """The name is the directory's, whatever the site says."""
    assert Callers(directory).site_of(signed(key)) == "bank"


def test_others_are_nobody(directory, key):
    """An unknown key, another's signature, an old or future time, or none of it."""
    other = ec.generate_private_key(ec.SECP384R1())
    callers = Callers(directory)
    assert callers.site_of(signed(other)) is None
    assert callers.site_of(signed(key, signer=other)) is None
    assert callers.site_of(signed(key, age=400)) is None
    assert callers.site_of(signed(key, age=-60)) is None
    assert callers.site_of({}) is None


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-timestamp", "flwr-signature"])
@pytest.mark.parametrize("junk", ["", "é", "AAAA", "2026-01-01T00:00:00", "9" * 5000])
def test_junk_in_a_header_is_nobody(directory, key, name, junk):
    """Whatever a stranger sends, it is a refusal and not an error."""
    assert Callers(directory).site_of(signed(key) | {name: junk}) is None


def test_a_revoked_site_is_nobody_within_a_second(directory, key, monkeypatch):
    """The directory is read again once the last look is a second old."""
    callers = Callers(directory)
    clock = [100.0]
    monkeypatch.setattr("fedlora.runtime.server.caller.time.monotonic", lambda: clock[0])
    assert callers.site_of(signed(key)) == "bank"
    directory.revoke("bank", reason="left")
    clock[0] += 1.01
    assert callers.site_of(signed(key)) is None
