"""What one client can change of a private sum, whatever it and the others send."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapter import AdapterUpdate
from fedlora.privacy.central import ClientSum, sensitivity
from tests.strategies import make_spec, updates

SPEC = make_spec()
CLIPS = st.floats(1e-6, 1e6)
ANY = st.floats(width=32)
"""NaN and infinities too."""
COHORTS = st.lists(updates(SPEC, floats=ANY), max_size=4)


def exact_units(cohort: list[AdapterUpdate], *, clip_norm: float) -> list[int]:
    """Return the sum as whole numbers of units, 2³⁰ of which make the clip norm."""
    total = ClientSum(SPEC, clip_norm=clip_norm)
    for update in cohort:
        total.add(update)
    assert torch.equal(total.units, total.units.trunc())
    return [int(value) for value in total.units.tolist()]


def squared_distance(one: list[int], other: list[int]) -> int:
    """Return it exactly: Python's integers do not round."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


@given(others=COHORTS, client=updates(SPEC, floats=ANY), clip_norm=CLIPS)
def test_one_client_more_changes_the_sum_by_at_most_the_clip_norm(others, client, clip_norm):
    """In exact arithmetic, after all rounding."""
    without = exact_units(others, clip_norm=clip_norm)
    with_client = exact_units([*others, client], clip_norm=clip_norm)
    assert squared_distance(without, with_client) <= (2**30) ** 2
    assert sensitivity(clip_norm, "add-remove") == clip_norm


@given(
    others=COHORTS,
    client=updates(SPEC, floats=ANY),
    another=updates(SPEC, floats=ANY),
    clip_norm=CLIPS,
)
def test_another_in_its_place_changes_it_by_at_most_twice_that(others, client, another, clip_norm):
    """In exact arithmetic, after all rounding."""
    one = exact_units([client, *others], clip_norm=clip_norm)
    other = exact_units([another, *others], clip_norm=clip_norm)
    assert squared_distance(one, other) <= (2 * 2**30) ** 2
    assert sensitivity(clip_norm, "replace-one") == 2 * clip_norm


@given(others=COHORTS, client=updates(SPEC, floats=ANY), clip_norm=CLIPS)
def test_the_others_share_does_not_depend_on_a_client(others, client, clip_norm):
    """Its own vector is the only difference: rounding of the others' share tells nothing of it."""
    alone = exact_units([client], clip_norm=clip_norm)
    without = exact_units(others, clip_norm=clip_norm)
    together = exact_units([*others, client], clip_norm=clip_norm)
    assert together == [a + b for a, b in zip(alone, without, strict=True)]
