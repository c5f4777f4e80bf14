"""When a training is given up: its update would be poison to the others."""

import math

_WINDOW, _NATS = 5, 3.0


class Divergence:
    """Looks at the losses of one training, step by step.

    A training has diverged when a loss is not finite, or when each of the last 5 steps lost over 3
    nats more than the best of its first 5: of tokens, a perplexity that is 20 times as large. A bad
    batch is no divergence, nor is a round that began from a bad adapter.

    The rule looks at the data's losses: a private training must not be stopped by it.
    """

    def __init__(self) -> None:
        self._best = math.inf
        self._steps = self._above = 0

    def has_come(self, loss: float) -> bool:
        """Take note of a step's mean loss; tell whether the training has diverged."""
        if self._steps < _WINDOW:
            self._best = min(self._best, loss)
        self._steps += 1
        self._above = self._above + 1 if loss > self._best + _NATS else 0
        return not math.isfinite(loss) or self._above >= _WINDOW
