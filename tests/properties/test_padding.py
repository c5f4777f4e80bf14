"""A padded adapter changes every weight as before."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapter import AdapterState
from fedlora.release.engines.padding import padded
from tests.strategies import specs, states

MODERATE = st.just(0.0) | st.floats(2**-20, 100, width=32) | st.floats(-100, -(2**-20), width=32)
ADAPTERS = specs().flatmap(lambda spec: states(spec, floats=MODERATE))


def changes(state: AdapterState) -> dict[str, torch.Tensor]:
    scaling = state.spec.scaling
    return {module: scaling * (b.double() @ a.double()) for module, a, b in state.pairs()}


@given(state=ADAPTERS, more=st.integers(0, 9))
def test_a_padded_adapter_changes_each_weight_as_before(state: AdapterState, more: int) -> None:
    """Whatever its rank and alpha; and its alpha is a whole number then."""
    result = padded(state, rank=state.spec.rank + more)

    assert result.spec.rank == state.spec.rank + more
    assert result.spec.alpha.is_integer()
    before, after = changes(state), changes(result)
    for module, change in before.items():
        size = float(change.abs().max())
        torch.testing.assert_close(after[module], change, rtol=1e-6, atol=1e-5 * size)


@given(state=ADAPTERS, factor=st.integers(1, 4))
def test_factors_stay_where_alpha_stays_whole(state: AdapterState, factor: int) -> None:
    """Then zeros are all that is added."""
    whole = replace(state, spec=replace(state.spec, alpha=2.0 * state.spec.rank))
    result = padded(whole, rank=whole.spec.rank * factor)

    assert result.part(whole.spec).values.equal(whole.values)
    assert result.values.count_nonzero() == whole.values.count_nonzero()
