"""Labels beside the lines of a plot: none over another, and no further away than that takes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.runtime.reports.plots.canvas import spread

values = st.lists(st.floats(min_value=-50, max_value=50), max_size=9).map(sorted)


@given(values=values, gap=st.floats(min_value=0.01, max_value=5))
def test_labels_are_a_gap_apart_and_inside_the_plot(values, gap):
    """Nine labels of at most 5 units fit into 100 units, so both can always hold."""
    places = spread(values, gap=gap, low=-50, high=50)
    assert len(places) == len(values)
    assert all(after - before >= gap - 1e-9 for before, after in pairwise(places))
    assert all(-50 - 1e-9 <= place <= 50 + 1e-9 for place in places)


@given(values=values)
def test_labels_that_do_not_overlap_stay_where_they_are(values):
    """What is already far enough apart is not moved."""
    distant = [value + 20 * index for index, value in enumerate(values)]
    assert spread(distant, gap=20, low=-1000, high=1000) == pytest.approx(distant)
