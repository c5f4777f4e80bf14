"""Publication while a run is played: draft, sign, publish, judge; it never ends a run.

Each release gets the alias ``candidate``, and the recipe's ``publish.promoted`` if the gate lets it
pass. What became of it is a line of the run's ``releases.jsonl``.
"""

import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlora import atomic
from fedlora.errors import FedloraError
from fedlora.recipe import Recipe
from fedlora.release.folder import Release, signed_manifest
from fedlora.release.gates import judge
from fedlora.release.manifest import Manifest
from fedlora.release.publisher import Publisher
from fedlora.release.source import Target
from fedlora.runtime.events import (
    Event,
    Observer,
    PublicationFailed,
    ReleasePublished,
    RoundFinished,
)
from fedlora.runtime.publishing import draft
from fedlora.runtime.run_folder import RunFolder
from fedlora.signing import Signer

CANDIDATE = "candidate"
"""The alias of each release that a run publishes."""

_LONGEST_REASON = 500


@dataclass(frozen=True)
class Publication:
    """Publishes a run's releases.

    Guarantees:
        - Whatever fails is told, and the run goes on; with the next release it is tried again.
        - A round whose release is on record is not published again.

    Args:
        run: what is played.
        target: a store or a registry.
        signer: the publishing key.
        observe: is told what became of each release.
    """

    run: RunFolder
    target: Target
    signer: Signer
    observe: Observer

    def observing(self, event: Event) -> None:
        """Pass an event on; publish, if it says that a round with a release is complete."""
        self.observe(event)
        if isinstance(event, RoundFinished):
            self.publish(event.record["round"])

    def begin(self) -> Observer:
        """Publish what the last complete round lacks since a stop; return what is to be told."""
        self.publish(len(self.run.records()) - 1)
        return self.observing

    def publish(self, number: int) -> None:
        """Publish the release of round ``number``, if the recipe has one and no record has it."""
        try:
            if self._is_due(number):
                published = self._publish(number)
                self._keep(published)
                self.observe(published)
        except FedloraError as error:
            self.observe(PublicationFailed(round=number, reason=str(error)))
        except Exception as error:  # whatever a store or a network provokes
            logging.getLogger(__name__).exception("A release cannot be published.")
            reason = f"{type(error).__name__}; the log says more."
            self.observe(PublicationFailed(round=number, reason=reason))

    def _is_due(self, number: int) -> bool:
        """Tell whether the recipe has a release of that round, for all sites, not on record yet."""
        recipe = self.run.recipe()
        due = number in recipe.publish.rounds(recipe.federation)
        return due and not recipe.federation.facts.personal and number not in self._published()

    def _publish(self, number: int) -> ReleasePublished:
        gate, publisher = self.run.recipe().publish, Publisher(self.target, self.signer)
        before = parent_of(publisher, self.run.recipe())
        with tempfile.TemporaryDirectory(prefix=".release-", dir=self.run.path) as place:
            folder = Path(place) / "release"
            manifest = draft(self.run, folder, number=number, parent=before)
            release = publisher.publish(folder, manifest)
        reason = f"round {number} of {manifest.origin.rounds} of run {self.run.name}"
        self._move(publisher, release, CANDIDATE, reason=reason)
        parent = self._manifest(before).evaluation if before else None
        held_back = tuple(judge(manifest.evaluation, parent, gate))
        if not held_back:
            self._move(publisher, release, gate.promoted, reason=f"the gate holds: {reason}")
        return ReleasePublished(
            round=number,
            release=release.id,
            promoted=None if held_back else gate.promoted,
            held_back=held_back,
        )

    def _move(self, publisher: Publisher, release: Release, alias: str, *, reason: str) -> None:
        name = release.manifest.name
        found = publisher.index(name).aliases.get(alias)
        before = found.release if found else None
        if before != release.id:
            cut = reason[:_LONGEST_REASON]
            publisher.move(name, alias, release.id, expected=before, reason=cut)

    def _manifest(self, release: str) -> Manifest:
        payload, signature = self.target.manifest(release)
        return signed_manifest(
            payload, signature, key=self.signer.public, source=f"release {release[:12]}"
        )

    def _published(self) -> set[int]:
        return {json.loads(line)["round"] for line in self._lines()}

    def _keep(self, published: ReleasePublished) -> None:
        lines = [*self._lines(), json.dumps(asdict(published))]
        atomic.write_file(self.run.releases, "\n".join(lines) + "\n")

    def _lines(self) -> list[str]:
        path = self.run.releases
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def parent_of(publisher: Publisher, recipe: Recipe) -> str | None:
    """Return the usable release that a recipe's promoted alias points to, if any.

    Raises:
        ReleaseError: the index is another publisher's, or the target does not answer.
    """
    index = publisher.index(recipe.name)
    found = index.aliases.get(recipe.publish.promoted)
    return found.release if found and index.is_usable(found.release) else None
