"""Base models and batches for the tests of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel

RecipeOf = Callable[..., Recipe]


@dataclass(frozen=True)
class Tokens:
    """A batch: the least that training asks of one."""

    input_ids: Tensor
    labels: Tensor

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return int((self.labels[:, 1:] != -100).sum())


@pytest.fixture(scope="session")
def recipe_of() -> RecipeOf:
    """Return a maker of recipes that compute in float32 on the CPU unless told otherwise."""

    def make(**keys: Any) -> Recipe:
        keys = {"bf16": False, "device": "cpu", "learning_rate": 1e-2, "warmup_ratio": 0} | keys
        return Recipe.model_validate(
            {"datasets": [{"path": "standard-library"}], "privacy": {"unit": "none"}, **keys}
        )

    return make


@pytest.fixture(scope="session")
def base(recipe_of: RecipeOf) -> BaseModel:
    """Return the embedded base model in float32; each test puts its own adapter on it."""
    return BaseModel.load(recipe_of())


@pytest.fixture(scope="session")
def base_nf4(recipe_of: RecipeOf) -> BaseModel:
    """Return the embedded base model in NF4, computing in float32."""
    return BaseModel.load(recipe_of(adapter="qlora"))


@pytest.fixture
def generator() -> torch.Generator:
    """Return a seeded source of randomness."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def adapter(base: BaseModel, generator: torch.Generator) -> AdapterState:
    """Return an adapter that changes the base: every value of A and B is random."""
    values = 0.05 * torch.randn(base.spec.size, generator=generator)
    return AdapterState(spec=base.spec, values=values)


@pytest.fixture
def batch(generator: torch.Generator) -> Tokens:
    """Return four examples of uneven length, each with a prompt that is not supervised."""
    return random_batch(generator, lengths=(12, 5, 16, 9))


def random_batch(generator: torch.Generator, *, lengths: tuple[int, ...]) -> Tokens:
    """Return random tokens; each example's first third is its prompt."""
    input_ids = torch.randint(5, 2000, (len(lengths), max(lengths)), generator=generator)
    labels = input_ids.clone()
    for row, length in enumerate(lengths):
        input_ids[row, length:] = 1
        labels[row, length:] = -100
        labels[row, : 1 + length // 3] = -100
    return Tokens(input_ids, labels)
