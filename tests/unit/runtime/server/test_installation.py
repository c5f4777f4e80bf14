"""An aggregator's folder appears whole, keeps its secrets, and survives its CA's key moving out."""

import hashlib
import stat

import pytest

from fedlora.errors import EnrolmentError, RunError
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.server.authority import days_left
from fedlora.runtime.server.bundle import invite
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.installation import install, renew


@pytest.fixture(name="folder")
def _folder(tmp_path):
    return install(tmp_path / "agg", Configuration.of(["fl.example.org"]), sites=["bank"])


def test_secrets_are_for_their_owner_alone(folder):
    """Nobody else enters the folder; private keys, tokens and secrets are 0600 in it."""
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    secrets = [*folder.path.rglob("*.key"), folder.superexec_secret, folder.bundle("bank")]
    assert len(secrets) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert len(folder.superexec_secret.read_bytes()) == 32


def test_a_folder_with_something_in_it_is_left_alone(folder, tmp_path):
    """A second init would make a second CA, and every site's trust void."""
    before = folder.ca_certificate.read_bytes()
    with pytest.raises(RunError, match="there is something already"):
        install(folder.path, Configuration.of(["b"]), sites=[])
    assert folder.ca_certificate.read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="there is something already"):
        install(tmp_path / "file", Configuration.of(["b"]), sites=[])


def test_a_failed_init_leaves_nothing(tmp_path):
    """A wrong site's name is found late, and takes all with it."""
    with pytest.raises(EnrolmentError, match="cannot be a site's name"):
        install(tmp_path / "agg", Configuration.of(["a"]), sites=["bank", "../bank"])
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_carries_what_a_site_needs_and_nothing_private(folder):
    """The directory keeps the digest of the token, not the token."""
    text = folder.bundle("bank").read_text()
    bundle = JoinBundle.read(folder.bundle("bank"))
    assert "PRIVATE" not in text
    assert (bundle.site, bundle.aggregator) == ("bank", "fl.example.org:9443")
    assert bundle.ca_certificate.encode() == folder.ca_certificate.read_bytes()
    kept = Directory(folder).entry("bank")
    assert kept.token_digest == hashlib.sha256(bundle.token.encode()).hexdigest()
    assert all(bundle.token.encode() not in p.read_bytes() for p in folder.directory.glob("*"))


def test_a_bundle_that_was_changed_on_the_way_is_refused(folder, tmp_path):
    """Fingerprint and certificate hold each other; unknown keys and no file are told."""
    good = folder.bundle("bank").read_text()
    path = tmp_path / "join.yaml"
    bundle = JoinBundle.read(folder.bundle("bank"))
    path.write_text(good.replace(bundle.ca_fingerprint, "0" * 64))
    with pytest.raises(EnrolmentError, match="ca_fingerprint"):
        JoinBundle.read(path)
    path.write_text(good + "node_key: x\n")
    with pytest.raises(EnrolmentError, match="node_key"):
        JoinBundle.read(path)
    with pytest.raises(EnrolmentError, match="makes a join bundle"):
        JoinBundle.read(tmp_path / "nowhere.yaml")


def test_a_site_keeps_its_bundle_without_the_token(folder, tmp_path):
    """What is written then reads as a bundle again."""
    path = tmp_path / "join.yaml"
    bundle = JoinBundle.read(folder.bundle("bank"))
    path.write_text(bundle.without_token().to_yaml())
    assert bundle.token not in path.read_text()
    assert JoinBundle.read(path) == bundle.without_token()


def test_certificates_are_renewed_under_the_same_authority(folder, tmp_path):
    """Sites need nothing, and the CA's key may come from elsewhere."""
    away = tmp_path / "ca.key"
    folder.ca_key.rename(away)
    authority, before = folder.ca_certificate.read_bytes(), folder.front_certificate.read_bytes()
    with pytest.raises(RunError, match="--ca-key"):
        renew(folder, days=10)
    assert folder.front_certificate.read_bytes() == before
    renew(folder, days=10, ca_key=away)
    assert folder.ca_certificate.read_bytes() == authority
    assert days_left(folder.front_certificate) == days_left(folder.superlink_certificate) == 9


def test_inviting_needs_no_ca_key(folder):
    """It stays off the host while sites come and go."""
    folder.ca_key.unlink()
    invite(folder, "ministry")
    assert JoinBundle.read(folder.bundle("ministry")).site == "ministry"
