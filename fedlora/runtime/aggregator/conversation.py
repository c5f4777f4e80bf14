"""Questions to a base model with and without an adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlora.adapter import AdapterSpec
from fedlora.errors import AdapterError
from fedlora.peft_folder import read_peft_folder
from fedlora.recipe import Recipe
from fedlora.runtime.run_folder import RunFolder
from fedlora.sections import STANDARD_LIBRARY
from fedlora.training.base_model import BaseModel, generate


@dataclass(frozen=True)
class Conversation:
    """A base model with a published adapter on it."""

    base: BaseModel

    @classmethod
    def open(cls, folder: Path, *, base_model: str | None = None) -> Self:
        """Load the adapter of a run or release folder, and its base.

        Args:
            folder: a run folder, or a folder in PEFT's format.
            base_model: where the base is, when it is not where the release says.

        Raises:
            AdapterError: there is no adapter, or it does not fit the base.
            BaseModelError: the base cannot be loaded.
        """
        if (folder / "recipe.yaml").is_file():
            run = RunFolder.open(folder)
            _require_one_adapter(run)
            state, recipe = read_peft_folder(run.release), run.recipe()
        else:
            state = read_peft_folder(folder)
            recipe = _recipe_of(state.spec)
        base = BaseModel.load(
            recipe.model_copy(update={"base_model": base_model or recipe.base_model})
        )
        base.load_adapter(state.arranged_as(base.spec))
        return cls(base)

    def ask(self, question: str, *, max_new_tokens: int) -> tuple[str, str]:
        """Return what the base and what the base with the adapter answer, greedily."""
        with self.base.adapter_off():
            plain = generate(self.base, question, max_new_tokens=max_new_tokens)
        return plain, generate(self.base, question, max_new_tokens=max_new_tokens)


def _require_one_adapter(run: RunFolder) -> None:
    if run.recipe().federation.facts.personal and run.is_published:
        folders = ", ".join(sorted(map(str, run.release.iterdir())))
        raise AdapterError(
            f"{run.release}: each site has its own adapter. Name the folder of one: {folders}."
        )


def _recipe_of(spec: AdapterSpec) -> Recipe:
    """Return a recipe that loads the adapter's base; what it would train on is not asked."""
    return Recipe.model_validate(
        {
            "base_model": spec.base_model,
            "base_model_revision": spec.base_model_revision,
            "lora_r": spec.rank,
            "lora_alpha": spec.alpha,
            "lora_target_modules": spec.target_modules,
            "datasets": [{"path": STANDARD_LIBRARY}],
            "privacy": {"unit": "none"},
        }
    )
