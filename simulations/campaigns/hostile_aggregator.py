"""A hostile aggregator before a real gate: does any of its instructions do what it must not?

``attempts()`` puts instructions before the ``Gatekeeper`` of a site that has an evidence log, a
chain, a policy, approvals, a privacy ledger and a trainer of its own. An attempt is blocked if an
error of the closed list leaves in place of an answer, the trainer was not asked, and the evidence
log tells that the instruction came and was refused. Honest instructions pass before and after.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedlora import products
from fedlora.adapter import AdapterState
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.lock import locked
from fedlora.runtime.site.budget import site_ledger
from fedlora.sections import EMBEDDED
from fedlora.training.base_model import describe
from fedlora.training.base_model.files import resolve
from simulations.campaigns import hostile_instructions, hostile_messages
from simulations.campaigns.gated_site import SITE, GatedSite, gated
from simulations.campaigns.hostile_instructions import Attempts, asking, planted, scaled
from simulations.campaigns.hostile_judgement import honest, judged
from simulations.campaigns.hostile_trainer import Outcome

_RECIPE = """\
name: hostile
sequence_len: 64
learning_rate: 1e-3
bf16: false
lora_target_modules: [q_proj]
wire: {codec: fp32}
datasets: [{path: rows.jsonl, site: north}, {path: rows.jsonl, site: south}]
federation: {rounds: 3, local_steps: 2}
privacy: {unit: none}
"""
_PRIVATE = (
    "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20}",
    "federation={rounds: 3, local_steps: 2, evaluate_every: 0}",
)
_NORM = 0.5
"""Spectral norm of an honest adapter after a round."""


def attempts(*, seed: int = 0) -> list[Outcome]:
    """Try everything once.

    Raises:
        AssertionError: what an honest aggregator asks is refused too, so that nothing is shown.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *_without_privacy(folder / "plain", seed),
            *_private(folder / "private", seed),
            *_approval(folder / "approval", seed),
            *_hours(folder / "hours", seed),
            *_bytes(folder / "bytes", seed),
            *_other_base(folder / "base", seed),
        ]


def recipe_of(*overrides: str, seed: int = 0) -> Recipe:
    """Return a locked recipe for runs of a second."""
    recipe = Recipe.from_yaml(_RECIPE, overrides=[f"seed={seed}", *overrides])
    base = describe(recipe)
    return locked(recipe, base.spec, base.digests)


def policy_of(recipe: Recipe, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - a policy's keys
    """Return a policy of bounds that are just wide enough for a recipe; nobody is asked."""
    assert recipe.lock  # noqa: S101 - recipe_of locks
    bounds = {
        "base_models": [{"digest": recipe.lock.base_digest}],
        "privacy": {"unit": recipe.privacy.unit, "max_delta": 1e-3},
        "lora_r": 8,
        "modules": ["q_proj"],
    }
    adapter = {"spectral_norm": 5, "growth_per_round": 1}
    return {"bounds": bounds, "approval": "none", "adapter": adapter} | changes


def after_a_round(site: GatedSite) -> AdapterState:
    """Return an adapter as an honest aggregator could have it after the first round."""
    state = site.initial()
    for tensor, values in state.factors():
        if tensor.factor == "B":
            values.fill_(1)
    return scaled(state, _NORM / max(products.spectral_norms(state).values()))


def _all(site: GatedSite, tried: Attempts) -> Iterator[Outcome]:
    for name, send in tried.items():
        yield judged(site, name, send(site))


def _without_privacy(folder: Path, seed: int) -> Iterator[Outcome]:
    recipe = recipe_of(seed=seed)
    with gated(folder, recipe, policy_of(recipe)) as site:
        first = site.instruction()
        answer = honest(site, first)
        yield _replayed(site, "an instruction again", first, answer=answer)
        yield _replayed(site, "… its recipe written otherwise", _respelled(site), answer=answer)
        yield from _all(site, hostile_instructions.recipes())
        yield from _all(site, hostile_instructions.runs())
        yield from _all(site, hostile_instructions.unplanned())
        yield from _all(site, hostile_messages.payloads())
        yield from _all(site, hostile_messages.messages())
        yield from _all(site, hostile_messages.receipts())
        yield _template(site, folder.parent / "template")
        yield from _paths(site)
        second = after_a_round(site)
        honest(site, site.instruction(number=2, state=second))
        yield from _all(site, hostile_instructions.adapters(after=second))
        yield from _rolled_back(site, second)
        yield from _frozen(site)
        yield _misfit(site)
        honest(site, site.instruction(number=3, state=scaled(second, 2)))


def _replayed(site: GatedSite, name: str, message: Message, *, answer: Message) -> Outcome:
    """Ask again what was answered: the very same answer leaves, and nobody works for it."""
    asked = len(site.trainer.recipes)
    again = honest(site, message)
    same = records.digests_of(again.content) == records.digests_of(answer.content)
    blocked = same and len(site.trainer.recipes) == asked
    by = "the outbox: the same bytes leave again, and nothing was computed"
    return Outcome(name=name, tried="to get a second answer", blocked=blocked, by=by)


def _respelled(site: GatedSite) -> Message:
    return site.instruction(text=f"# please\n{site.recipe.to_yaml()}")


def _paths(site: GatedSite) -> Iterator[Outcome]:
    """Name files of the site's as data, and a run as its ledger."""
    for number, path in enumerate(("/etc/shadow", "../../credentials", "~/.ssh")):
        values = site.recipe.model_dump(mode="json")
        values["datasets"][0]["path"] = path
        message = site.instruction(recipe=Recipe.model_validate(values), run=f"path-{number}")
        honest(site, message)
        blocked = path not in site.trainer.recipes[-1]
        by = "the trainer is given the operator's own path"
        yield Outcome(name=f"data at {path}", tried="a path", blocked=blocked, by=by)
    honest(site, site.instruction(run="ledger.sqlite"))
    whole = site_ledger(SITE).head().count == 0
    by = "folders of runs are in one of their own"
    yield Outcome(name="a run named ledger.sqlite", tried="a path", blocked=whole, by=by)


def _rolled_back(site: GatedSite, second: AdapterState) -> Iterator[Outcome]:
    states = (site.initial(), second, scaled(second, 1.5), scaled(second, 2))
    for number, state in enumerate(states):
        honest(site, site.instruction("evaluate", run="long", number=number, state=state))
    yield judged(site, "an old adapter (a rollback)", site.instruction(run="long"))


def _frozen(site: GatedSite) -> Iterator[Outcome]:
    """Plant an A where the method never changes it."""
    frozen = Recipe.from_yaml(
        site.recipe.to_yaml(), overrides=["federation.method=freeze-a", "federation.rounds=2"]
    )
    honest(site, site.instruction(recipe=frozen, run="frozen"))
    crafted = planted(after_a_round(site))
    message = site.instruction(recipe=frozen, run="frozen", number=2, state=crafted)
    yield judged(site, "a planted A later, where it is frozen", message)


def _misfit(site: GatedSite) -> Outcome:
    """Lock a module to a shape that the base does not have: only who has the base knows."""
    values = site.recipe.model_dump(mode="json")
    values["lock"]["modules"][0][1] += 1
    message = site.instruction(recipe=Recipe.model_validate(values), run="misfit")
    return judged(site, "a shape that the base does not have", message, asks_trainer=True)


def _template(site: GatedSite, folder: Path) -> Outcome:
    """Ask for the same weights under another chat template."""
    name = "the base with another chat template"
    other = _relocked(site.recipe, _other_template(folder))
    return judged(site, name, site.instruction(recipe=other))


def _other_template(folder: Path) -> Path:
    shutil.copytree(resolve(EMBEDDED, None), folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    return folder


def _relocked(recipe: Recipe, base: Path) -> Recipe:
    there = recipe.model_copy(update={"lock": None, "base_model": str(base)})
    facts = describe(there)
    return locked(recipe, facts.spec, facts.digests)


def _private(folder: Path, seed: int) -> Iterator[Outcome]:
    recipe = recipe_of(*_PRIVATE, seed=seed)
    with gated(folder, recipe, policy_of(recipe)) as site:
        first = site.instruction()
        answer = honest(site, first)
        spent = site_ledger(SITE).head()
        yield from _all(site, hostile_instructions.private_recipes())
        yield from _all(site, hostile_messages.ledger_heads())
        for name, send in hostile_instructions.weak_noise().items():
            yield judged(site, name, send(site), asks_trainer=True)
        yield _replayed(
            site, "a private answer again, with fresh noise", site.instruction(), answer=answer
        )
        free = site_ledger(SITE).head() == spent
        by = "its ledger has no new row"
        yield Outcome(name="ε, by all of this", tried="to spend", blocked=free, by=by)
        honest(site, site.instruction(number=2, state=after_a_round(site)))


def _approval(folder: Path, seed: int) -> Iterator[Outcome]:
    recipe = recipe_of(seed=seed)
    with gated(folder, recipe, policy_of(recipe, approval="required")) as site:
        approvals, other = site.gate.approvals, asking("learning_rate=2e-3")
        yield judged(site, "a run that nobody has approved", site.instruction())
        request = approvals.request("run")
        assert request  # noqa: S101 - it was kept
        approvals.answer(request, yes=True, who="ada")
        honest(site, site.instruction())
        yield judged(site, "another recipe than was approved", other(site))
        yield judged(site, "an approved recipe in another run", site.instruction(run="other"))
        honest(site, site.instruction(number=2, state=after_a_round(site)))
        approvals.answer(request, yes=False, who="ada")
        yield judged(site, "a run whose yes was taken back", site.instruction())


def _hours(folder: Path, seed: int) -> Iterator[Outcome]:
    recipe, now = recipe_of(seed=seed), datetime.now().astimezone()
    later, earlier = (f"{now + timedelta(hours=n):%H:%M}" for n in (2, -2))
    with gated(folder, recipe, policy_of(recipe, hours=f"{earlier}-{later}")) as site:
        honest(site, site.instruction())
    with gated(folder, recipe, policy_of(recipe, hours=f"{later}-{earlier}")) as site:
        yield judged(site, "work outside the site's hours", site.instruction())


def _bytes(folder: Path, seed: int) -> Iterator[Outcome]:
    """Let more leave than may: known once the answer is there, which then stays."""
    recipe = recipe_of(seed=seed)
    size = 4 * describe(recipe).spec.size
    limits: Mapping[str, Mapping[str, int]] = {
        "more bytes in a round than may leave": {"per_round": size},
        "more bytes in a day than may leave": {"per_day": 5 * size // 2},
    }
    for name, limit in limits.items():
        with gated(folder / next(iter(limit)), recipe, policy_of(recipe, bytes=limit)) as site:
            runs = ["run", "other"] if "per_day" in limit else []
            for run in runs:
                honest(site, site.instruction(run=run))
            message = site.instruction(run="third")
            yield judged(site, name, message, asks_trainer=True)


def _other_base(folder: Path, seed: int) -> Iterator[Outcome]:
    """Claim the digest that is allowed, where the site's own base is another."""
    recipe = recipe_of(seed=seed)
    base = _other_template(folder.parent / "own")
    with gated(folder, recipe, policy_of(recipe), base_model=str(base)) as site:
        message = site.instruction()
        yield judged(site, "an allowed digest, claimed of another base", message, asks_trainer=True)
