"""The section of a recipe that says what is published when, and what a release must hold.

A release is judged by what was measured on the way: nothing is measured for a release alone but the
loss on a public text, which costs no privacy.
"""

from typing import Annotated

from pydantic import Field

from fedlora.sections import AT_SITE, Count, Federation, Name, Section, Source

_Nats = Annotated[float, Field(ge=0)]


class Forgetting(Source):
    """A public general text, on which an adapter is held against the base alone."""

    path: Annotated[str, Field(min_length=1)] = AT_SITE
    """In a deployment each site reads what its own ``site.yaml`` names, and nothing else."""
    margin: _Nats = 0.1
    """By how many nats a token an adapter's loss may be above the base's."""


class Publish(Section):
    """What is published, and what holds a release back from its alias."""

    every: Count | None = None
    """Rounds between releases; by default there is one, at the end."""
    promoted: Name = "production"
    """The alias that a release gets when it holds; until then it is ``candidate``."""
    margin: _Nats | None = 0.0
    """By how many nats a token, a text that is classified or a pair, the held-out loss may be above
    that of the release before, and of the base."""
    site_margin: _Nats | None = 0.1
    """Likewise at each site; under privacy single sites are not shown, so that none is judged."""
    forgetting: Forgetting | None = None
    """The public text, if forgetting is bounded."""
    license: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")] = "unknown"
    """Of the adapter, as the Hub spells it, such as ``apache-2.0``."""
    base_model: Annotated[str, Field(min_length=1)] | None = None
    """What releases call the base; by default what the recipe does, of a folder its last part."""

    def rounds(self, federation: Federation) -> frozenset[int]:
        """Return after which rounds there is a release."""
        last, every = federation.rounds, self.every
        return frozenset({*(range(every, last, every) if every else ()), last})

    def text_rounds(self, federation: Federation) -> frozenset[int]:
        """Return after which rounds all sites are asked for their loss on the public text.

        Before the first the adapter changes nothing, so that the base is measured.
        """
        return self.rounds(federation) | {0} if self.forgetting else frozenset()

    def require_fit(self, federation: Federation) -> None:
        """Do nothing if what is published can be judged.

        Raises:
            ValueError: it cannot.
        """
        if self.every and self.every > federation.rounds:
            raise ValueError(
                f"publish.every is {self.every}, but there are {federation.rounds} rounds: lower "
                "it, or remove it for one release at the end"
            )
        evaluated = federation.evaluated_rounds
        if evaluated and not self.rounds(federation) <= evaluated:
            raise ValueError(
                f"publish.every: {self.every} publishes after rounds that "
                f"federation.evaluate_every: {federation.evaluate_every} does not evaluate, so "
                "that nothing could judge them: take a multiple of it"
            )
