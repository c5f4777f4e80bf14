"""FFA-LoRA: A stays as it was drawn, B is averaged."""

from fedlora.aggregation.weighted_sum import WeightedSum


class FreezeA(WeightedSum):
    """Weighted mean of B under an A that never changes: ``B += Σ wᵢ ΔBᵢ / Σ wᵢ``.

    *Communicates* B alone, about half of the bytes. *Plain weighted sum*: yes, and exact, since
    products are linear in B: ``Σ wᵢ BᵢA = (Σ wᵢ Bᵢ) A``. *Mixed ranks*: no.

    What to expect: exactness at the price of half the parameters. On one small model its end loss
    was the highest of the methods here (2.64 after ten rounds, ``average`` 2.54). It is for
    differential privacy and secure aggregation: noise enters the product once, and a sum is all
    that the aggregator needs.

    References:
        Sun et al. 2024, arXiv:2403.12313.
    """
