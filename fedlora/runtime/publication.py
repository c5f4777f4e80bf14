"""Publication while a run is played: draft, sign, publish, judge; it never ends a run.

Each release gets the alias ``candidate``, and the recipe's ``publish.promoted`` if the gate lets it
pass. What became of it is a line of the run's ``releases.jsonl``.
"""

import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlora import atomic
from fedlora.errors import FedloraError
from fedlora.release.gates import judge
from fedlora.release.manifest import Evaluation, Manifest, Origin
from fedlora.release.publisher import Publisher
from fedlora.release.source import manifest_of
from fedlora.runtime.events import (
    Event,
    Observer,
    PublicationFailed,
    ReleasePublished,
    RoundFinished,
)
from fedlora.runtime.publishing import draft
from fedlora.runtime.run_folder import RunFolder

CANDIDATE = "candidate"
"""The alias of each release that a run publishes."""
_DRAFT = ".release-"
"""What the names of drafts in a run's folder begin with."""


@dataclass(frozen=True)
class Publication:
    """Publishes a run's releases.

    Guarantees:
        - Whatever fails is told, and the run goes on; with the next release it is tried again.
        - A round whose release is on record is not published again.

    Args:
        run: what is played.
        publisher: to a store or a registry.
        observe: is told what became of each release.
    """

    run: RunFolder
    publisher: Publisher
    observe: Observer

    def observing(self, event: Event) -> None:
        """Pass an event on; publish, if it says that a round with a release is complete."""
        self.observe(event)
        if isinstance(event, RoundFinished):
            self.publish(event.record["round"])

    def begin(self) -> Observer:
        """Publish what the last complete round lacks since a stop; return what is to be told."""
        for left in self.run.path.glob(f"{_DRAFT}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
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
        recipe = self.run.recipe()
        gate, index = recipe.publish, self.publisher.index(recipe.name)
        manifest = publish_run(self.run, self.publisher, number=number)
        reason = f"round {number} of {manifest.origin.rounds} of run {self.run.name}"
        self._move(manifest, CANDIDATE, expected=index.pointed(CANDIDATE), reason=reason)
        held_back = tuple(judge(manifest.evaluation, self._parents(manifest), gate))
        if not held_back:  # it was judged against what the alias pointed to
            expected, reason = index.pointed(gate.promoted), f"the gate holds: {reason}"
            self._move(manifest, gate.promoted, expected=expected, reason=reason)
        return ReleasePublished(
            round=number,
            release=manifest.release,
            promoted=None if held_back else gate.promoted,
            held_back=held_back,
        )

    def _move(self, manifest: Manifest, alias: str, *, expected: str | None, reason: str) -> None:
        if manifest.release != expected:
            self.publisher.move(
                manifest.name, alias, manifest.release, expected=expected, reason=reason
            )

    def _parents(self, manifest: Manifest) -> Evaluation | None:
        """Return the evaluation of the release that another follows, if it follows one."""
        parent = manifest.origin.parent
        if parent is None:
            return None
        source, key = self.publisher.target, self.publisher.key
        return manifest_of(source, parent, name=manifest.name, key=key)[0].evaluation

    def _published(self) -> set[int]:
        return {json.loads(line)["round"] for line in self._lines()}

    def _keep(self, published: ReleasePublished) -> None:
        lines = [*self._lines(), json.dumps(asdict(published))]
        atomic.write_file(self.run.releases, "\n".join(lines) + "\n")

    def _lines(self) -> list[str]:
        path = self.run.releases
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def publish_run(run: RunFolder, publisher: Publisher, *, number: int | None = None) -> Manifest:
    """Draft, sign and publish a run's release; its parent is what the promoted alias points to.

    What was published already stays as it is: another parent would make another release of it.

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
    with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=run.path) as place:
        folder = Path(place) / "release"
        manifest = draft(run, folder, number=number, parent=parent)
        for known in filter(index.is_usable, reversed(index.in_order)):
            there, _ = manifest_of(publisher.target, known, name=recipe.name, key=publisher.key)
            if _is_same(there.origin, manifest.origin):
                return there
        return publisher.publish(folder, manifest).manifest


def _is_same(one: Origin, other: Origin) -> bool:
    """Tell whether two releases are of the same round of the same run."""
    return (one.run, one.round, one.recipe) == (other.run, other.round, other.recipe)
