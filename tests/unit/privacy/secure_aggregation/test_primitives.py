"""Known answers of the primitives, and what they refuse."""

import pytest

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import primitives
from fedlora.privacy.secure_aggregation.primitives import KeyPair, derive, seal, unseal

ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def test_public_keys_are_those_of_rfc_7748():
    """Section 6.1."""
    alice, bob = KeyPair.of(ALICE), KeyPair.of(BOB)
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert alice.private == ALICE


def test_an_agreed_key_is_derived_from_the_secret_of_rfc_7748():
    """Section 6.1, on both sides."""
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    alice, bob = KeyPair.of(ALICE), KeyPair.of(BOB)
    assert alice.agree(bob.public, about=b"a mask") == derive(secret, about=b"a mask")
    assert bob.agree(alice.public, about=b"a mask") == derive(secret, about=b"a mask")


def test_derived_keys_are_those_of_rfc_5869():
    """Appendix A.3: without salt and info; the first 32 bytes of its longer key."""
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert derive(bytes([0x0B] * 22), about=b"").hex() == expected


def test_a_sealed_message_is_that_of_rfc_8439(monkeypatch):
    """Section 2.8.2, with its nonce."""
    monkeypatch.setattr(primitives, "_NONCE", bytes.fromhex("070000004041424344454647"))
    key, about = bytes(range(0x80, 0xA0)), bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    expected = (
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b6116"
        "1ae10b594f09e26a7e902ecbd0600691"
    )
    assert seal(key, plain, about=about).hex() == expected
    assert unseal(key, bytes.fromhex(expected), about=about) == plain


def test_fresh_pairs_differ():
    """Their halves belong together."""
    one, other = KeyPair.generate(), KeyPair.generate()
    assert one.private != other.private
    assert KeyPair.of(one.private) == one


def test_a_private_key_is_not_printed():
    """Neither by accident nor in a traceback."""
    pair = KeyPair.of(ALICE)
    assert ALICE.hex() not in repr(pair)
    assert repr(ALICE)[2:-1] not in repr(pair)


def test_what_a_key_is_about_changes_it():
    """Two who see different cohorts have no key in common."""
    alice, bob = KeyPair.of(ALICE), KeyPair.of(BOB)
    assert alice.agree(bob.public, about=b"x") != bob.agree(alice.public, about=b"y")


@pytest.mark.parametrize("public", LOW_ORDER)
def test_keys_of_low_order_are_refused(public):
    """All points of order 1, 2, 4 and 8, in the spellings that RFC 7748 reads as such."""
    with pytest.raises(SecureSumError, match="low order"):
        KeyPair.of(ALICE).agree(bytes.fromhex(public), about=b"")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_length_are_refused(size):
    """Private ones and a peer's; without showing them."""
    with pytest.raises(SecureSumError, match=f"private key 32 bytes were expected, but {size}"):
        KeyPair.of(bytes(size))
    with pytest.raises(SecureSumError, match=f"public key 32 bytes were expected, but {size}"):
        KeyPair.of(ALICE).agree(bytes(size), about=b"")


@pytest.mark.parametrize("position", [0, 5, -1])
def test_a_changed_message_is_not_opened(position):
    """Whichever byte it is."""
    sealed = bytearray(seal(ALICE, b"shares", about=b"x"))
    sealed[position] ^= 1
    with pytest.raises(SecureSumError, match="cannot be opened"):
        unseal(ALICE, bytes(sealed), about=b"x")


@pytest.mark.parametrize(
    ("key", "about", "cut"),
    [(BOB, b"x", None), (ALICE, b"y", None), (ALICE, b"x", -1), (ALICE, b"x", 3)],
)
def test_a_message_is_opened_with_its_key_and_context_alone(key, about, cut):
    """Nor is a part of it."""
    sealed = seal(ALICE, b"shares", about=b"x")
    with pytest.raises(SecureSumError, match="cannot be opened"):
        unseal(key, sealed[:cut], about=about)
