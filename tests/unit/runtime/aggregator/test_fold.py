"""One round at the aggregator: what is admitted, what is folded, in which order."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.aggregation.average import Average
from fedlora.errors import FedloraError, InspectionError, StorageError, WireError
from fedlora.recipe import Recipe
from fedlora.runtime.aggregator.fold import Fold
from fedlora.runtime.spool import Spool
from fedlora.wire.codec import Envelope, encode_update
from tests.strategies import make_spec, make_state, make_update

COHORT = ("a", "b", "c", "d")
HERE = Envelope(spec=make_spec(), run="demo-1", round=2)
START = make_state()
PLAIN = ("lora_r=2", "lora_alpha=4", "federation.method=average", "wire.codec=fp32")
# Sums of values so far apart depend on their order, bit by bit.
SCALES = {"a": 1e4, "b": 1.0, "c": 1e-3, "d": -1e4}


def payload(site: str = "a", *, num_examples: int = 3, scale: float = 1.0) -> bytes:
    update = make_update(seed=ord(site), num_examples=num_examples)
    update.values.mul_(scale)
    return encode_update(update, HERE, codec="fp32", compress=False)


PAYLOADS = {site: payload(site, scale=SCALES[site]) for site in COHORT}


def begun(folder, *overrides: str, max_norm: float | None = 1e9) -> Fold:
    """Return a fold that has begun, over whatever is spooled in ``folder``."""
    fold = Fold(
        recipe=Recipe.from_yaml(
            "{datasets: [{path: x}], privacy: {unit: none}}", overrides=[*PLAIN, *overrides]
        ),
        envelope=HERE,
        cohort=COHORT,
        global_adapter=START,
        aggregator=Average(),
        spool=Spool(folder),
        max_norm=max_norm,
    )
    fold.begin()
    return fold


def offer(fold: Fold, *sites: str) -> None:
    for site in sites:
        fold.admit(site, PAYLOADS[site], {"train_loss": 1.0})


def test_the_values_here_do_depend_on_their_order():
    """Otherwise the next tests would prove nothing."""
    sums = []
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        aggregator = Average()
        aggregator.begin(START)
        for index in order:
            update = make_update(seed=ord(COHORT[index]))
            update.values.mul_(SCALES[COHORT[index]])
            aggregator.add(update, 3.0)
        sums.append(aggregator.finish().values)
    assert not torch.equal(*sums)


def test_any_order_of_arrival_gives_equal_bits(tmp_path):
    """The fold is in cohort order, and the record is too."""
    results = set()
    for number, order in enumerate(permutations(COHORT)):
        fold = begun(tmp_path / str(number))
        offer(fold, *order)
        assert tuple(fold.folded) == COHORT
        results.add(fold.finish().values.numpy().tobytes())
    assert len(results) == 1


@settings(max_examples=50)
@given(
    order=st.permutations(COHORT),
    fails=st.sets(st.sampled_from(COHORT), max_size=3),
    stop=st.integers(0, 4),
)
def test_a_restart_and_failures_change_no_bit(tmp_path_factory, order, fails, stop):
    """Stopped anywhere and begun anew, the round ends as one that went through."""
    folder = tmp_path_factory.mktemp("spool")
    expected = begun(folder / "whole")
    for site in COHORT:
        expected.refuse(site, "silent") if site in fails else offer(expected, site)
    stopped = begun(folder / "stopped")
    for site in order[:stop]:
        stopped.refuse(site, "silent") if site in fails else offer(stopped, site)
    resumed = begun(folder / "stopped")
    answered = set(order[:stop]) - fails
    assert resumed.open == tuple(site for site in COHORT if site not in answered)
    for site in resumed.open:
        resumed.refuse(site, "silent") if site in fails else offer(resumed, site)
    assert resumed.folded == expected.folded
    assert resumed.refused == expected.refused
    assert torch.equal(resumed.finish().values, expected.finish().values)


def test_an_update_is_folded_as_soon_as_all_before_it_are_settled(tmp_path):
    """Nothing waits for longer than the order demands."""
    fold = begun(tmp_path)
    offer(fold, "c")
    offer(fold, "b")
    assert list(fold.folded) == []
    assert fold.open == ("a", "d")
    fold.refuse("a", "no answer")
    assert list(fold.folded) == ["b", "c"]
    offer(fold, "d")
    assert list(fold.folded) == ["b", "c", "d"]
    assert fold.open == ()
    assert fold.refused == {"a": "no answer"}


def test_the_record_says_what_each_client_contributed(tmp_path):
    """Metrics, examples, weight, norm and bytes."""
    fold = begun(tmp_path)
    offer(fold, "a")
    assert fold.folded["a"] == {
        "train_loss": 1.0,
        "num_examples": 3,
        "weight": 3.0,
        "share": 1.0,
        "norm": pytest.approx(make_update(seed=ord("a")).norm() * 1e4),
        "bytes": len(PAYLOADS["a"]),
    }


@pytest.mark.parametrize("first", ["a", "d"])
def test_a_client_that_answers_twice_counts_once(tmp_path, first):
    """Whether its first answer is folded already or still waits; the second is refused."""
    fold = begun(tmp_path / "twice")
    offer(fold, first)
    with pytest.raises(WireError, match=f"{first} has already answered round 2"):
        fold.admit(first, payload(first, scale=-9.0), {"train_loss": 0.0})
    offer(fold, *fold.open)
    once = begun(tmp_path / "once")
    offer(once, *COHORT)
    assert fold.folded == once.folded
    assert torch.equal(fold.finish().values, once.finish().values)


def test_a_client_that_was_given_up_cannot_answer_any_more(tmp_path):
    """It is settled: the updates after it may be folded already."""
    fold = begun(tmp_path)
    fold.refuse("a", "no answer")
    with pytest.raises(WireError, match="a has already answered"):
        offer(fold, "a")
    assert fold.folded == {}


def test_an_accepted_client_stays_accepted(tmp_path):
    """A later refusal, of its second answer, does not undo the first."""
    fold = begun(tmp_path)
    offer(fold, "a", "c")
    fold.refuse("a", "answered twice")
    fold.refuse("c", "answered twice")
    offer(fold, "b", "d")
    assert tuple(fold.folded) == COHORT
    assert fold.refused == {}


def test_the_first_reason_stays(tmp_path):
    """What was wrong first is what the record says."""
    fold = begun(tmp_path)
    fold.refuse("a", "NaN")
    fold.refuse("a", "no answer")
    assert fold.refused == {"a": "NaN"}


def test_a_stranger_is_refused(tmp_path):
    """Only the cohort takes part in a round."""
    fold = begun(tmp_path)
    with pytest.raises(WireError):
        fold.admit("e", payload(), {"train_loss": 1.0})
    fold.refuse("e", "stranger")
    assert fold.open == COHORT
    assert fold.refused == {}
    assert Spool(tmp_path).sites() == frozenset()


@pytest.mark.parametrize(
    ("data", "metrics", "error"),
    [
        (b"rubbish", {"train_loss": 1.0}, WireError),
        (payload(scale=float("nan")), {"train_loss": 1.0}, InspectionError),
        (payload(num_examples=121), {"train_loss": 1.0}, InspectionError),
        (payload(), {"train_loss": float("nan")}, InspectionError),
        (payload(), {"name": 1.0}, InspectionError),
        (payload() + b"x", {"train_loss": 1.0}, WireError),
    ],
)
def test_what_is_refused_leaves_no_trace(tmp_path, data, metrics, error):
    """Nothing is spooled or summed, and the client stays open until it is refused by name."""
    fold = begun(tmp_path)
    with pytest.raises(error):
        fold.admit("a", data, metrics)
    assert fold.open == COHORT
    assert Spool(tmp_path).sites() == frozenset()
    assert issubclass(error, FedloraError)


def test_as_many_examples_as_the_recipe_allows_are_admitted(tmp_path):
    """15 steps of 8 by default: one more was refused above."""
    fold = begun(tmp_path)
    fold.admit("a", payload(num_examples=120), {"train_loss": 1.0})
    assert fold.folded["a"]["weight"] == 120.0


def test_a_message_above_the_recipe_s_cap_is_refused(tmp_path):
    """wire.max_bytes holds at the aggregator."""
    fold = begun(tmp_path, "wire.max_bytes=100")
    with pytest.raises(WireError, match="at most 100 are read"):
        offer(fold, "a")


def test_an_outsized_update_is_refused_with_the_recipe_s_key(tmp_path):
    """Above the bound, not at it."""
    norm = make_update(seed=ord("a")).norm()
    fold = begun(tmp_path, max_norm=norm * 1.001)
    fold.admit("a", payload("a"), {"train_loss": 1.0})
    fold = begun(tmp_path / "strict", max_norm=norm * 0.999)
    with pytest.raises(WireError, match=r"10 times .* \(federation.max_update_norm\)"):
        fold.admit("a", payload("a"), {"train_loss": 1.0})


@pytest.mark.parametrize("bound", [None, 0.0])
def test_without_an_earlier_norm_the_cohort_s_own_decides(tmp_path, bound):
    """In the first round, or after one in which nothing moved, the fold waits for all."""
    fold = begun(tmp_path, max_norm=bound)
    for site in "abc":
        fold.admit(site, payload(site), {"train_loss": 1.0})
        assert fold.folded == {}
    fold.admit("d", payload("d", scale=1e6), {"train_loss": 1.0})
    assert list(fold.folded) == ["a", "b", "c"]
    assert "10 times this round's median" in fold.refused["d"]


def test_a_round_in_which_nothing_moves_is_folded(tmp_path):
    """Ten times a median of zero would refuse all."""
    fold = begun(tmp_path, max_norm=None)
    for site in COHORT:
        fold.admit(site, payload(site, scale=0.0), {"train_loss": 1.0})
    assert tuple(fold.folded) == COHORT


@pytest.mark.parametrize("rule", ["none", "geometric-median"])
def test_a_fold_that_waits_gives_equal_bits_in_any_order_and_after_a_stop(tmp_path, rule):
    """As one that does not."""
    results = set()
    for number, order in enumerate(permutations(COHORT)):
        keys = f"federation.robust={rule}", "federation.max_update_norm=1e9"
        offer(begun(tmp_path / str(number), *keys, max_norm=None), *order[:2])
        fold = begun(tmp_path / str(number), *keys, max_norm=None)
        offer(fold, *order[2:])
        assert tuple(fold.folded) == COHORT
        results.add(fold.finish().values.numpy().tobytes())
    assert len(results) == 1


def test_whom_a_rule_excludes_is_refused_with_its_reason(tmp_path):
    """It was admitted, it is not folded, and its bytes are counted."""
    keys = "federation.robust=cosine-filter", "federation.max_update_norm=1e9"
    fold = begun(tmp_path, *keys)
    for site in "abc":
        fold.admit(site, payload("a"), {"train_loss": 1.0})
    fold.admit("d", payload("a", scale=-3.0), {"train_loss": 1.0})
    assert list(fold.folded) == ["a", "b", "c"]
    assert list(fold.admitted) == list(COHORT)
    assert "cosine-filter" in fold.refused["d"]
    assert fold.received_bytes == 4 * len(payload("a"))


def test_a_spool_that_is_damaged_during_the_fold_names_the_file(tmp_path):
    """It is no fault of the client that answers at that moment."""
    fold = begun(tmp_path)
    offer(fold, "b", "c", "d")
    (tmp_path / "c").unlink()
    with pytest.raises(StorageError, match=f"{tmp_path / 'c'}: a spooled update cannot be read"):
        offer(fold, "a")


def test_an_update_weighs_what_it_was_trained_on(tmp_path):
    """The weights are the examples behind the updates."""
    fold = begun(tmp_path)
    fold.admit("a", payload(num_examples=7), {"train_loss": 1.0})
    offer(fold, "b")
    first, second = make_update(seed=ord("a")).values, make_update(seed=ord("b")).values
    assert fold.folded["a"]["weight"] == 7.0
    torch.testing.assert_close(fold.finish().values, (7 * first + 3 * second) / 10)


def test_the_median_norm_is_of_what_was_folded(tmp_path):
    """Refused updates do not move the next round's bound; without any there is none."""
    fold = begun(tmp_path)
    assert fold.median_norm() is None
    fold.refuse("d", "NaN")
    offer(fold, "a", "b", "c")
    norms = sorted(folded["norm"] for folded in fold.folded.values())
    assert fold.median_norm() == norms[1]


def test_a_full_disk_is_no_fault_of_the_client(tmp_path, small_disk):
    """The error is about the disk, the client stays open, and nothing half-written is spooled."""
    fold = begun(tmp_path)
    with small_disk(100), pytest.raises(StorageError, match="cannot be written"):
        offer(fold, "a")
    assert fold.open == COHORT
    assert list(tmp_path.iterdir()) == []
    offer(fold, *COHORT)
    assert tuple(fold.folded) == COHORT


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"{}\nrubbish", b'{"train_loss": 1}\n'])
def test_a_spooled_update_that_was_damaged_is_asked_for_again(tmp_path, content):
    """A restart neither dies of it nor folds it."""
    offer(begun(tmp_path), "a", "b")
    (tmp_path / "a").write_bytes(content)
    fold = begun(tmp_path)
    assert fold.open == ("a", "c", "d")
    offer(fold, "a", "c", "d")
    assert tuple(fold.folded) == COHORT


def test_what_others_left_in_the_spool_is_not_folded(tmp_path):
    """Neither a client that is not in the cohort nor a file that was being written."""
    Spool(tmp_path).put("e", payload(), {"train_loss": 1.0})
    (tmp_path / ".a.x7d").write_bytes(b"half")
    fold = begun(tmp_path)
    assert fold.open == COHORT
    offer(fold, *COHORT)
    assert tuple(fold.folded) == COHORT
