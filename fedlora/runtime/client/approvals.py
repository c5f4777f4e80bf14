"""A person's yes to each run: asked for by the gate, given on the site's own command line.

::

    approvals/requests/RUN.json    what was asked last: recipe, adapter and when; the gate's
    approvals/answers/RUN.json     who said yes or no, when and to which recipe; the operator's

Neither side writes the other's file, so that an answer is to what the operator was shown.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from fedlora import atomic
from fedlora.adapter import AdapterSpec
from fedlora.errors import FedloraError, NotYetError, PolicyError, RunError
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe

MAX_WAITING = 100
"""Runs that may wait for an answer at once: an aggregator cannot fill the disk with them."""

State = Literal["waits", "approved", "refused"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the aggregator asks a site to take part in."""

    run: str
    recipe: Recipe
    spec: AdapterSpec
    """Of the global adapter."""
    asked: str
    """When it came first, in UTC as ISO 8601 writes it."""

    def to_json(self) -> str:
        """Return what ``from_json`` reads."""
        texts = {"recipe": self.recipe.to_yaml(), "spec": self.spec.to_json()}
        return json.dumps({"run": self.run, "asked": self.asked, **texts})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        facts = json.loads(text)
        recipe = Recipe.from_yaml(facts["recipe"])
        spec = AdapterSpec.from_json(facts["spec"])
        return cls(run=facts["run"], recipe=recipe, spec=spec, asked=facts["asked"])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an operator said, and to what."""

    recipe_digest: str
    yes: bool
    who: str
    """The operator's user name on this host."""
    when: str
    """In UTC as ISO 8601 writes it."""


@dataclass(frozen=True)
class Approvals:
    """Requests and answers of a site.

    Guarantees:
        A yes is to one recipe of one run. The last answer counts, and those before it are kept.
        Files appear whole or not at all.
    """

    folder: Path

    def require(self, run: str, recipe: Recipe, *, spec: AdapterSpec, policy: Policy) -> None:
        """Do nothing if a person said yes to this recipe in this run, or nobody need.

        If nobody was asked yet, the request is kept for ``fedlora client approve``.

        Raises:
            NotYetError: the answer is missing.
            PolicyError: it is no.
            RunError: a file cannot be read.
            StorageError: the request cannot be written.
        """
        if policy.approval == "none":
            return
        state = self._state(run, recipe.digest)
        if state == "refused":
            raise PolicyError(f"The site's operator refused run {run}.")
        if state == "waits":
            known = self.request(run)
            if known is None or known.recipe.digest != recipe.digest:
                self._require_room()
                request = Request(run=run, recipe=recipe, spec=spec, asked=_now())
                atomic.write_file(self._request(run), request.to_json())
            raise NotYetError(f"Run {run} waits for fedlora client approve {run}.")

    def request(self, run: str) -> Request | None:
        """Return what was asked last in a run; none if nothing was.

        Raises:
            RunError: it cannot be read.
        """
        path = self._request(run)
        text = _text(path)
        try:
            return Request.from_json(text) if text else None
        except (FedloraError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from None

    def requests(self) -> list[tuple[Request, State]]:
        """Return what was asked, with where it stands, in the order of asking.

        Raises:
            RunError: a file cannot be read.
        """
        found = [self.request(path.stem) for path in (self.folder / "requests").glob("*.json")]
        known = sorted(filter(None, found), key=lambda request: (request.asked, request.run))
        return [(request, self._state(request.run, request.recipe.digest)) for request in known]

    def answers(self, run: str) -> list[Answer]:
        """Return what was answered to a run, in order.

        Raises:
            RunError: it cannot be read.
        """
        path = self._answers(run)
        text = _text(path)
        try:
            return [Answer(**facts) for facts in json.loads(text)] if text else []
        except (ValueError, TypeError) as error:
            raise _damaged(path, error) from None

    def answer(self, request: Request, *, yes: bool, who: str) -> Answer:
        """Record an operator's answer to a request, as it was shown.

        Raises:
            RunError: earlier answers cannot be read.
            StorageError: it cannot be written.
        """
        digest = request.recipe.digest
        answer = Answer(recipe_digest=digest, yes=yes, who=who, when=_now())
        given: list[dict[str, Any]] = [
            asdict(each) for each in (*self.answers(request.run), answer)
        ]
        atomic.write_file(self._answers(request.run), json.dumps(given, indent=1))
        return answer

    def _state(self, run: str, recipe_digest: str) -> State:
        given = [each for each in self.answers(run) if each.recipe_digest == recipe_digest]
        if not given:
            return "waits"
        return "approved" if given[-1].yes is True else "refused"

    def _require_room(self) -> None:
        waiting = sum(state == "waits" for _, state in self.requests())
        if waiting >= MAX_WAITING:
            raise PolicyError(
                f"{waiting} runs wait for an answer already, and no more are kept: see fedlora "
                "client runs, and approve or refuse them."
            )

    def _request(self, run: str) -> Path:
        return self.folder / "requests" / f"{run}.json"

    def _answers(self, run: str) -> Path:
        return self.folder / "answers" / f"{run}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _text(path: Path) -> str:
    """Return a file's text; nothing if it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path}: what was asked or answered cannot be read ({error}). Put the file back from a "
        "backup, or delete it: the aggregator asks again, and so must the operator be."
    )
