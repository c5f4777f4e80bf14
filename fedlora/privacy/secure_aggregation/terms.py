"""What an attempt at a secure sum goes by: fixed by the recipe, never by who sums."""

from dataclasses import dataclass

from fedlora.errors import SecureSumError
from fedlora.sections import FEWEST


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all members of an attempt must agree on before they share anything."""

    members: int
    """Most members that an attempt may have: n, all advertised keys counted."""
    threshold: int
    """Shares that open a secret, and members, or neighbours, without whom there is no sum: t."""
    fewest: int
    """Members without whom an attempt does not begin: t, or what a sparse graph's degree counts
    on."""
    colluders: int
    """Members who may pass on to the aggregator all that they know: |C|."""
    signed: bool
    """Whether survivors are signed before anything is revealed: the aggregator may lie, too."""
    degree: int | None = None
    """Neighbours of each member in a sparse graph; none where each is everybody's neighbour."""
    most_lost: int | None = None
    """Members of a sparse graph that may be lost once they are in the roster, which its degree
    counts on, too: were they more, a sum could tell of fewer members than all that are in it."""

    def __post_init__(self) -> None:
        n, t, colluders = self.members, self.threshold, self.colluders
        holders = n if self.degree is None else self.degree + 1
        if not colluders < t <= holders:
            raise SecureSumError(
                f"The threshold is {t}, but {colluders} colluders must not reach it, and {holders} "
                "members hold shares of a secret."
            )
        if self.degree is None and t < FEWEST:
            raise SecureSumError(
                f"The threshold is {t}, but of two members whose sum is opened each would have the "
                f"other's vector: it must be at least {FEWEST}."
            )
        if self.signed and (self.degree is not None or 2 * t <= n + colluders):
            raise SecureSumError(
                f"An aggregator that lies could let two halves of {n} members reveal different "
                f"secrets: twice the threshold, {2 * t}, must be above {n + colluders}."
            )

    @property
    def fewest_summed(self) -> int:
        """Members without whom no sum is opened."""
        return max(self.threshold, self.fewest - (self.most_lost or 0))

    def require_enough(self, count: int, *, of: str, least: int | None = None) -> None:
        """Do nothing if so many members are enough, by default to open what they share.

        Raises:
            SecureSumError: they are not.
        """
        least = least or self.threshold
        if count < least:
            raise SecureSumError(
                f"{count} members {of}, but at least {least} must (privacy.threshold)."
            )
