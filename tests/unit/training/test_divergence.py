"""When a training is given up."""

import math

import pytest

from fedlora.adapter import AdapterState
from fedlora.errors import DivergedError
from fedlora.training.divergence import Divergence
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss


def ends(losses):
    """Return the step, from one, at which a training with these losses is given up."""
    watch = Divergence()
    return next((n for n, loss in enumerate(losses, start=1) if watch.has_come(loss)), None)


def test_five_steps_in_a_row_three_nats_above_the_first_end_it():
    """The fifth of them does, and no step before."""
    assert ends([2.0] * 5 + [5.1] * 9) == 10
    assert ends([2.0] * 5 + [5.0] * 9) is None


def test_single_bad_batches_do_not():
    """Four of five steps may be bad, and one of the first five."""
    assert ends([2.0] * 5 + [100.0, 100.0, 100.0, 100.0, 2.0] * 5) is None
    assert ends([2.0, 2.0, 900.0, 2.0, 2.0] + [9.0] * 5) == 10


def test_what_explodes_at_once_is_no_measure_of_what_follows():
    """A rate that is too high shows in the first steps; short rounds are looked at, too."""
    assert ends([2.0, 60.0, 60.0, 60.0, 60.0, 60.0]) == 6
    assert ends([4.5, 4.1, 13.7, 7.9, 13.9, 12.0, 10.6, 6.0]) == 7


def test_a_round_that_begins_badly_is_not_its_site_s_fault():
    """What counts is what the site's own steps make of it."""
    assert ends([50.0] * 20) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_at_once(loss):
    """Whenever it comes."""
    assert ends([loss]) == 1
    assert ends([2.0] * 7 + [loss]) == 8


def test_a_training_whose_losses_explode_is_given_up(base, batch, recipe_of):
    """Though they stay finite; the error names step, first and last loss, and what to do."""
    recipe, start, losses = recipe_of(), AdapterState.initial(base.spec, seed=0), []

    def exploding(base, batch):
        return sft_loss(base, batch) + (30.0 if len(losses) >= 6 else 0.0)

    says = (
        r"diverged at step 11: the loss is \d+\.\d+, after .*Nothing was sent\. Lower learning_rate"
    )
    with pytest.raises(DivergedError, match=says):
        train_local(
            base,
            start,
            [[batch]] * 30,
            gradient=plain_gradient(recipe),
            part=base.spec,
            recipe=recipe,
            first_step=0,
            total_steps=30,
            seed="s",
            objective=exploding,
            on_step=lambda _, loss: losses.append(loss),
        )
    assert len(losses) == 10
