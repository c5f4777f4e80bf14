"""Locking a recipe to its base model."""

import pytest
from pydantic import ValidationError

from fedlora.errors import BaseModelError, RecipeError
from fedlora.lock import BaseDigests
from fedlora.recipe import Recipe
from fedlora.runtime.lock import locked, spec_of
from fedlora.training.base_model import describe
from fedlora.training.base_model.files import resolve

RANKS = ({"lora_r": 4}, {"lora_r": 4, "federation": {"publish_rank": 6}})


def recipe_of(**keys) -> Recipe:
    values = {"datasets": [{"path": "standard-library"}], "privacy": {"unit": "none"}, **keys}
    return Recipe.model_validate(values)


def lock_here() -> Recipe:
    base = describe(recipe_of())
    return locked(recipe_of(), base.spec, base.digests)


@pytest.mark.parametrize("keys", RANKS)
def test_a_locked_recipe_says_what_the_base_says(keys):
    """Without its base, from its text alone, a locked recipe gives the base's own specification."""
    recipe = recipe_of(**keys)
    base = describe(recipe)
    read = Recipe.from_yaml(locked(recipe, base.spec, base.digests).to_yaml())
    assert spec_of(read) == base.spec
    assert describe(read).spec == base.spec
    assert hash(read) == hash(locked(recipe, base.spec, base.digests))


def test_a_lock_says_what_the_base_s_parts_are():
    """Weights, tokenizer and chat template have a digest each, and the lock reads back the same."""
    here = lock_here()
    base = describe(recipe_of())
    assert base.digests == BaseDigests(
        weights_digest=here.lock.weights_digest,
        tokenizer_digest=here.lock.tokenizer_digest,
        chat_template_digest=here.lock.chat_template_digest,
    )
    assert len({here.lock.base_digest, *base.digests.model_dump().values()}) == 4
    assert Recipe.from_yaml(here.to_yaml()).lock == here.lock


def test_a_base_elsewhere_is_known_by_the_name_in_the_lock(tmp_path):
    """A site may keep the base in a folder of its own: the adapter stays the same."""
    recipe = recipe_of()
    base = describe(recipe)
    folder = tmp_path / "base"
    folder.symlink_to(resolve("embedded", None))
    here = locked(recipe, base.spec, base.digests)
    there = here.model_copy(update={"base_model": str(folder)})
    assert describe(there).spec == base.spec


def test_another_base_is_refused():
    """A recipe that is locked to another base is not played on this one."""
    other = lock_here()
    lock = other.lock.model_copy(update={"base_digest": "0" * 64})
    with pytest.raises(BaseModelError, match="locked to 000000000000"):
        describe(other.model_copy(update={"lock": lock}))


def test_an_unlocked_recipe_has_no_specification():
    """The error says which command locks it, and where."""
    with pytest.raises(RecipeError, match="fedlora recipe lock"):
        spec_of(recipe_of())


@pytest.mark.parametrize("path", ["", "../up_proj", "up_proj\n", "up\x1b[2Jproj", "a" * 201])
def test_a_module_s_path_is_one(path):
    """It comes from the aggregator, and is named in errors and logs."""
    other = lock_here().model_dump(mode="json")
    other["lock"]["modules"][0][0] = path
    with pytest.raises(ValidationError, match=r"lock\.modules"):
        Recipe.model_validate(other)
