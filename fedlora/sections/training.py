"""The keys at the top of a recipe that say how a site steps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedlora.sections.section import Count, Section

OptimizerName = Literal["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd"]
"""As transformers and Axolotl spell them."""

_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingKeys(Section):
    """The steps of a site."""

    micro_batch_size: Count = 8
    gradient_accumulation_steps: Count = 1
    optimizer: OptimizerName = "adamw_torch"
    """Afresh in each round; ``paged_`` needs a CUDA device."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Runs once over all rounds, not anew in each."""
    cosine_min_lr_ratio: Annotated[float, Field(ge=0, lt=1)] = 0
    """Where the cosine ends, as a share of the learning rate."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Of all rounds together; takes the place of ``warmup_ratio``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0
    adam_beta1: _Beta = 0.9
    adam_beta2: _Beta = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    sgd_momentum: _Beta = 0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1
    """Largest norm of a step's gradient; under ``privacy.unit: example``, of each example's."""

    @model_validator(mode="after")
    def _steps_have_no_idle_keys(self) -> Self:
        """Refuse what would be set without effect."""
        of_adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
        idle = [(key, "optimizer", "sgd") for key in of_adam if self.optimizer == "sgd"]
        if self.optimizer != "sgd":
            idle.append(("sgd_momentum", "optimizer", self.optimizer))
        if self.lr_scheduler != "cosine":
            idle.append(("cosine_min_lr_ratio", "lr_scheduler", self.lr_scheduler))
        for key, other, value in idle:
            if getattr(self, key) != TrainingKeys.model_fields[key].default:
                raise ValueError(f"{key} has no effect with {other}: {value}: remove it")
        return self
