"""The mean of B, after which both factors are turned."""

import pytest
import torch

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation.coordinate_wise import Median
from fedlora.aggregation.freeze_a import FreezeA
from fedlora.aggregation.refresh import Refresh
from fedlora.errors import AdapterError
from tests.oracles import dense_products
from tests.strategies import make_spec, make_state, make_update

SPEC = make_spec()
START = make_state(SPEC, seed=9)
SENT = [make_update(SPEC.part("B"), seed=seed) for seed in (1, 2, 3)]


def folded(aggregator, start: AdapterState = START, updates=SENT) -> AdapterUpdate:
    aggregator.begin(start)
    for index, update in enumerate(updates):
        aggregator.add(update, 1.0 + index)
    return aggregator.finish()


@pytest.mark.parametrize("inner", [FreezeA, Median])
def test_the_turn_changes_no_product(inner):
    """The update is of both factors, and leads to the same products as the aggregate of B alone."""
    plain = START.plus(folded(inner()))
    update = folded(Refresh(inner()))
    assert update.spec == SPEC
    assert update.num_examples == 9
    torch.testing.assert_close(
        dense_products(START.plus(update)), dense_products(plain), rtol=1e-5, atol=1e-5
    )


def test_the_result_is_orthogonal():
    """Rows of A are orthonormal; columns of B orthogonal, descending."""
    state = START.plus(folded(Refresh(FreezeA())))
    for _, down, up in state.pairs():
        torch.testing.assert_close(down @ down.T, torch.eye(2), rtol=0, atol=1e-5)
        gram = up.T @ up
        torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-4)
        assert gram[0, 0] >= gram[1, 1]


def test_what_has_not_moved_keeps_its_a():
    """While B is zero there is nothing to turn to, so A stays as it was drawn."""
    start = AdapterState.initial(SPEC, seed=1)
    still = AdapterUpdate(
        spec=SPEC.part("B"), values=torch.zeros(SPEC.part("B").size), num_examples=1
    )
    assert not folded(Refresh(FreezeA()), start, [still]).values.any()


def test_what_is_given_is_left_as_it_is():
    """Neither the global adapter nor an update is written to."""
    before = [START.values.clone(), *(update.values.clone() for update in SENT)]
    folded(Refresh(FreezeA()))
    after = [START.values, *(update.values for update in SENT)]
    assert all(map(torch.equal, before, after))


def test_a_round_must_be_begun_and_hold_an_update():
    """As for every method, and an update of another adapter is refused."""
    aggregator = Refresh(FreezeA())
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.add(SENT[0], 1.0)
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.finish()
    aggregator.begin(START)
    with pytest.raises(AdapterError, match="no update"):
        aggregator.finish()
    with pytest.raises(AdapterError, match="different specifications"):
        aggregator.add(make_update(make_spec(alpha=8.0)), 1.0)
    aggregator.add(SENT[0], 1.0)
    aggregator.finish()
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.finish()
