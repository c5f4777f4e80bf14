"""Tokens, certificates and keys are of their form before anything is done with them."""

from pathlib import Path

import pytest

from fedlora.release.credentials import as_certificates, as_pair, as_token
from tests.registry import Authority


@pytest.mark.parametrize("text", ["", "fedlora_x\n", "a b", "fedlora_ü", "a\x00", "x" * 1001])
def test_a_token_goes_into_a_header(text: str) -> None:
    """What would not is refused, and not shown."""
    with pytest.raises(ValueError, match="in one line") as caught:
        as_token(text)
    assert not text or text not in str(caught.value)
    assert as_token("fedlora_x-9") == "fedlora_x-9"


def test_certificates_are_there_and_can_be_read(tmp_path: Path) -> None:
    """One or several; not none, not a key, not a broken one."""
    tls = Authority(tmp_path).pair("a")
    good = tls.certificate.read_bytes()
    assert as_certificates(good) == good
    assert as_certificates((good * 2).decode()) == good * 2
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for bad in (b"", b"not pem", broken, good + broken, tls.key.read_bytes()):
        with pytest.raises(ValueError, match="certificates in PEM were expected"):
            as_certificates(bad)


def test_a_certificate_belongs_to_its_key(tmp_path: Path) -> None:
    """Another's is refused, and what is no key."""
    authority = Authority(tmp_path)
    tls, other = authority.pair("a"), authority.pair("b")
    certificate, key = tls.certificate.read_bytes(), tls.key.read_bytes()
    assert as_pair(certificate, key.decode()) == (certificate, key)
    with pytest.raises(ValueError, match="of another key"):
        as_pair(certificate, other.key.read_bytes())
    for bad in (b"", certificate):
        with pytest.raises(ValueError, match="a private key in PEM"):
            as_pair(certificate, bad)
