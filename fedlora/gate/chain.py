"""The global adapters that this site saw of each run, so that none is swapped for another.

::

    chain/RUN.json    the run's recipe, the last adapters by the rounds behind them, their norms
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from fedlora import atomic
from fedlora.adapter import AdapterState
from fedlora.errors import PolicyError, RunError
from fedlora.gate.inbound import Seen

KEEP = 3
"""Rounds of a run whose adapters may come again, as after an aggregator's stop."""


def digest_of(state: AdapterState) -> str:
    """Return the SHA-256 of an adapter, in hexadecimal: its specification, then its values.

    The values are little-endian float32 in the order of the flat vector.
    """
    digest = hashlib.sha256(state.spec.digest.encode())
    digest.update(state.values.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class AdapterChain:
    """What this site saw; on disk before it is relied on.

    Guarantees:
        - Of the adapters that are kept there is one for each number of rounds, and every later one
          has more rounds behind it than each that was kept before.
        - A run has one recipe.
        - A crash leaves the file as it was before or after ``keep``; to keep again changes nothing.
    """

    folder: Path

    def require_next(
        self, run: str, recipe_digest: str, *, number: int, digest: str
    ) -> Seen | None:
        """Return the last adapter that was seen of the run, if the one that came may follow it.

        It may if more rounds are behind it, or if it is that of one of the last ``KEEP`` rounds
        again: what was asked with an older one is not in the outbox any more.

        Args:
            run: its name, which names a file.
            recipe_digest: ``Recipe.digest``.
            number: complete rounds behind the adapter: to train round n, n - 1 are, to evaluate
                after it, n.
            digest: of the adapter, by ``digest_of``.

        Raises:
            PolicyError: the recipe is another (a run has one), the adapter is older than the last
                seen (rollback), or another one for as many rounds (fork).
            RunError: what was seen cannot be read.
        """
        links = self._links(run)
        if links is None:
            return None
        if recipe_digest != links.recipe:
            raise PolicyError(
                f"Run {run} has recipe {links.recipe[:12]}, but comes with {recipe_digest[:12]}. A "
                "run has one recipe: begin a new run."
            )
        known, last = links.digests.get(number), max(links.digests)
        if known and known != digest:
            raise PolicyError(
                f"Run {run}: the global adapter after {number} rounds was {known[:12]}, but now "
                f"{digest[:12]} comes for it (a fork)."
            )
        if number < last and (not known or number <= last - KEEP):
            raise PolicyError(
                f"Run {run}: the global adapter after {last} rounds was seen, and those that were "
                f"seen of the last {KEEP} rounds may come again, but the one after {number} rounds "
                "comes (a rollback)."
            )
        return Seen(rounds=last, norms=links.norms)

    def keep(
        self,
        run: str,
        recipe_digest: str,
        *,
        number: int,
        digest: str,
        norms: Mapping[str, float],
    ) -> None:
        """Keep an adapter that passed ``require_next``, which one that is kept already changes not.

        Args:
            run: as for ``require_next``, like those that follow.
            recipe_digest: likewise.
            number: likewise.
            digest: likewise.
            norms: what ``inbound.require_adapter`` returned.

        Raises:
            PolicyError: as ``require_next``; nothing is kept.
            RunError: what was seen cannot be read.
            StorageError: it cannot be written.
        """
        self.require_next(run, recipe_digest, number=number, digest=digest)
        links = self._links(run) or _Links(recipe=recipe_digest, digests={}, norms={})
        if number not in links.digests:
            links = links.with_next(number, digest, norms=norms)
            atomic.write_file(self._path(run), links.to_json())

    def rounds(self) -> dict[str, int]:
        """Return the rounds behind the last adapter that was seen, by run in order of names."""
        runs = sorted(path.stem for path in self.folder.glob("*.json"))
        found = {run: self._links(run) for run in runs}
        return {run: max(links.digests) for run, links in found.items() if links}

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}.json"

    def _links(self, run: str) -> "_Links | None":
        path = self._path(run)
        try:
            return _Links.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path}: the adapters seen of run {run} cannot be read ({error}). Put the file "
                "back from a backup. To delete it lets the aggregator go on from any adapter."
            ) from None


@dataclass(frozen=True, kw_only=True)
class _Links:
    """What is kept of a run."""

    recipe: str
    digests: Mapping[int, str]
    """By the rounds behind the adapter, ascending; never empty on disk."""
    norms: Mapping[str, float]
    """Of the last one, by module."""

    def with_next(self, number: int, digest: str, *, norms: Mapping[str, float]) -> Self:
        kept = dict(sorted({**self.digests, number: digest}.items())[-KEEP:])
        return replace(self, digests=kept, norms=norms)

    def to_json(self) -> str:
        facts = {"recipe": self.recipe, "digests": list(self.digests.items())}
        return json.dumps({**facts, "norms": dict(self.norms)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        facts = json.loads(text)
        digests = {int(number): str(digest) for number, digest in facts["digests"]}
        if not digests:
            raise ValueError("it names no adapter")
        norms = {str(module): float(norm) for module, norm in facts["norms"].items()}
        return cls(recipe=str(facts["recipe"]), digests=digests, norms=norms)
