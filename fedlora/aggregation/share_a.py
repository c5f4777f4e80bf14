"""FedSA-LoRA: A is shared, B stays at its site."""

from fedlora.aggregation.weighted_sum import WeightedSum


class ShareA(WeightedSum):
    """Weighted mean of A; each site trains both factors and keeps a B of its own.

    *Communicates* A alone, about half of the bytes. *Plain weighted sum*: yes, of A; there is no
    one product that it could be exact for. *Mixed ranks*: no.

    What to expect: an adapter for each site rather than one for all. The global adapter's own B
    stays what it was at the start, so it is of no use without a site's B. Not yet measured here.

    References:
        Guo et al. 2024, arXiv:2410.01463.
    """
