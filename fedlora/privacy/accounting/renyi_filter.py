"""A budget for charges that are chosen one after another, each in the light of all before it."""

from collections.abc import Sequence

from fedlora.privacy.accounting.renyi import divergences, epsilons, mechanisms
from fedlora.privacy.charge import Charge

_ORDERS = tuple(1 + 2**k for k in range(8))
"""Few, since each has to pay: 2 suits an ε of some 20, 129 one of 0.1, and between two
neighbours little is lost."""


class RenyiFilter:
    """Says whether charges may be drawn, when each may depend on what the others brought to light.

    An accountant that takes parameters as fixed, tight as it may be, is no such filter: stopping
    when its ε is reached is not (ε, δ)-DP if the parameters are chosen on the way.

    Guarantees:
        - If each charge, before it is drawn, is allowed together with all that were drawn before
          it, everything that they release is (ε, δ)-DP together, whichever of two neighbours has
          the unit, and however charges are chosen and whenever they end.
        - That holds of an ε and a δ that are fixed before the first charge. A budget that is raised
          in the light of releases promises the most that it would ever have been raised to.

    Why: fix an order, and let charges go on only while the sum of their divergences of that order
    is within what ``renyi.epsilons`` needs for ε and a δ of its own. Then the whole is of that
    Rényi divergence, although the divergences added up are chosen on the way (Feldman and Zrnic,
    theorem 3.1), and so it is of that ε and δ. Here charges go on while *some* order is within its
    budget; which one it is in the end depends on the releases, so no order holds of all of them.
    But every course of events is one of a process that keeps to one order's budget, and δ, being
    the expectation of ``max(0, 1 - exp(ε - loss))``, is at most the sum of theirs. So each of the
    orders has an equal part of δ (the union bound of Lécuyer).

    Args:
        epsilon: the budget, above 0.
        delta: between 0 and 1.

    References:
        Feldman and Zrnic 2021, arXiv:2008.11193; Lécuyer 2021, arXiv:2103.01379.
    """

    def __init__(self, *, epsilon: float, delta: float) -> None:
        self._epsilon, self._delta = epsilon, delta

    def allows(self, charges: Sequence[Charge]) -> bool:
        """Whether these, drawn and to be drawn, are within the budget.

        Raises:
            BudgetError: the charges do not add up to one promise, as ``renyi.mechanisms`` says.
        """
        return self.epsilon_of(charges) <= self._epsilon

    def epsilon_of(self, charges: Sequence[Charge]) -> float:
        """Return the smallest ε whose filter, at this δ, allows these charges.

        It says how much of a budget is used. What is promised is the budget.

        Guarantees:
            - 0 without a charge; never less with a further charge, more steps, a higher sampling
              rate or less noise; the same for any order of the charges.

        Raises:
            BudgetError: as ``allows``.
        """
        drawn = mechanisms(charges)
        if not drawn:
            return 0.0
        of_each = epsilons(divergences(drawn, _ORDERS), _ORDERS, delta=self._delta / len(_ORDERS))
        return float(of_each.min().clip(min=0))
