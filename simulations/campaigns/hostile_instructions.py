"""Instructions that a hostile aggregator could send, by what they try."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Message, RecordDict

from fedlora.adapter import AdapterState
from fedlora.recipe import Recipe
from fedlora.runtime.lock import spec_of
from simulations.campaigns.gated_site import GatedSite

Send = Callable[[GatedSite], Message]
Attempts = Mapping[str, Send]


def asking(*overrides: str, **instruction: Any) -> Send:  # noqa: ANN401 - as the instruction's
    """Return what asks for the site's recipe with some keys changed."""

    def send(site: GatedSite) -> Message:
        changed = Recipe.from_yaml(site.recipe.to_yaml(), overrides=overrides)
        return site.instruction(recipe=changed, **instruction)

    return send


def recipes() -> Attempts:
    """Return recipes that a policy of bounds does not allow, without privacy."""
    return {
        "another base's digest": _locked(base_digest="0" * 64),
        "a learning rate of 1": asking("learning_rate=1"),
        "batches of one example": asking("micro_batch_size=1"),
        "a million steps": asking("federation.local_steps=1000000"),
        "a million rounds": asking("federation.rounds=1000000"),
        "prompts, to be learned too": asking("train_on_inputs=true"),
        "sequences of a million tokens": asking("sequence_len=1000000"),
        "training on one row alone": asking("val_set_size=0.999"),
        "evaluating one row alone": asking("val_set_size=1e-9"),
        "rank 512": asking("lora_r=512", "lora_alpha=1024"),
        "rank 512 for this site alone": _dataset(lora_r=512),
        "a global rank of 512": asking("federation.publish_rank=512"),
        "rank 0": _text("lora_r: 8", "lora_r: 0"),
        "a module that the policy does not name": _module("model.layers.0.mlp.up_proj", 512, 192),
        "a module twice": _module("model.layers.0.self_attn.q_proj", 192, 192),
        "a module named to move a cursor": _text(".q_proj", ".q_\u202eproj"),
        "an adapter of a trillion values": _module("huge.q_proj", 2**37, 2**3),
        "a method that keeps a factor here": asking("federation.method=share-a"),
        "a recipe that is not locked": _unlocked("embedded"),
        "a base to download, and no lock": _unlocked("evil/model"),
        "a base at a path, and no lock": _unlocked("/etc"),
        "a base model by a path": asking("base_model=/etc", run="etc"),
        "a base model to download": asking("base_model=evil/model", run="evil"),
        "a recipe without this site": _text("site: north", "site: east"),
        "a site named ../../credentials": _text("site: south", "site: ../../credentials"),
        "a key that is unknown": _text("seed: 0", "seed: 0\npickle: 1"),
        "a recipe of 64 megabytes": _appended("#" * 2**26),
        "brackets without end": _appended("x: " + "[" * 100_000),
        "aliases that stand for gigabytes": _appended(_bomb()),
        "a number to the base of 60": _appended("x: 1" + ":1" * 100_000),
        "a Python object in YAML": _appended("x: !!python/object/apply:os.system [true]"),
        "a recipe that is no YAML": _appended("\x00"),
    }


def private_recipes() -> Attempts:
    """Return what promises less than a policy that wants examples protected."""
    return {
        "no privacy": asking("privacy={unit: none}"),
        "the privacy of clients alone": asking(
            "privacy={unit: client, epsilon: 8, delta: 1e-3, clip_norm: 1}",
            "federation.weighting=uniform",
        ),
        "ε 50": asking("privacy.epsilon=50"),
        "a larger δ": asking("privacy.delta=4e-3"),
        "noise that the seed gives": asking("simulation.reproducible_noise=true"),
        "evaluations without noise": _text("evaluate_every: 0", "evaluate_every: 1"),
    }


def weak_noise() -> Attempts:
    """Return what only the accountant, beside the trainer, sees."""
    weak = ("federation.evaluate_every=1", "privacy.evaluation_noise=0.01")
    return {"evaluations with next to no noise": asking(*weak, run="weak")}


def runs() -> Attempts:
    """Return names of runs that are to lead elsewhere."""
    names = ("../../credentials", "a/b", "/etc/passwd", "..", "", "a\0b", "a\n", "é", "a" * 129)
    return {f"a run named {name[:20]!r}": _run(name) for name in names}


def adapters(*, after: AdapterState) -> Attempts:
    """Return adapters that are crafted, in a run of which the site has seen ``after`` round 1."""

    def of_round(number: int, state: AdapterState) -> Send:
        return lambda site: site.instruction(number=number, state=state)

    nan, infinite = after.values.clone(), after.values.clone()
    nan[7], infinite[7] = torch.nan, torch.inf
    return {
        "a planted A": lambda site: site.instruction(run="new", state=planted(site.initial())),
        "an initial B that is not zero": lambda site: site.instruction(run="new", state=after),
        "an adapter times 100": of_round(3, scaled(after, 100)),
        "values that are not numbers": of_round(3, replace(after, values=nan)),
        "values without bound": of_round(3, replace(after, values=infinite)),
        "another adapter for round 2 (a fork)": of_round(2, scaled(after, 1.01)),
        "an evaluation of another adapter (a fork)": lambda site: site.instruction(
            "evaluate", number=1, state=scaled(after, 0.99)
        ),
        "growth just above the bound": of_round(3, scaled(after, 3.01)),
        "another recipe in the same run": asking("learning_rate=5e-4", number=2, state=after),
        "the same round on another base": lambda site: _other_base(site, after),
    }


def unplanned() -> Attempts:
    """Return rounds that the recipe does not plan."""
    quiet = "federation.evaluate_every=0"
    return {
        "a round beyond the plan": lambda site: site.instruction(number=4),
        "training in round 0": lambda site: site.instruction(number=0),
        "the last round that there can be": lambda site: site.instruction(number=2**32 - 1),
        "a negative round": lambda site: site.instruction(change=task(round=-1)),
        "a truth value for a round": lambda site: site.instruction(change=task(round=True)),
        "an evaluation that is not planned": asking(quiet, kind="evaluate", run="quiet", number=1),
    }


def scaled(state: AdapterState, factor: float) -> AdapterState:
    """Return an adapter whose products are ``factor`` times as large."""
    result = replace(state, values=state.values.clone())
    for tensor, values in result.factors():
        if tensor.factor == "B":
            values.mul_(factor)
    return result


def planted(state: AdapterState) -> AdapterState:
    """Return an adapter with an A of the aggregator's choice."""
    result = replace(state, values=state.values.clone())
    next(values for tensor, values in result.factors() if tensor.factor == "A")[0, 0] += 1e-6
    return result


def _locked(**changes: object) -> Send:
    def send(site: GatedSite) -> Message:
        values = site.recipe.model_dump(mode="json")
        values["lock"] |= changes
        return site.instruction(recipe=Recipe.model_validate(values))

    return send


def _unlocked(base: str) -> Send:
    """Return what leaves it to the site to find out what the base is."""

    def send(site: GatedSite) -> Message:
        changes: dict[str, object] = {"lock": None, "base_model": base}
        return site.instruction(text=site.recipe.model_copy(update=changes).to_yaml())

    return send


def _module(name: str, rows: int, columns: int) -> Send:
    """Return what adapts one module more; its values are not even there."""

    def send(site: GatedSite) -> Message:
        values = site.recipe.model_dump(mode="json")
        values["lock"]["modules"].append([name, rows, columns])
        text = Recipe.model_validate(values).to_yaml()
        return site.instruction(text=text)

    return send


def _dataset(**changes: object) -> Send:
    def send(site: GatedSite) -> Message:
        values = site.recipe.model_dump(mode="json")
        values["datasets"][0] |= changes
        recipe = Recipe.model_validate(values)
        return site.instruction(text=recipe.to_yaml())

    return send


def _text(old: str, new: str) -> Send:
    def send(site: GatedSite) -> Message:
        text = site.recipe.to_yaml()
        if old not in text:
            raise AssertionError(f"{old!r} is not in the recipe")
        return site.instruction(text=text.replace(old, new))

    return send


def _appended(line: str) -> Send:
    return lambda site: site.instruction(text=f"{site.recipe.to_yaml()}{line}\n")


def _bomb() -> str:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    return "\n".join(lines)


def _run(name: str) -> Send:
    return lambda site: site.instruction(change=task(run=name))


def task(**changes: Any) -> Callable[[RecordDict], object]:  # noqa: ANN401 - as a record's
    """Return what changes the task of an instruction."""
    return lambda content: content.config_records["task"].update(changes)


def _other_base(site: GatedSite, state: AdapterState) -> Message:
    values = site.recipe.model_dump(mode="json")
    values["lock"]["base_digest"] = "1" * 64
    recipe = Recipe.model_validate(values)
    other = replace(state, spec=spec_of(recipe))
    return site.instruction(recipe=recipe, number=2, state=other)
