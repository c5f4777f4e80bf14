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
from fedlora.release.folder import Release
from fedlora.release.gates import judge
from fedlora.release.manifest import Evaluation, Manifest
from fedlora.release.publisher import Publisher
from fedlora.release.source import Target, manifest_of
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
        release = publish_run(self.run, publisher, number=number)
        manifest = release.manifest
        reason = f"round {number} of {manifest.origin.rounds} of run {self.run.name}"
        self._move(publisher, release, CANDIDATE, reason=reason)
        held_back = tuple(judge(manifest.evaluation, self._parents(manifest), gate))
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
        before = publisher.index(name).pointed(alias)
        if before != release.id:
            cut = reason[:_LONGEST_REASON]
            publisher.move(name, alias, release.id, expected=before, reason=cut)

    def _parents(self, manifest: Manifest) -> Evaluation | None:
        """Return the evaluation of the release that another follows, if it follows one."""
        parent = manifest.origin.parent
        if parent is None:
            return None
        return manifest_of(self.target, parent, key=self.signer.public)[0].evaluation

    def _published(self) -> set[int]:
        return {json.loads(line)["round"] for line in self._lines()}

    def _keep(self, published: ReleasePublished) -> None:
        lines = [*self._lines(), json.dumps(asdict(published))]
        atomic.write_file(self.run.releases, "\n".join(lines) + "\n")

    def _lines(self) -> list[str]:
        path = self.run.releases
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def publish_run(run: RunFolder, publisher: Publisher, *, number: int | None = None) -> Release:
    """Draft, sign and publish a run's release; its parent is what the promoted alias points to.

    Args:
        run: with a round that is complete.
        publisher: signs it.
        number: of the round; by default the last one that is complete.

    Raises:
        ReleaseError: the index is another publisher's, or the target refuses it.
        RunError: the round is not complete, or its checkpoint is not kept any more.
        StorageError: the draft cannot be written.
    """
    recipe = run.recipe()
    index = publisher.index(recipe.name)
    before = index.pointed(recipe.publish.promoted)
    parent = before if before and index.is_usable(before) else None
    with tempfile.TemporaryDirectory(prefix=".release-", dir=run.path) as place:
        folder = Path(place) / "release"
        return publisher.publish(folder, draft(run, folder, number=number, parent=parent))
