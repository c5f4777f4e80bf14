"""What a site saw of a run: no fork, no rollback, no second recipe, and nothing lost in a crash."""

import json
import re

import pytest

from fedlora import atomic
from fedlora.adapter import AdapterState
from fedlora.errors import PolicyError, RunError, StorageError
from fedlora.gate.chain import KEEP, AdapterChain, digest_of
from fedlora.gate.inbound import Seen
from tests.strategies import make_spec, make_state

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
RECIPE = "c" * 64


@pytest.fixture
def chain(tmp_path):
    return AdapterChain(tmp_path / "chain")


def keep(chain: AdapterChain, number: int, digest: str, *, norm: float = 1.0) -> None:
    chain.keep("run", RECIPE, number=number, digest=digest, norms={"m": norm})


def require(chain: AdapterChain, number: int, digest: str, *, recipe: str = RECIPE) -> Seen | None:
    return chain.require_next("run", recipe, number=number, digest=digest)


def test_a_run_that_is_new_may_begin_anywhere(chain):
    """A site that joins late has seen nothing, and to ask leaves nothing behind."""
    assert require(chain, 5, ONE) is None
    assert not chain.folder.exists()
    assert chain.rounds() == {}


def test_later_adapters_follow_and_earlier_ones_come_again(chain):
    """Evaluation of a round and training in the next see the same adapter; both pass."""
    keep(chain, 0, ONE)
    assert require(chain, 0, ONE) == Seen(rounds=0, norms={"m": 1.0})
    keep(chain, 0, ONE, norm=9.0)
    keep(chain, 2, TWO, norm=2.0)
    assert require(chain, 0, ONE) == Seen(rounds=2, norms={"m": 2.0})
    keep(chain, 0, ONE)
    assert require(chain, 5, THREE) == Seen(rounds=2, norms={"m": 2.0})
    assert chain.rounds() == {"run": 2}


def test_a_fork_is_refused(chain):
    """The same round twice on another base gives two updates whose difference tells of the data."""
    keep(chain, 0, ONE)
    keep(chain, 1, TWO)
    for number, known in ((0, ONE), (1, TWO)):
        reason = (
            f"after {number} rounds was {known[:12]}, but now {THREE[:12]} comes for it (a fork)"
        )
        with pytest.raises(PolicyError, match=re.escape(reason)):
            require(chain, number, THREE)
        with pytest.raises(PolicyError, match="fork"):
            keep(chain, number, THREE)


def test_a_rollback_is_refused(chain):
    """What is older than the last rounds, or was passed over, is nothing to go on from.

    Also if the site remembers it, since it takes part now and then.
    """
    seen = [0, 2, *range(KEEP, 2 * KEEP - 1)]  # the last but one was passed over
    last = seen[-1] + 2
    for number in (*seen, last):
        keep(chain, number, f"{number:064}")
    for number, digest in ((2, f"{2:064}"), (last - KEEP, f"{last - KEEP:064}"), (last - 1, ONE)):
        with pytest.raises(PolicyError, match="rollback"):
            require(chain, number, digest)
    for number in range(last - KEEP + 1, last - 1):
        assert require(chain, number, f"{number:064}")


def test_a_run_has_one_recipe(chain):
    """Other steps on the same data under the same name would be another run."""
    keep(chain, 0, ONE)
    with pytest.raises(PolicyError, match="has recipe cccccccccccc, but comes with dddddddddddd"):
        require(chain, 1, TWO, recipe="d" * 64)
    assert chain.require_next("other", "d" * 64, number=0, digest=ONE) is None


def test_it_is_on_disk(chain):
    """Another process, or this one after a crash, sees the same; floats come back as they were."""
    keep(chain, 3, ONE, norm=0.1 + 0.2)
    again = AdapterChain(chain.folder)
    assert require(again, 4, TWO) == Seen(rounds=3, norms={"m": 0.1 + 0.2})


def test_a_full_disk_leaves_what_was(chain, small_disk):
    """The file is there whole or not at all, and what was not kept can be kept again."""
    keep(chain, 0, ONE)
    with small_disk(10), pytest.raises(StorageError):
        keep(chain, 1, TWO)
    assert chain.rounds() == {"run": 0}
    keep(chain, 1, TWO)
    assert chain.rounds() == {"run": 1}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"recipe": "a"}', '{"recipe": "a", "digests": [], "norms": {}}']
)
def test_a_damaged_file_is_no_new_run(chain, text):
    """What cannot be read might have forbidden what comes."""
    atomic.write_file(chain.folder / "run.json", text)
    with pytest.raises(RunError, match=r"run\.json: the adapters seen of run run cannot be read"):
        require(chain, 0, ONE)


def test_a_file_is_small(chain):
    """A run of many rounds leaves the last few."""
    for number in range(50):
        keep(chain, number, f"{number:064}")
    kept = json.loads((chain.folder / "run.json").read_text())["digests"]
    assert [number for number, _ in kept] == [47, 48, 49]


def test_a_digest_is_of_specification_and_values():
    """Equal adapters have one, and any other value, or meaning of the values, has another."""
    state = make_state(seed=1)
    same = AdapterState(spec=state.spec, values=state.values.clone())
    assert digest_of(state) == digest_of(same)
    same.values[5] += 1
    scaled = AdapterState(spec=make_spec(alpha=8.0), values=state.values)
    assert len({digest_of(state), digest_of(same), digest_of(scaled)}) == 3
