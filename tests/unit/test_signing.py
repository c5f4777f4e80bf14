"""Keys: made once, read back, and what they sign."""

import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedlora.errors import EnrolmentError
from fedlora.signing import PublicKey, Signer, canonical, new_key
from tests.evidence import signer


def test_a_new_key_is_its_owners_alone(tmp_path):
    """The public half is beside it, to be read by anybody."""
    public = new_key(tmp_path / "gate.key")
    assert stat.S_IMODE((tmp_path / "gate.key").stat().st_mode) == 0o600
    assert Signer.load(tmp_path / "gate.key").public == public
    assert PublicKey.read(tmp_path / "gate.key.pub") == public


def test_a_key_that_is_there_stays(tmp_path):
    """To enrol twice is not to become another; a lost public half is written again."""
    public = new_key(tmp_path / "gate.key")
    (tmp_path / "gate.key.pub").unlink()
    assert new_key(tmp_path / "gate.key") == public
    assert PublicKey.read(tmp_path / "gate.key.pub") == public


def test_a_signature_is_of_one_message_and_one_key():
    """A flipped bit in either, in the signature, or another key: it does not hold."""
    signature = signer().sign(b"north")
    assert signer().public.signed(b"north", signature)
    assert not signer().public.signed(b"nortH", signature)
    assert not signer(2).public.signed(b"north", signature)
    assert not signer().public.signed(b"north", signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not signer().public.signed(b"north", b"")


@pytest.mark.parametrize("text", ["", "x", "AAAA", "A" * 43, "A" * 42 + "B=", "ü" * 44])
def test_what_is_no_public_key_is_refused(text):
    """Also another spelling of the same 32 bytes: a key has one."""
    with pytest.raises(EnrolmentError, match="an Ed25519 public key was expected"):
        PublicKey.of(text)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", None])
def test_what_is_no_private_key_is_refused(tmp_path, content):
    """A key of another kind, too."""
    if content is None:
        key = ec.generate_private_key(ec.SECP384R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "gate.key").write_bytes(content)
    with pytest.raises(EnrolmentError, match=r"gate\.key: "):
        Signer.load(tmp_path / "gate.key")


def test_canonical_json_has_one_spelling():
    """Whatever order the keys came in."""
    assert canonical({"b": 1, "a": "ü"}) == canonical({"a": "ü", "b": 1})
    assert canonical({"b": 1, "a": "ü"}) == b'{"a":"\\u00fc","b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})
