"""The keys at the top of a recipe that say what is learned from the rows."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedlora.sections.section import Section


class ObjectiveKeys(Section):
    """What a site learns from its rows."""

    objective: Literal["sft", "dpo"] = "sft"
    """``sft``: the answers, token by token; ``dpo``: which of two answers is preferred."""
    dpo_beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the adapter stays with the reference; β of the paper."""
    dpo_reference: Literal["base", "global"] = "base"
    """``base``: the frozen base alone; ``global``: the adapter that each round begins with, so that
    what holds the training back moves with it."""
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0
    """Probability with which a preference is taken to be the wrong way round."""

    @field_validator("objective", mode="before")
    @classmethod
    def _rows_are_on_their_own(cls, value: object) -> object:
        if value == "kto":
            raise ValueError(
                "the loss of a row in KTO depends, through its estimate of a divergence, on the "
                "other rows of the batch, but here each row has a loss of its own, which privacy "
                "and aggregation rest on: take dpo, with pairs of answers"
            )
        return value

    @model_validator(mode="after")
    def _keys_are_of_the_objective(self) -> Self:
        for key, field in ObjectiveKeys.model_fields.items():
            unused = key.startswith("dpo_") and self.objective != "dpo"
            if unused and getattr(self, key) != field.default:
                raise ValueError(f"{key} has no effect with objective: {self.objective}: remove it")
        return self

    @property
    def rows_of_example(self) -> int:
        """Rows of a batch that stand for one example: two answers make a pair."""
        return 2 if self.objective == "dpo" else 1
