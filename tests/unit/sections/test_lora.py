"""The keys that say what the adapter is, and what is refused there."""

import math

import pytest

from fedlora.errors import RecipeError
from fedlora.recipe import Recipe
from fedlora.sections.refused import KEYS, KINDS

LEAST = "privacy: {unit: none}\ndatasets: [{path: a}]\n"
PRIVATE = (
    "privacy: {unit: example, epsilon: 8, delta: 1e-5, records: 400}\n"
    "datasets: [{path: a}]\nfederation: {evaluate_every: 0}\n"
)


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text, source="r.yaml")
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters_are_refused_with_the_reason(kind):
    """By name and line, however it is written; and what to take instead."""
    for written in (kind, kind.upper()):
        message = refusal(f"{LEAST}adapter: {written}\n")
        assert message == (
            f"r.yaml, line 3: adapter: no adapter of the kind {written} is federated: "
            f"{KINDS[kind]}. Take lora or qlora."
        )


@pytest.mark.parametrize(
    "kind",
    ["ia3", "prompt-tuning", "prefix-tuning", "p-tuning", "bitfit", "dora", "pissa", "loftq",
     "adalora", "vera", "oft", "full"],
)  # fmt: skip
def test_the_kinds_that_fine_tuners_know_are_among_them(kind):
    """Each with a reason of its own."""
    assert len(KINDS[kind]) > 40


@pytest.mark.parametrize("key", KEYS)
def test_keys_from_elsewhere_are_refused_with_the_reason(key):
    """Not as misspelt ones."""
    message = refusal(f"{LEAST}{key}: true\n")
    assert message == f"r.yaml, line 3: {key} is no key of a recipe: {KEYS[key]}."


def test_no_key_is_both_known_and_refused():
    """Else its reason would never be shown."""
    assert not KEYS.keys() & Recipe.model_fields.keys()


@pytest.mark.parametrize(
    ("text", "kind"),
    [("", "none"), ("adapter: qlora\n", "nf4"), ("load_in_8bit: true\n", "int8")],
)
def test_how_the_base_is_held(text, kind):
    """In the words of a release's manifest."""
    assert Recipe.from_yaml(LEAST + text).quantization == kind


def test_a_base_is_held_in_four_bits_or_in_eight():
    """Both at once say nothing."""
    message = refusal(f"{LEAST}adapter: qlora\nload_in_8bit: true\n")
    assert "adapter: qlora holds the base in 4 bits, load_in_8bit in 8" in message


def test_eight_bits_are_refused_where_examples_are_private():
    """Which columns are rounded depends on all examples of a batch."""
    assert "privacy.unit: example forbids" in refusal(PRIVATE + "load_in_8bit: true\n")
    assert Recipe.from_yaml(PRIVATE + "adapter: qlora\n").quantization == "nf4"


@pytest.mark.parametrize(
    ("text", "scaling"),
    [("", 2), ("peft_use_rslora: true\n", 16 / math.sqrt(8)), ("lora_r: 64\n", 0.25)],
)
def test_the_scaling_is_that_of_the_recipes_rank(text, scaling):
    """``lora_alpha / lora_r``, or over its root; plain LoRA of that alpha scales as much."""
    recipe = Recipe.from_yaml(LEAST + text)
    assert recipe.scaling == pytest.approx(scaling)
    assert recipe.alpha / recipe.lora_r == recipe.scaling


@pytest.mark.parametrize("written", ["'['", "'(?P<n'", "'a{2,1}'"])
def test_a_broken_expression_is_refused(written):
    """With its line, and how names are written."""
    message = refusal(f"{LEAST}lora_target_modules: {written}\n")
    assert message.startswith("r.yaml, line 3: lora_target_modules: ")
    assert "is no regular expression" in message
    assert "[q_proj, v_proj]" in message
