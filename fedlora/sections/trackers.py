"""The key at the top of a recipe, and of ``site.yaml``, that says who else keeps the curves."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from fedlora.sections.section import Section

TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb"]

Trackers = Annotated[tuple[TrackerName, ...], Field(strict=False)]
"""Trackers by name, as in Hugging Face's ``report_to``; the rest their own variables say."""


class TrackerKeys(Section):
    """Where a run's curves are copied to."""

    trackers: Trackers = ()
    """Of the aggregator alone, one number a round; a site's are what its ``site.yaml`` names."""
