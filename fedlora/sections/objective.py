"""The keys at the top of a recipe that say what is learned from the rows."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedlora.sections.section import Section

LossUnit = Literal["token", "pair", "text"]

Label = Annotated[str, Field(pattern=r"^\S(.{0,98}\S)?$")]
"""A class's name as rows have it, without white space around it."""


class ObjectiveKeys(Section):
    """What a site learns from its rows."""

    objective: Literal["sft", "dpo", "classification"] = "sft"
    """``sft``: the answers, token by token; ``dpo``: which of two answers is preferred;
    ``classification``: which of the labels a text has."""
    labels: Annotated[tuple[Label, ...], Field(strict=False)] | None = None
    """The classes of ``classification``, in the order of the head's outputs: all that a row may
    have. Sites must agree on them, and no site's data may define them."""
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

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_texts(cls, value: object) -> object:
        """Take whole numbers for the texts that rows have; YAML's truth values are a trap."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value
        if any(isinstance(label, bool) for label in value):
            raise ValueError('true and false are no names to YAML: quote them, as in "true"')
        return [str(label) if isinstance(label, int) else label for label in value]

    @model_validator(mode="after")
    def _keys_are_of_the_objective(self) -> Self:
        for key, field in ObjectiveKeys.model_fields.items():
            owner = {"dpo": "dpo", "labels": "classification"}.get(key.partition("_")[0])
            unused = owner not in {None, self.objective}
            if unused and getattr(self, key) != field.default:
                raise ValueError(f"{key} has no effect with objective: {self.objective}: remove it")
        return self

    @model_validator(mode="after")
    def _labels_are_of_classes(self) -> Self:
        labels = self.labels or ()
        if self.objective == "classification" and len(set(labels)) < 2:
            raise ValueError(
                "objective: classification needs the names of the classes: set labels to two or "
                "more, such as labels: [ham, spam]"
            )
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"labels names {twice[0]} twice: each class has one place")
        return self

    @property
    def loss_unit(self) -> LossUnit:
        """What a measured loss is a mean over: it is in nats per so much."""
        units: Mapping[str, LossUnit] = {"sft": "token", "dpo": "pair", "classification": "text"}
        return units[self.objective]

    @property
    def rows_of_example(self) -> int:
        """Rows of a batch that stand for one example: two answers make a pair."""
        return 2 if self.objective == "dpo" else 1
