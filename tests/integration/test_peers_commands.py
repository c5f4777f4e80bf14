"""``fedlora client peers``: pinning other sites' keys, in the folder of a site that enrolled."""

import re
from pathlib import Path

import pytest

from fedlora.runtime.client import check
from fedlora.runtime.client.configuration import SiteConfiguration
from fedlora.runtime.client.enrol import enrol
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.peers import own, read_peers
from fedlora.runtime.enrolment import JoinBundle, certificate_fingerprint
from fedlora.runtime.server.authority import Authority
from fedlora.signing import PublicKey, new_key


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteFolder:
    """The folder of a site ``north`` that made its keys; nothing was sent."""
    authority = Authority.new()
    bundle = JoinBundle(
        site="north",
        aggregator="127.0.0.1:1",
        ca_certificate=authority.pair().certificate.decode(),
        ca_fingerprint=certificate_fingerprint(authority.certificate),
        aggregator_key=PublicKey(bytes(32)).text,
        token="t" * 43,
    )
    path = tmp_path / "bundle.yaml"
    path.write_text(bundle.to_yaml())
    monkeypatch.setenv("COLUMNS", "200")
    folder = SiteFolder(tmp_path / "site")
    enrol(path, folder, offline=True)
    return folder


@pytest.fixture
def peers(command_line, site: SiteFolder):
    """A function that runs a command of ``fedlora client peers`` on that folder."""
    return lambda *words: command_line("client", "peers", *words, "--dir", site.path)


@pytest.fixture
def south(tmp_path: Path) -> PublicKey:
    """The gate's key of another site, whose public half is in ``gate.key.pub``."""
    return new_key(tmp_path / "south" / "gate.key")


def test_a_site_s_own_fingerprint_comes_first(site: SiteFolder, peers, south: PublicKey) -> None:
    """It is what the operator reads out; then come the others in the order of pinning."""
    code, out, _ = peers("list")
    _, key = own(site)
    assert code == 0
    assert re.search(rf"(?m)^north +{re.escape(key.fingerprint)} +this site: read it out", out)
    assert "No other site is pinned" in out
    peers("add", "south", south.fingerprint)
    _, out, _ = peers("list")
    assert out.index(key.fingerprint) < out.index(f"south  {south.fingerprint}")


def test_a_peer_is_pinned_by_fingerprint_key_or_file(
    site: SiteFolder, peers, south: PublicKey, tmp_path: Path
) -> None:
    """All three name one key, and the file that is written can be read by a person."""
    for key in (south.fingerprint, south.text, tmp_path / "south" / "gate.key.pub"):
        code, out, _ = peers("add", "south", key)
        assert (code, out) == (0, f"south is pinned to {south.fingerprint}.\n")
    assert f"\n  south: {south.fingerprint}\n" in site.peers.read_text()
    read_peers(site).require("south", south)
    read_peers(site).require(*own(site))


def test_verify_tells_equal_from_different(peers, south: PublicKey, tmp_path: Path) -> None:
    """By its exit code too; a site that is not pinned is neither."""
    peers("add", "south", south.fingerprint)
    code, out, _ = peers("verify", "south", tmp_path / "south" / "gate.key.pub")
    assert code == 0
    assert out.startswith("Equal")
    other = PublicKey(bytes(32))
    code, out, _ = peers("verify", "south", other.text)
    assert code == 1
    assert out.startswith("Different")
    assert south.fingerprint in out
    assert other.fingerprint in out
    code, _, error = peers("verify", "east", other.text)
    assert code == 2
    assert "Site 'east' is not pinned" in error


def test_another_key_of_a_known_site_is_refused_until_it_is_removed(
    site: SiteFolder, peers, south: PublicKey
) -> None:
    """Nobody is talked into a new key in passing."""
    peers("add", "south", south.fingerprint)
    other = PublicKey(bytes(32))
    code, _, error = peers("add", "south", other.fingerprint)
    assert code == 2
    assert "peers remove south" in error
    read_peers(site).require("south", south)
    assert peers("remove", "south")[0] == 0
    assert peers("add", "south", other.fingerprint)[0] == 0
    read_peers(site).require("south", other)


def test_a_site_is_no_peer_of_itself(site: SiteFolder, peers, south: PublicKey) -> None:
    """Neither its name with another key, nor its key by another name, nor by hand."""
    _, key = own(site)
    assert peers("add", "north", south.fingerprint)[0] == 2
    assert peers("add", "east", key.fingerprint)[0] == 2
    assert peers("remove", "north")[0] == 2
    assert not site.peers.exists()
    site.peers.write_text(f"peers: {{east: {key.fingerprint}}}\n")
    code, _, error = peers("list")
    assert code == 2
    assert f"{site.peers}: it names this site itself" in error


@pytest.mark.parametrize("key", ["south.pub", "SHA256:x", "A" * 43, "x" * 5000])
def test_what_is_no_key_is_refused(site: SiteFolder, peers, key: str) -> None:
    """The error says what was expected, and nothing is written."""
    code, _, error = peers("add", "south", key)
    assert code == 2
    assert "expected" in error
    assert not site.peers.exists()


def test_a_broken_file_is_not_overwritten(site: SiteFolder, peers, south: PublicKey) -> None:
    """File and line are named, and what was in it stays to be put right."""
    text = "peers:\n  south: SHA256:no\n"
    site.peers.write_text(text)
    code, _, error = peers("add", "east", south.fingerprint)
    assert code == 2
    assert f"{site.peers}, line 2: peers.south" in error
    assert site.peers.read_text() == text


def test_a_folder_that_is_no_site_s_is_refused(command_line, tmp_path: Path) -> None:
    """Each command says what to do."""
    for words in (["list"], ["add", "a", "b"], ["verify", "a", "b"], ["remove", "a"]):
        code, _, error = command_line("client", "peers", *words, "--dir", tmp_path)
        assert code == 2
        assert "this is not a site's folder" in error


@pytest.mark.parametrize(
    ("required", "pinned", "verdict"), [(False, 1, "ok"), (True, 1, "failed"), (True, 2, "ok")]
)
def test_check_counts_the_sites_that_a_sum_needs(
    site: SiteFolder, peers, required: bool, pinned: int, verdict: str
) -> None:
    """Where no update may leave but masked, too few pinned sites are a site that cannot work."""
    for number in range(pinned):
        peers("add", f"site-{number}", PublicKey(bytes([number]) * 32).fingerprint)
    asked = {"secure_aggregation": {"required": required}}
    configuration = SiteConfiguration.model_validate(
        {"site": "north", "data": [{"path": "standard-library"}], "policy": asked}
    )
    found = check._peers(site, configuration)
    assert found[0] == verdict
    assert found[1].startswith(f"{pinned + 1} ")
