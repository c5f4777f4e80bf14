"""Sites by the keys that were told by telephone: nobody is known by the aggregator's word."""

import pytest

from fedlora.errors import PolicyError
from fedlora.gate.peers import Peers
from fedlora.signing import PublicKey

NORTH, SOUTH, EAST = (PublicKey(bytes([i]) * 32) for i in range(3))
PEERS = Peers.of({"north": NORTH.fingerprint, "south": SOUTH.fingerprint})


def refusal(act) -> str:
    """Return why something is refused."""
    with pytest.raises(PolicyError) as caught:
        act()
    return str(caught.value)


def test_a_site_is_known_by_its_key_alone():
    """Another key in its name, its key in another name, and a stranger are all refused by name."""
    PEERS.require("north", NORTH)
    assert "Site north is pinned to the key" in refusal(lambda: PEERS.require("north", SOUTH))
    assert EAST.fingerprint in refusal(lambda: PEERS.require("north", EAST))
    assert "Site 'east' is not pinned" in refusal(lambda: PEERS.require("east", EAST))


def test_who_holds_a_key_is_one_site():
    """Else a site could be several of a cohort, and the honest ones fewer than its threshold."""
    says = "north and east have one key"
    assert says in refusal(
        lambda: Peers.of({"north": NORTH.fingerprint, "east": NORTH.fingerprint})
    )
    assert says in refusal(lambda: PEERS.adding("east", NORTH.fingerprint))
    text = PEERS.to_yaml() + f"  east: {NORTH.fingerprint}\n"
    assert says in refusal(lambda: Peers.from_yaml(text, source="peers.yaml"))


def test_a_pin_is_not_replaced_in_passing():
    """A new key is somebody's word until the old one was removed; the same one again is no news."""
    assert PEERS.adding("north", NORTH.fingerprint) == PEERS
    assert "remove north" in refusal(lambda: PEERS.adding("north", EAST.fingerprint))
    again = PEERS.removing("north").adding("north", EAST.fingerprint)
    again.require("north", EAST)
    assert "not pinned" in refusal(lambda: PEERS.removing("east"))


def test_peers_read_back_equal():
    """Names that YAML would take for something else are names."""
    peers = PEERS.adding("on", EAST.fingerprint).removing("south").adding("7", SOUTH.fingerprint)
    assert Peers.from_yaml(peers.to_yaml(), source="peers.yaml") == peers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("peers:\n  north: SHA256:abc\n", "peers.yaml, line 2: peers.north: 'SHA256:abc' is no"),
        (
            f"peers:\n  north: {NORTH.text}\n",
            "peers.yaml, line 2: peers.north: '" + NORTH.text + "' is no fingerprint",
        ),
        (f"peers:\n  no/rth: {NORTH.fingerprint}\n", "peers.yaml, line 2: "),
        (f"peers: {{north: {NORTH.fingerprint}}}\nn: 1\n", "line 2: n is not a known key"),
        (
            f"peers:\n  a: {NORTH.fingerprint}\n  a: {EAST.fingerprint}\n",
            "line 3: peers.a is given",
        ),
        ("peers: 3\n", "peers.yaml, line 1: peers: "),
        ("[]\n", "a mapping of keys to values was expected"),
        ("", "peers is missing"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text, says):
    """Nothing is guessed in a file that decides who may open whose masks."""
    assert says in refusal(lambda: Peers.from_yaml(text, source="peers.yaml"))


@pytest.mark.parametrize(
    "told",
    [
        "",
        "SHA256:",
        NORTH.fingerprint[7:],
        NORTH.fingerprint[:-1],
        f"{NORTH.fingerprint} ",
        f"MD5:{NORTH.fingerprint[7:]}",
        NORTH.fingerprint[:-2] + "B=",
    ],
)
def test_a_fingerprint_has_one_spelling(told):
    """Two spellings of one key would be two sites; a part of one would be easy to meet."""
    assert "is no fingerprint" in refusal(lambda: Peers.of({"north": told}))


def test_names_are_those_of_recipes():
    """A name can be printed, and is a site's."""
    assert "is no name of a site" in refusal(lambda: Peers.of({"no\nrth": NORTH.fingerprint}))
