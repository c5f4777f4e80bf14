"""Who may take part changes by the operator's word, and by a token that is good once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fedlora.errors import EnrolmentError
from fedlora.runtime.enrolment import EnrolmentRequest
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder
from tests.deployment import new_keys

TOKEN = "t" * 43


@pytest.fixture(name="directory")
def _directory(tmp_path):
    folder = ServerFolder(tmp_path)
    folder.directory.mkdir()
    directory = Directory(folder)
    directory.invite("bank", token=TOKEN)
    return directory


def request(token=TOKEN, site="bank"):
    node_key, gate_key = new_keys()
    return EnrolmentRequest(site=site, token=token, node_key=node_key, gate_key=gate_key)


def test_a_site_goes_from_invited_to_revoked(directory):
    """Each step is told to the site that asks with the same keys, token or not."""
    sent = request()
    asks = sent.model_copy(update={"token": None})
    assert directory.entry("bank").state == "invited"
    assert directory.enrol(sent) == directory.enrol(sent) == directory.enrol(asks) == "waiting"
    assert directory.admitted() == {}
    directory.admit("bank", expected=sent.fingerprint, node_id=7)
    assert directory.admitted() == {7: "bank"}
    assert directory.admitted_keys() == {sent.node_key: "bank"}
    assert directory.gates()["bank"].text == sent.gate_key
    assert directory.enrol(asks) == "admitted"
    directory.revoke("bank", reason="left")
    assert directory.admitted() == directory.admitted_keys() == {}
    assert directory.enrol(sent) == "revoked"
    assert directory.entry("bank").reason == "left"


@pytest.mark.parametrize(
    "wrong",
    [request(), request(token=None), request(token="u" * 43), request(site="nobody")],
    ids=["other keys", "no token", "wrong token", "unknown site"],
)
def test_a_used_token_admits_no_other_keys(directory, wrong):
    """Whatever is wrong, the answer is the same: it tells nobody which sites there are."""
    first = request()
    directory.enrol(first)
    with pytest.raises(EnrolmentError, match="this site and token are not expected"):
        directory.enrol(wrong)
    assert directory.entry("bank").fingerprint == first.fingerprint


def test_of_many_that_race_with_one_token_one_wins(directory):
    """The token is consumed atomically: all others are refused."""
    requests = [request() for _ in range(16)]

    def enrol(sent):
        try:
            return directory.enrol(sent)
        except EnrolmentError:
            return None

    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(enrol, requests))
    assert sorted(filter(None, states)) == ["waiting"]
    winner = requests[states.index("waiting")]
    assert directory.entry("bank").fingerprint == winner.fingerprint


def test_an_invitation_voids_the_one_before(directory):
    """A leaked bundle, and the keys that somebody sent with it, count no more."""
    stolen = request()
    directory.enrol(stolen)
    directory.invite("bank", token="n" * 43)
    with pytest.raises(EnrolmentError, match="not expected"):
        directory.enrol(stolen)
    with pytest.raises(EnrolmentError, match="changed in the meantime"):
        directory.admit("bank", expected=stolen.fingerprint, node_id=7)
    assert directory.enrol(request(token="n" * 43)) == "waiting"


def test_an_admitted_site_is_revoked_before_it_is_invited_anew(directory):
    """Nobody loses a working site by a slip."""
    sent = request()
    directory.enrol(sent)
    directory.admit("bank", expected=sent.fingerprint, node_id=7)
    with pytest.raises(EnrolmentError, match="revoke it first"):
        directory.invite("bank", token="n" * 43)


def test_only_the_keys_that_were_compared_are_admitted(directory):
    """Keys that changed between the operator's look and the word are not let in."""
    directory.enrol(request())
    with pytest.raises(EnrolmentError, match="changed in the meantime"):
        directory.admit("bank", expected=request().fingerprint, node_id=7)
    assert directory.admitted() == {}


def test_an_unknown_or_damaged_site_is_told(directory, tmp_path):
    """The error says what to do."""
    with pytest.raises(EnrolmentError, match="fedlora server invite nobody"):
        directory.entry("nobody")
    (tmp_path / "sites" / "bank.json").write_text("{")
    with pytest.raises(EnrolmentError, match="damaged"):
        directory.admitted()
