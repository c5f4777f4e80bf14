"""The benchmark of grouping by length: the same rows, less padding."""

import re

from simulations.benchmarks.length_groups import SIZE, measured, uneven_rows
from tests.tiny_models import tiny_base


def test_grouped_rows_are_padded_less(tmp_path, capsys):
    """Both ways train on all rows; the table has one comparison, for which the issue has no bar."""
    tiny_base(tmp_path)
    [bar] = measured(str(tmp_path), uneven_rows(8 * SIZE), n=1)
    assert (bar.n, bar.unit, bar.holds) == (1, "s", None)
    grouped, shuffled = map(float, re.findall(r"([\d.]+)% of the tokens", capsys.readouterr().out))
    assert grouped < shuffled / 2


def test_lengths_are_those_that_are_promised():
    """Half of them above 100 tokens, a tenth above 280, none above 512; the same each time."""
    lengths = sorted(row.length for row in uneven_rows(4000))
    assert 95 < lengths[2000] < 105
    assert 260 < lengths[3600] < 300
    assert (lengths[0] >= 2, lengths[-1]) == (True, 512)
    assert uneven_rows(3) == uneven_rows(3)
