"""The operator's word on what is asked and what leaves: fail closed, and every reason named."""

import math
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from pydantic import ValidationError

from fedlora.adapter import AdapterSpec, AdapterUpdate
from fedlora.errors import PolicyError
from fedlora.gate.metrics import ALLOWED
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe
from tests.strategies import HEADS, make_spec

BASE = "ab" * 32
BOUNDS = {"base_models": [{"digest": BASE, "name": "small"}], "privacy": {"unit": "none"}}
SPEC = make_spec(rank=8, alpha=16.0)
TEXT = """\
privacy: {unit: none}
datasets: [{path: a.jsonl, site: north}, {path: b.jsonl, site: south}]
"""
PRIVATE = "privacy={unit: example, epsilon: 4, delta: 1e-6, records: 1000}"
NO_EVALUATION = "federation.evaluate_every=0"


def recipe(*overrides: str) -> Recipe:
    return Recipe.from_yaml(TEXT, overrides=overrides)


def policy(**bounds: object) -> Policy:
    return Policy.model_validate({"bounds": {**BOUNDS, **bounds}})


def reasons(judge: Policy, asked: Recipe, spec: AdapterSpec = SPEC) -> list[str]:
    try:
        judge.require_recipe(asked, spec, site="north")
    except PolicyError as error:
        return str(error).splitlines()[1:]
    return []


def test_a_recipe_within_all_bounds_is_allowed():
    """Defaults are such that an ordinary recipe needs no more than its base and privacy named."""
    assert reasons(policy(), recipe()) == []


def test_nothing_is_allowed_that_is_not_named():
    """An empty policy, and one that names other recipes, refuse; the message says what to add."""
    digest = recipe().digest
    [line] = reasons(Policy(), recipe())
    assert line.startswith(f"  recipe {digest} is not in the policy, which has no bounds either")
    assert line.endswith("add its digest to policy.recipes to allow it")
    assert "is none of policy.recipes" in reasons(Policy(recipes=("0" * 64,)), recipe())[0]


def test_a_recipe_that_is_named_needs_no_bounds():
    """Its digest is enough, and any other key than those approved is another recipe."""
    named = Policy(recipes=(recipe("learning_rate=5").digest,))
    assert reasons(named, recipe("learning_rate=5")) == []
    assert reasons(named, recipe("learning_rate=5.1"))
    both = Policy.model_validate({"recipes": list(named.recipes), "bounds": BOUNDS})
    assert reasons(both, recipe("learning_rate=5")) == []
    assert reasons(both, recipe()) == []


BROKEN = [
    ({}, ["learning_rate=0.02"], "learning_rate: at most 0.01 is allowed, but 0.02 is asked"),
    ({"scaling": 1}, [], "scaling: at most 1 is allowed, but 2 is asked"),
    ({}, ["max_grad_norm=1e30"], "max_grad_norm: at most 10 is allowed, but 1e+30 is asked"),
    ({}, ["weight_decay=1e9"], "weight_decay: at most 1 is allowed, but 1e+09 is asked"),
    ({}, ["micro_batch_size=7"], "batch_size: 8 to 1024 is allowed, but 7 is asked"),
    ({}, ["gradient_accumulation_steps=129"], "batch_size: 8 to 1024 is allowed, but 1032 is"),
    ({}, ["federation.local_steps=201"], "local_steps: at most 200 is allowed, but 201 is asked"),
    ({}, ["federation.rounds=101"], "rounds: at most 100 is allowed, but 101 is asked"),
    ({}, ["sequence_len=4097"], "sequence_len: at most 4096 is allowed, but 4097 is asked"),
    ({}, ["val_set_size=0.999"], "val_set_size: 0.05 to 0.5 is allowed, but 0.999 is asked"),
    ({}, ["val_set_size=1e-9"], "val_set_size: 0.05 to 0.5 is allowed, but 1e-09 is asked"),
    ({}, ["train_on_inputs=true"], "train_on_inputs: false is allowed, but true is asked"),
    ({}, ["objective=dpo"], "objectives: sft is allowed, but dpo is asked"),
    ({"lora_r": 7}, [], "lora_r: at most 7 is allowed, but 8 is asked"),
    ({"seeds": [1, 2]}, ["seed=3"], "seeds: 1, 2 is allowed, but 3 is asked"),
    (
        {},
        ["federation.method=share-a"],
        "methods: product, average, freeze-a, alternate, refresh is allowed, but share-a is asked",
    ),
    ({"methods": ["freeze-a"]}, [], "methods: freeze-a is allowed, but product is asked"),
    ({"modules": ["up_proj"]}, [], "modules: up_proj is allowed, but 'model.layers.0.self_attn"),
    ({"privacy": {"unit": "example"}}, [], "privacy.unit: example is allowed, but none is asked"),
    (
        {"privacy": {"unit": "client"}},
        [],
        "privacy.unit: example or client is allowed, but none is asked",
    ),
    (
        {"privacy": {"unit": "example", "max_epsilon": 3}},
        [PRIVATE, NO_EVALUATION],
        "privacy.max_epsilon: at most 3 is allowed, but 4 is asked",
    ),
    (
        {"privacy": {"unit": "none", "max_delta": 1e-7}},
        [PRIVATE, NO_EVALUATION],
        "privacy.max_delta: at most 1e-07 is allowed, but 1e-06 is asked",
    ),
    (
        {"privacy": {"unit": "example"}},
        [
            "privacy={unit: client, epsilon: 4, delta: 1e-6, clip_norm: 1}",
            NO_EVALUATION,
        ],
        "privacy.unit: example is allowed, but client is asked",
    ),
    (
        {"base_models": [{"digest": "0" * 64, "name": "large"}]},
        [],
        f"base_models: large is allowed, but 'embedded' of digest '{BASE}' is asked",
    ),
]


@pytest.mark.parametrize(("bounds", "overrides", "reason"), BROKEN)
def test_each_bound_refuses_what_is_outside(bounds, overrides, reason):
    """One bound broken is one reason, with its key, what is allowed and what is asked."""
    [line] = reasons(policy(**bounds), recipe(*overrides))
    assert line.startswith(f"  bounds.{reason}")


@pytest.mark.parametrize(
    ("bounds", "overrides"),
    [
        ({}, ["learning_rate=0.01"]),
        ({}, ["micro_batch_size=1024"]),
        ({}, ["federation.local_steps=200"]),
        ({}, ["federation.rounds=100"]),
        ({}, ["sequence_len=4096"]),
        ({}, ["val_set_size=0.05"]),
        ({}, ["val_set_size=0.5"]),
        ({"train_on_inputs": True}, ["train_on_inputs=true"]),
        ({"objectives": ["sft", "dpo"]}, ["objective=dpo"]),
        ({"lora_r": 8}, []),
        ({"seeds": [3]}, ["seed=3"]),
        ({"modules": ["up_proj", "model.layers.0.self_attn.q_proj"]}, []),
        ({"privacy": {"unit": "example", "max_epsilon": 4, "max_delta": 1e-6}}, [PRIVATE]),
        ({"privacy": {"unit": "client"}}, [PRIVATE]),
    ],
)
def test_the_ends_of_a_bound_are_allowed(bounds, overrides):
    """At most means at most; a stronger promise than the least is welcome."""
    assert reasons(policy(**bounds), recipe(*overrides, NO_EVALUATION)) == []


def test_an_adapter_of_too_many_values_is_refused_before_it_is_read():
    """Compressed, a few bytes stand for as many as the lock says, in approved recipes too."""
    few = Policy.model_validate({"recipes": [recipe().digest], "adapter": {"parameters": 10}})
    [line] = reasons(few, recipe())
    assert line == (
        f"  adapter.parameters: at most 10 values are allowed, but {SPEC.size:,} are asked"
    )
    enough = {"bounds": BOUNDS, "adapter": {"parameters": SPEC.size}}
    assert reasons(Policy.model_validate(enough), recipe()) == []


def test_noise_that_protects_nobody_is_refused():
    """Also in a recipe that was approved by its digest."""
    asked = recipe(PRIVATE, NO_EVALUATION, "simulation.reproducible_noise=true")
    [line] = reasons(Policy(recipes=(asked.digest,)), asked)
    assert "reproducible_noise" in line


def test_all_reasons_are_named_at_once():
    """An operator who reads the refusal knows all that would have to change."""
    asked = recipe("learning_rate=1", "federation.rounds=999", "train_on_inputs=true")
    keys = [line.split(":")[0].strip() for line in reasons(policy(), asked)]
    assert keys == ["bounds.learning_rate", "bounds.rounds", "bounds.train_on_inputs"]


def test_a_module_is_named_by_its_whole_last_parts():
    """``proj`` is not ``up_proj``, and a part in the middle names nothing."""
    for name in ("proj", "mlp", "layers.0", "model.layers.0.mlp.up_pro"):
        assert "and 1 others" in reasons(policy(modules=[name]), recipe())[0]


def test_the_rank_is_bounded_wherever_it_is_told():
    """Of this site, of the global adapter, and of the specification that it came with."""
    own = Recipe.from_yaml(TEXT.replace("north}", "north, lora_r: 16}"))
    assert "lora_r: at most 8 is allowed, but 16" in reasons(policy(lora_r=8), own)[-1]
    wide = recipe("federation.publish_rank=32")
    assert "lora_r: at most 8 is allowed, but 32" in reasons(policy(lora_r=8), wide)[-1]
    spec = make_spec(rank=64, alpha=128.0)
    assert "lora_r: at most 8 is allowed, but 64" in reasons(policy(lora_r=8), recipe(), spec)[-1]


NAMED = Policy(recipes=(recipe().digest,))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (make_spec(rank=9, alpha=18.0), "adapter: rank 8 is the recipe's, but 9 is asked"),
        (replace(SPEC, rank=0), "adapter: rank 8 is the recipe's, but 0 is asked"),
        (make_spec(rank=8, alpha=17.0), "adapter: scaling 2 is the recipe's, but 2.125 is asked"),
        (replace(SPEC, tensors=SPEC.tensors[1:]), "q_proj' has not one A and one B"),
        (replace(SPEC, tensors=SPEC.tensors + SPEC.tensors[:1]), "q_proj' has not one A and one B"),
        (
            replace(SPEC, tensors=(SPEC.tensors[0].with_rank(9), *SPEC.tensors[1:])),
            "q_proj.lora_A' is not of rank 8",
        ),
    ],
)
def test_an_adapter_that_is_not_the_recipes_is_refused_even_if_it_is_named(spec, reason):
    """A bound on the recipe would say nothing of what is trained."""
    [line] = reasons(NAMED, recipe(), spec)
    assert reason in line


def test_a_recipe_that_gives_this_site_no_data_is_refused():
    """A recipe without sites deals rows out; a deployed site trains on its own alone."""
    for text in (TEXT.replace("north", "west"), "privacy: {unit: none}\ndatasets: [{path: a}]"):
        asked = Recipe.from_yaml(text)
        judge = Policy(recipes=(asked.digest,))
        [line] = reasons(judge, asked)
        assert line == "  datasets: site north is expected, but the recipe gives it no dataset"


def test_what_the_aggregator_wrote_is_cut_short_and_quoted():
    """A refusal goes to logs and terminals: it must not carry a screen full, or move a cursor."""
    name = "\x1b[2J" + "x" * 10_000
    asked = recipe(f'base_model="{name[4:]}"')
    spec = replace(make_spec(rank=8, alpha=16.0, modules={name: (3, 4)}), base_digest=name)
    text = "\n".join(reasons(policy(modules=["up_proj"]), asked, spec))
    assert len(text) < 800
    assert "\x1b" not in text


def test_a_refusal_is_short_whatever_is_wrong():
    """Thousands of tensors that do not fit are not thousands of lines."""
    wrong = [replace(SPEC.tensors[0], module=f"m{i}", shape=(9, 3)) for i in range(5000)]
    lines = reasons(NAMED, recipe(), replace(SPEC, tensors=tuple(wrong)))
    assert len(lines) == 21
    assert lines[-1] == "  and 9980 more"


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-17:30", ["08:00", "12:00", "17:29"], ["07:59", "17:30", "23:00"]),
        ("20:00-06:00", ["20:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "19:59"]),
    ],
)
def test_hours_wrap_at_midnight(hours, inside, outside):
    """The first minute is within, the last is not; the date and the time zone do not matter."""
    judge = Policy(hours=hours)
    for clock in inside:
        judge.require_now(datetime.fromisoformat(f"2026-03-01T{clock}:59"))
        judge.require_now(datetime.fromisoformat(f"2027-12-31T{clock}").replace(tzinfo=UTC))
    for clock in outside:
        with pytest.raises(PolicyError, match=f"hours: {hours} is allowed, but it is {clock}"):
            judge.require_now(datetime.fromisoformat(f"2026-03-01T{clock}"))


def test_without_hours_any_time_is_good():
    """The default is at any time."""
    Policy().require_now(datetime.fromisoformat("2026-03-01T03:00"))


def test_room_is_counted_by_round_and_by_day():
    """To the byte; both limits are named where both are broken."""
    judge = Policy.model_validate({"bytes": {"per_round": 100, "per_day": 300}})
    judge.require_room(60, sent_in_round=40, sent_today=240)
    with pytest.raises(PolicyError, match=r"bytes.per_round: 100 is allowed, but 41 were sent"):
        judge.require_room(60, sent_in_round=41, sent_today=240)
    with pytest.raises(PolicyError, match=r"bytes.per_day: 300 is allowed, but 241 were sent"):
        judge.require_room(60, sent_in_round=0, sent_today=241)
    with pytest.raises(PolicyError, match=r"(?s)per_round.*per_day"):
        judge.require_room(1000, sent_in_round=0, sent_today=0)


def update(*values: float) -> AdapterUpdate:
    spec = make_spec(rank=1, modules={"m": (1, 1)})
    return AdapterUpdate(
        spec=spec, values=torch.tensor(values, dtype=torch.float32), num_examples=1
    )


def test_an_update_is_bounded_in_norm():
    """What is not finite has no norm that is allowed."""
    judge = Policy(update_norm=5)
    judge.require_update(update(3, 4))
    for values in ((3, 4.01), (math.nan, 0), (math.inf, 0), (3e38, 3e38)):
        with pytest.raises(PolicyError, match="update_norm: at most 5 is allowed, but it is"):
            judge.require_update(update(*values))


def test_the_metrics_that_may_leave_by_default_are_those_of_the_inspection():
    """One list would be of no use if the other were shorter by mistake."""
    assert {metric.name for metric in Policy().metrics} == ALLOWED
    Policy().require_metrics({"train_loss": 2.5, "eval_loss_sum": -3.5, "eval_tokens": 7})
    Policy().require_metrics({})


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (
            {"accuracy": 1.0},
            "eval_tokens, public_loss_sum, public_tokens, ",
        ),
        ({"train_loss": 2}, "metrics.train_loss: a number of type float is allowed, but it is int"),
        ({"train_loss": True}, "type float is allowed, but it is bool"),
        ({"eval_tokens": True}, "type int is allowed, but it is bool"),
        ({"eval_tokens": 1.0}, "type int is allowed, but it is float"),
        ({"eval_tokens": "12"}, "type int is allowed, but it is str"),
        ({"eval_tokens": -1}, "metrics.eval_tokens: 0 to 1e+09 is allowed, but it is outside"),
        ({"train_loss": 1000.5}, "0 to 1000 is allowed, but it is outside"),
        ({"train_loss": math.nan}, "0 to 1000 is allowed, but it is outside"),
        ({"train_loss": math.inf}, "0 to 1000 is allowed, but it is outside"),
        ({"eval_tokens": 10**400}, "0 to 1e+09 is allowed, but it is outside"),
    ],
)
def test_a_metric_is_of_its_type_and_in_its_range(metrics, reason):
    """A float has 64 bits to hide text in; a name that is not listed has more."""
    with pytest.raises(PolicyError, match=re.escape(reason)):
        Policy().require_metrics(metrics)


def test_a_share_has_two_halves():
    """A sum of which nobody knows of how many says nothing."""
    one = {"name": "eval_exact_match_sum", "type": "int", "min": 0, "max": 9}
    with pytest.raises(ValidationError, match="eval_exact_match_sum and eval_exact_match_count"):
        Policy.model_validate({"metrics": [one]})


def test_a_number_that_only_looks_like_one_stays():
    """A class of one's own may print as a number and be anything when it is sent."""

    class Float(float):
        pass

    with pytest.raises(PolicyError, match="but it is Float"):
        Policy().require_metrics({"train_loss": Float(1)})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"recipes": ["abc"]}, "String should match"),
        ({"hours": "8-17"}, "String should match"),
        ({"hours": "24:00-06:00"}, "String should match"),
        ({"hours": "08:00-08:00"}, "both ends are the same"),
        ({"metrics": [{"name": "Loss!", "type": "int", "min": 0, "max": 1}]}, "should match"),
        ({"metrics": [{"name": "a", "type": "int", "min": 2, "max": 1}]}, "which is above max"),
        ({"metrics": [{"name": "a", "type": "int", "min": 0, "max": 1}] * 2}, "given twice"),
        ({"bounds": {"privacy": {"unit": "none"}}}, "base_models"),
        ({"bounds": {"base_models": [{"digest": BASE}]}}, "privacy"),
        ({"bounds": {**BOUNDS, "base_models": []}}, "at least 1 item"),
        ({"bounds": {**BOUNDS, "batch_size": {"min": 9, "max": 8}}}, "which is above max"),
        ({"bounds": {**BOUNDS, "val_set_size": {"min": 0.6, "max": 0.5}}}, "which is above max"),
        ({"bounds": {**BOUNDS, "objectives": ["kto"]}}, "Input should be 'sft'"),
        ({"bounds": {**BOUNDS, "methods": []}}, "at least 1 item"),
        ({"approval": "optional"}, "Input should be 'required' or 'none'"),
        ({"update_norm": math.inf}, "finite number"),
        ({"max_norm": 1}, "Extra inputs"),
    ],
)
def test_a_policy_that_is_not_clear_is_none(values, reason):
    """Nothing is guessed: the operator says again what is meant."""
    with pytest.raises(ValidationError, match=reason):
        Policy.model_validate(values)


def test_bounds_allow_no_adapter_that_the_aggregator_chose():
    """It can be a crafted one, so that the operator names the recipe that begins with it."""
    asked = recipe("init_from=adapter")
    [line] = reasons(policy(), asked)
    assert line.startswith("  init_from: an adapter that the aggregator chose can be a crafted")
    assert asked.digest in line
    assert reasons(Policy(recipes=(asked.digest,)), asked) == []


CLASSIFIES = ("objective=classification", "labels=[ham, spam]")


def test_classification_is_allowed_by_name_alone():
    """By default it is not: a head is trained whole."""
    [line] = reasons(policy(), recipe(*CLASSIFIES))
    assert line == "  bounds.objectives: sft is allowed, but classification is asked"
    allowed = policy(objectives=["sft", "classification"], modules=["q_proj", "up_proj"])
    spec = make_spec(rank=8, alpha=16.0, heads=HEADS)
    assert reasons(allowed, recipe(*CLASSIFIES), spec) == []
    assert reasons(allowed, recipe()) == []


def test_a_head_without_classification_is_refused():
    """Whatever the policy: it could be any weight of the base."""
    spec = make_spec(rank=8, alpha=16.0, heads={"model.embed_tokens.weight": (9, 9)})
    [line] = reasons(policy(), recipe(), spec)
    assert "'model.embed_tokens.weight' is a head, but nothing is classified" in line
