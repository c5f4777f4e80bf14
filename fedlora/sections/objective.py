"""The keys at the top of a recipe that say what is learned from the rows."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedlora.sections.section import Section

Label = Annotated[str, Field(pattern=r"^\S(.{0,98}\S)?$")]
"""A class's name as rows have it, without white space around it."""


class ObjectiveKeys(Section):
    """What a site learns from its rows."""

    objective: Literal["sft", "classification"] = "sft"
    """``sft``: the answers, token by token; ``classification``: which of the labels a text has."""
    labels: Annotated[tuple[Label, ...], Field(strict=False)] | None = None
    """The classes of ``classification``, in the order of the head's outputs: all that a row may
    have. Sites must agree on them, and no site's data may define them."""

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
    def _labels_are_of_classes(self) -> Self:
        labels = self.labels or ()
        if self.objective == "classification" and len(set(labels)) < 2:
            raise ValueError(
                "objective: classification needs the names of the classes: set labels to two or "
                "more, such as labels: [ham, spam]"
            )
        if self.objective != "classification" and labels:
            raise ValueError(f"labels has no effect with objective: {self.objective}: remove it")
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"labels names {twice[0]} twice: each class has one place")
        return self
