"""The keys and sections of a recipe, each a frozen, validated value."""

from fedlora.sections.base import EMBEDDED, BaseKeys
from fedlora.sections.data import DataKeys
from fedlora.sections.datasets import AT_SITE, STANDARD_LIBRARY, Dataset, DatasetType, Source
from fedlora.sections.federation import Federation
from fedlora.sections.lora import LoraKeys
from fedlora.sections.objective import ObjectiveKeys
from fedlora.sections.privacy import Privacy, PrivacyUnit, most_delta
from fedlora.sections.run import RunKeys
from fedlora.sections.section import NAME, Count, Digest, Name, Section, Strings
from fedlora.sections.simulation import Simulation
from fedlora.sections.training import TrainingKeys
from fedlora.sections.wire import Codec, Wire

__all__ = [
    "AT_SITE",
    "EMBEDDED",
    "NAME",
    "STANDARD_LIBRARY",
    "BaseKeys",
    "Codec",
    "Count",
    "DataKeys",
    "Dataset",
    "DatasetType",
    "Digest",
    "Federation",
    "LoraKeys",
    "Name",
    "ObjectiveKeys",
    "Privacy",
    "PrivacyUnit",
    "RunKeys",
    "Section",
    "Simulation",
    "Source",
    "Strings",
    "TrainingKeys",
    "Wire",
    "most_delta",
]
