"""The methods that choose each value on its own."""

import statistics
import tempfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapter import AdapterUpdate
from fedlora.aggregation import coordinate_wise
from fedlora.aggregation.coordinate_wise import Median, TrimmedMean
from fedlora.errors import AdapterError, StorageError
from tests.strategies import make_spec, make_state, make_update

SPEC = make_spec()
PART = SPEC.part("B")


def folded(aggregator, updates, weights=None) -> AdapterUpdate:
    aggregator.begin(make_state(SPEC))
    for update, weight in zip(updates, weights or [1.0] * len(updates), strict=True):
        aggregator.add(update, weight)
    return aggregator.finish()


def columns(updates) -> list[list[float]]:
    return list(zip(*(update.values.tolist() for update in updates), strict=True))


@given(clients=st.integers(1, 8), attackers=st.integers(0, 5), seed=st.integers(0, 99))
def test_values_are_chosen_column_by_column(clients, attackers, seed):
    """As plain Python chooses them; trimming leaves at least one or two values."""
    updates = [make_update(PART, seed=seed + client) for client in range(clients)]
    trimmed = min(attackers, (clients - 1) // 2)
    expected = [
        statistics.fmean(sorted(column)[trimmed : clients - trimmed]) for column in columns(updates)
    ]
    mean = folded(TrimmedMean(attackers), updates)
    assert mean.spec == PART
    assert mean.num_examples == 3 * clients
    torch.testing.assert_close(mean.values, torch.tensor(expected))
    middle = [statistics.median(column) for column in columns(updates)]
    torch.testing.assert_close(folded(Median(), updates).values, torch.tensor(middle))


@pytest.mark.parametrize("width", [1, 7, 10**6])
def test_blocks_change_nothing(monkeypatch, width):
    """However many columns are read at once."""
    updates = [make_update(PART, seed=seed) for seed in range(5)]
    expected = folded(Median(), updates).values
    monkeypatch.setattr(coordinate_wise, "_BLOCK", width * len(updates))
    assert torch.equal(folded(Median(), updates).values, expected)


def test_neither_order_nor_weight_counts():
    """A weight buys nothing, though it must be one."""
    updates = [make_update(PART, seed=seed) for seed in range(4)]
    for aggregator in (Median(), TrimmedMean(1)):
        expected = folded(aggregator, updates).values
        heavy = folded(aggregator, updates[::-1], [1e9, 1.0, 2.0, 3.0]).values
        torch.testing.assert_close(heavy, expected, rtol=1e-6, atol=0)
        with pytest.raises(AdapterError, match="positive and finite"):
            folded(aggregator, updates, [0.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("value", [1e30, -1e30])
def test_a_minority_does_not_leave_the_honest_range(value):
    """Two of five clients send anything; each value stays between honest ones."""
    honest = [make_update(PART, seed=seed) for seed in range(3)]
    hostile = AdapterUpdate(spec=PART, values=torch.full((PART.size,), value), num_examples=1)
    stacked = torch.stack([update.values for update in honest])
    for aggregator in (Median(), TrimmedMean(2)):
        values = folded(aggregator, [hostile, *honest, hostile]).values
        assert bool((values >= stacked.min(dim=0).values).all())
        assert bool((values <= stacked.max(dim=0).values).all())


def test_a_share_takes_in_a_part_of_the_change():
    """A client's values are scaled before any is chosen."""
    update = make_update(PART)
    aggregator = Median()
    aggregator.begin(make_state(SPEC))
    aggregator.add(update, 1.0, share=0.25)
    assert torch.equal(aggregator.finish().values, update.values * 0.25)


def test_rounds_share_nothing():
    """A round that is begun anew, even of another factor, forgets what was added."""
    aggregator = TrimmedMean(1)
    aggregator.begin(make_state(SPEC))
    aggregator.add(make_update(SPEC.part("A")), 1.0)
    update = make_update(PART, seed=4)
    assert torch.equal(folded(aggregator, [update]).values, update.values)


def test_a_refused_update_does_not_count():
    """Another specification, before the first and after."""
    aggregator, update = Median(), make_update(PART, seed=4)
    aggregator.begin(make_state(SPEC))
    with pytest.raises(AdapterError, match="different specifications"):
        aggregator.add(make_update(make_spec(alpha=8.0)), 1.0)
    aggregator.add(update, 1.0)
    for spec in (SPEC, PART.part(rank=1)):
        with pytest.raises(AdapterError, match="different specifications"):
            aggregator.add(make_update(spec), 1.0)
    assert torch.equal(aggregator.finish().values, update.values)


def test_a_round_must_be_begun_and_hold_an_update():
    """As for every method."""
    aggregator = Median()
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.add(make_update(PART), 1.0)
    aggregator.begin(make_state(SPEC))
    with pytest.raises(AdapterError, match="no update to aggregate"):
        aggregator.finish()
    folded(aggregator, [make_update(PART)])
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.finish()


def test_a_full_disk_is_an_error_that_says_where(small_disk):
    """And what was kept before is still good once there is space again."""
    large = make_spec(modules={"m": (400, 600)})
    aggregator, updates = Median(), [make_update(large, seed=seed) for seed in (1, 2)]
    aggregator.begin(make_state(large))
    aggregator.add(updates[0], 1.0)
    with small_disk(10_000), pytest.raises(StorageError, match=tempfile.gettempdir()):
        aggregator.add(updates[1], 1.0)
    aggregator.add(updates[1], 1.0)
    median = aggregator.finish()
    torch.testing.assert_close(median.values, (updates[0].values + updates[1].values) / 2)
    assert median.num_examples == 6


def test_a_missing_folder_is_an_error_that_says_where(monkeypatch, tmp_path):
    """The round's first update finds out."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    aggregator = Median()
    aggregator.begin(make_state(SPEC))
    with pytest.raises(StorageError, match="gone"):
        aggregator.add(make_update(PART), 1.0)


def test_a_round_that_is_given_up_leaves_nothing_open(tmp_path, monkeypatch):
    """Warnings are errors here, and a file that is left open would warn; none has a name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    aggregator = Median()
    aggregator.begin(make_state(SPEC))
    aggregator.add(make_update(PART), 1.0)
    assert list(tmp_path.iterdir()) == []
    rows = aggregator._rows
    assert rows is not None
    file = rows._file
    del aggregator, rows
    assert file.closed
