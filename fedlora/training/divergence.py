"""When a training is given up: its update would be poison to the others."""

import math
from statistics import median

_WINDOW, _NATS = 5, 3.0


class Divergence:
    """Looks at the losses of one training, step by step.

    A training has diverged when a loss is not finite, or when each of the last 5 steps lost over 3
    nats more than the median of its first 5: of tokens, a perplexity that is 20 times as large. A
    bad batch is no divergence, nor is a round that began from a bad adapter.

    The rule looks at the data's losses: a private training must not be stopped by it.
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._above = 0

    def has_come(self, loss: float) -> bool:
        """Take note of a step's mean loss; tell whether the training has diverged."""
        if len(self._first) < _WINDOW:
            self._first.append(loss)
        elif loss > median(self._first) + _NATS:
            self._above += 1
        else:
            self._above = 0
        return not math.isfinite(loss) or self._above >= _WINDOW
