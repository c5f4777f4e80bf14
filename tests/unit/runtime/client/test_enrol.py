"""A bundle is somebody's file: what it may do to a site's folder is next to nothing."""

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlora.document import Document, write_yaml
from fedlora.errors import EnrolmentError
from fedlora.runtime.client.configuration import read_site
from fedlora.runtime.client.enrol import enrol, read_bundle
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import EnrolmentRequest, JoinBundle, certificate_fingerprint
from fedlora.runtime.server.authority import Authority

GATE = base64.b64encode(bytes(32)).decode()


def bundle(path: Path, **changed: object) -> Path:
    """Write a bundle, some of whose keys are changed."""
    authority = Authority.new()
    values = {
        "site": "north",
        "aggregator": "127.0.0.1:1",
        "ca_certificate": authority.pair().certificate.decode(),
        "ca_fingerprint": certificate_fingerprint(authority.certificate),
        "aggregator_key": GATE,
        "token": "t" * 43,
    }
    path.write_text(write_yaml(values | changed))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """Where a site's folder is to be."""
    return SiteFolder(tmp_path / "site")


def test_keys_are_made_here_and_their_owners_alone(tmp_path: Path, folder: SiteFolder) -> None:
    """EC P-384 for Flower, Ed25519 for the gate; nobody else can read them; both are sent."""
    done = enrol(bundle(tmp_path / "b.yaml"), folder, offline=True)
    node = serialization.load_ssh_private_key(folder.node_key.read_bytes(), None)
    gate = serialization.load_pem_private_key(folder.gate_key.read_bytes(), None)

    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert isinstance(node.curve, ec.SECP384R1)
    assert isinstance(gate, Ed25519PrivateKey)
    for path in (folder.node_key, folder.gate_key, done.request):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (folder.path, folder.credentials, folder.gate):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    sent = EnrolmentRequest.from_json(done.request.read_bytes())
    assert sent.fingerprint == done.fingerprint
    assert sent.gate_key == base64.b64encode(gate.public_key().public_bytes_raw()).decode()


def test_nothing_of_the_token_stays(tmp_path: Path, folder: SiteFolder) -> None:
    """Only the request that is to be carried over has it."""
    done = enrol(bundle(tmp_path / "b.yaml"), folder, offline=True)
    done.request.unlink()

    assert [p for p in folder.path.rglob("*") if p.is_file() and "ttt" in p.read_text()] == []
    assert JoinBundle.read(folder.join).token is None


def test_again_changes_nothing(tmp_path: Path, folder: SiteFolder) -> None:
    """Keys and the operator's file stay; the fingerprint is the same."""
    path = bundle(tmp_path / "b.yaml")
    first = enrol(path, folder, offline=True)
    folder.configuration.write_text("site: north  # mine\n")
    second = enrol(path, folder, offline=True)

    assert second.fingerprint == first.fingerprint
    assert folder.configuration.read_text() == "site: north  # mine\n"


def test_the_example_names_the_site(tmp_path: Path, folder: SiteFolder) -> None:
    """It can be read as it is, and lets nothing run until the operator has filled it in."""
    enrol(bundle(tmp_path / "b.yaml"), folder, offline=True)

    site = read_site(folder.configuration)
    assert site.site == "north"
    assert site.policy.approval == "required"
    assert "#" in folder.configuration.read_text()


def test_a_folder_is_one_sites(tmp_path: Path, folder: SiteFolder) -> None:
    """A bundle of another site or CA is refused: its keys would stand for two."""
    enrol(bundle(tmp_path / "b.yaml"), folder, offline=True)

    with pytest.raises(EnrolmentError, match="this is the folder of site north"):
        enrol(bundle(tmp_path / "c.yaml"), folder, offline=True)


def test_an_aggregator_that_does_not_answer_leaves_the_site_as_it_was(
    tmp_path: Path, folder: SiteFolder
) -> None:
    """The keys are there for the next try, and the site has not enrolled."""
    path = bundle(tmp_path / "b.yaml")
    with pytest.raises(EnrolmentError, match="cannot be reached"):
        enrol(path, folder)

    assert not folder.join.exists()
    key = folder.node_key.read_bytes()
    enrol(path, folder, offline=True)
    assert folder.node_key.read_bytes() == key


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"site": "../../etc"}, "site"),
        ({"site": "a/b"}, "site"),
        ({"site": "-rf"}, "site"),
        ({"aggregator": "127.0.0.1:1 --insecure"}, "aggregator"),
        ({"node_key": "x"}, "node_key is not a"),
        ({"ca_fingerprint": "0" * 64}, "ca_fingerprint is not the SHA-256"),
        ({"token": None}, "token"),
        ({"extra": "-----BEGIN PRIVATE KEY-----"}, "private key"),
        ({"extra": "x" * 100_000}, "at most"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_bundle_is_refused(
    tmp_path: Path, folder: SiteFolder, changed: dict[str, object], said: str
) -> None:
    """The message names what is wrong, and no folder is made."""
    with pytest.raises(EnrolmentError, match=said):
        enrol(bundle(tmp_path / "b.yaml", **changed), folder, offline=True)

    assert not folder.path.exists()


def test_a_second_certificate_is_refused(tmp_path: Path) -> None:
    """It would be trusted, and the fingerprint that operators compare would not tell of it."""
    path = bundle(tmp_path / "b.yaml")
    values = Document.read(path.read_text(), source="b").values
    other = Authority.new().pair().certificate.decode()
    path.write_text(write_yaml(values | {"ca_certificate": values["ca_certificate"] + other}))

    with pytest.raises(EnrolmentError, match="ca_certificate"):
        read_bundle(path)


@pytest.mark.parametrize("content", [b"\x00\xff", b"- a\n- b\n", b"a: [", b""])
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds, the error is one that an operator can act on."""
    path = tmp_path / "b.yaml"
    path.write_bytes(content)

    with pytest.raises(EnrolmentError):
        read_bundle(path)


def test_a_broken_key_is_not_replaced(tmp_path: Path, folder: SiteFolder) -> None:
    """A new one would be another site to the aggregator: the operator decides."""
    path = bundle(tmp_path / "b.yaml")
    enrol(path, folder, offline=True)
    folder.gate_key.write_bytes(b"broken")

    with pytest.raises(EnrolmentError, match="can be read"):
        enrol(path, folder, offline=True)
    assert folder.gate_key.read_bytes() == b"broken"
