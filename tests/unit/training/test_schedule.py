"""Learning rates over a whole training."""

import pytest
import torch
from transformers import get_scheduler

from fedlora.recipe import Recipe
from fedlora.training.schedule import learning_rate


def rates(**keys):
    """Return the rates of ten steps of a learning rate of 1."""
    named = {"datasets": [{"path": "x"}], "privacy": {"unit": "none"}, "learning_rate": 1.0}
    recipe = Recipe.model_validate({**named, **keys})
    return [learning_rate(recipe, step, total_steps=10) for step in range(10)]


def test_warm_up_rises_linearly_to_one_and_its_first_step_already_trains():
    """With four of ten steps of warm-up the factors are quarters, however they are asked for."""
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert rates(warmup_ratio=0.4, lr_scheduler="constant") == expected
    assert rates(warmup_steps=4, lr_scheduler="constant") == expected
    assert rates(warmup_steps=0, lr_scheduler="constant") == [1] * 10


def test_linear_falls_in_equal_steps_towards_zero():
    """Without warm-up step k of ten has the factor 1 - k / 10."""
    found = rates(warmup_ratio=0, lr_scheduler="linear")
    assert found == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_cosine_is_one_half_in_the_middle_of_what_follows_the_warm_up():
    """Two of ten steps warm up; the fall begins at one at step 2 and crosses one half at step 6."""
    found = rates(warmup_ratio=0.2, lr_scheduler="cosine")
    assert found[:3] == [0.5, 1, 1]
    assert found[6] == pytest.approx(0.5)
    assert found[2:] == sorted(found[2:], reverse=True)
    assert found[-1] > 0


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(
    ("keys", "name", "options"),
    [
        ({"lr_scheduler": "cosine"}, "cosine", {}),
        ({"lr_scheduler": "linear"}, "linear", {}),
        ({"lr_scheduler": "constant"}, "constant_with_warmup", {}),
        (
            {"lr_scheduler": "cosine", "cosine_min_lr_ratio": 0.1},
            "cosine_with_min_lr",
            {"min_lr_rate": 0.1},
        ),
    ],
)
def test_shapes_are_those_of_transformers(warmup, keys, name, options):
    """Equal after the warm-up; within it, ours is a step ahead of theirs, which begins at zero."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=10,
        scheduler_specific_kwargs=options,
    )
    expected = []
    for _ in range(10):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    found = rates(warmup_steps=warmup, **keys)
    assert found[warmup:] == pytest.approx(expected[warmup:])
    assert found[:warmup] == pytest.approx(expected[1 : warmup + 1])
