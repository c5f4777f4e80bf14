"""What the aggregator signs is good for its names, and only under its own authority."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedlora.errors import RunError
from fedlora.runtime.server.authority import Authority, days_left


def verify(authority, pair, name, *, at=None):
    store = Store([authority.certificate])
    builder = PolicyBuilder().store(store).time(at or datetime.now(UTC))
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    return builder.build_server_verifier(name).verify(certificate, [])


def test_a_certificate_is_good_for_each_of_its_names():
    """Strict path validation (RFC 5280, webpki) accepts names and addresses, and no other."""
    authority = Authority.new()
    pair = authority.issue(["fl.example.org", "10.0.0.1", "2001:db8::1"], days=30)
    verify(authority, pair, x509.DNSName("fl.example.org"))
    verify(authority, pair, x509.IPAddress(ip_address("10.0.0.1")))
    verify(authority, pair, x509.IPAddress(ip_address("2001:db8::1")))
    with pytest.raises(VerificationError):
        verify(authority, pair, x509.DNSName("example.org"))


def test_another_authority_and_another_time_are_refused():
    """A certificate is good under its own authority, for as long as was asked."""
    authority = Authority.new()
    pair = authority.issue(["a"], days=30)
    with pytest.raises(VerificationError):
        verify(Authority.new(), pair, x509.DNSName("a"))
    with pytest.raises(VerificationError):
        verify(authority, pair, x509.DNSName("a"), at=datetime.now(UTC) + timedelta(days=31))


def test_the_days_left_are_told(tmp_path):
    """A day that has begun does not count."""
    path = tmp_path / "front.crt"
    path.write_bytes(Authority.new().issue(["a"], days=30).certificate)
    assert days_left(path) == 29


def test_a_key_of_another_authority_is_refused(tmp_path):
    """Whoever brings the CA's key back brings the right one, or learns that it is not."""
    mine, other = Authority.new().pair(), Authority.new().pair()
    (tmp_path / "ca.crt").write_bytes(mine.certificate)
    (tmp_path / "ca.key").write_bytes(other.key)
    with pytest.raises(RunError, match="not the key of"):
        Authority.read(certificate=tmp_path / "ca.crt", key=tmp_path / "ca.key")
    with pytest.raises(RunError, match="--ca-key"):
        Authority.read(certificate=tmp_path / "ca.crt", key=tmp_path / "nowhere.key")
