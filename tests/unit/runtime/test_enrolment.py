"""What a site and its aggregator tell each other before they trust each other."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedlora.errors import EnrolmentError
from fedlora.runtime.enrolment import MAX_REQUEST_BYTES, EnrolmentRequest, fingerprint


def openssh(key):
    encoding = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*encoding).decode()


@pytest.fixture(name="node_key")
def _node_key():
    return openssh(ec.generate_private_key(ec.SECP384R1()))


@pytest.fixture(name="gate_key")
def _gate_key():
    raw = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    return base64.b64encode(raw).decode()


def test_a_request_survives_its_json(node_key, gate_key):
    """What the aggregator reads is what the site wrote, a key's comment aside."""
    sent = EnrolmentRequest(
        site="bank", token="t" * 43, node_key=f"{node_key} root@bank", gate_key=gate_key
    )
    assert EnrolmentRequest.from_json(sent.to_json()) == sent
    assert sent.node_key == node_key


def test_a_fingerprint_is_of_both_keys(node_key, gate_key):
    """It is the digest of both keys, each in its one spelling: comments do not change it."""
    digest = hashlib.sha256(f"{node_key}\n{gate_key}\n".encode()).digest()
    expected = f"SHA256:{base64.b64encode(digest).decode()}"
    assert fingerprint(node_key, gate_key) == expected
    assert fingerprint(f"{node_key} a comment", gate_key) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"site": "../bank"}, "site"),
        ({"token": "short"}, "token"),
        ({"node_key": openssh(ec.generate_private_key(ec.SECP256R1()))}, "P-384"),
        ({"node_key": openssh(ed25519.Ed25519PrivateKey.generate())}, "P-384"),
        ({"node_key": "-----BEGIN"}, "P-384"),
        ({"gate_key": "AAAA"}, "Ed25519"),
        ({"admin": True}, "admin"),
    ],
)
def test_a_request_that_is_not_one_is_refused(node_key, gate_key, change, said):
    """Names that are paths, other kinds of keys and unknown words never get in."""
    values = {"site": "bank", "token": "t" * 43, "node_key": node_key, "gate_key": gate_key}
    with pytest.raises(EnrolmentError, match=said):
        EnrolmentRequest.from_json(json.dumps(values | change).encode())


def test_a_request_that_is_too_large_is_refused():
    """It is refused by its size, before it is parsed."""
    with pytest.raises(EnrolmentError, match="at most 4096 bytes"):
        EnrolmentRequest.from_json(b"[" * (MAX_REQUEST_BYTES + 1))
