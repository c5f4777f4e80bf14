"""The keys at the top of a recipe that say how a site steps."""

from typing import Annotated, Literal

from pydantic import Field

from fedlora.sections.section import Count, Section


class TrainingKeys(Section):
    """The steps of a site."""

    micro_batch_size: Count = 8
    gradient_accumulation_steps: Count = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Runs once over all rounds, not anew in each."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1
    """Largest norm of a step's gradient; under ``privacy.unit: example``, of each example's."""
