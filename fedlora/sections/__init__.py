"""The keys and sections of a recipe, each a frozen, validated value."""

from fedlora.sections.base import EMBEDDED, BaseKeys
from fedlora.sections.data import DataKeys
from fedlora.sections.datasets import (
    AT_SITE,
    STANDARD_LIBRARY,
    Dataset,
    DatasetType,
    RowType,
    Source,
    TrainingSource,
    require_mixture,
    require_no_mixture,
)
from fedlora.sections.federation import Federation
from fedlora.sections.lora import LoraKeys, Quantization
from fedlora.sections.objective import LossUnit, ObjectiveKeys
from fedlora.sections.privacy import Privacy, PrivacyUnit, ThreatModel, most_delta
from fedlora.sections.run import RunKeys
from fedlora.sections.section import NAME, Count, Digest, Name, Section, Strings
from fedlora.sections.secure_sum import FEWEST, LARGEST_COMPLETE, require_secure_sum
from fedlora.sections.simulation import Simulation
from fedlora.sections.trackers import TrackerKeys, TrackerName, Trackers
from fedlora.sections.training import OptimizerName, TrainingKeys
from fedlora.sections.wire import Codec, Wire

__all__ = [
    "AT_SITE",
    "EMBEDDED",
    "FEWEST",
    "LARGEST_COMPLETE",
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
    "LossUnit",
    "Name",
    "ObjectiveKeys",
    "OptimizerName",
    "Privacy",
    "PrivacyUnit",
    "Quantization",
    "RowType",
    "RunKeys",
    "Section",
    "Simulation",
    "Source",
    "Strings",
    "ThreatModel",
    "TrackerKeys",
    "TrackerName",
    "Trackers",
    "TrainingKeys",
    "TrainingSource",
    "Wire",
    "most_delta",
    "require_mixture",
    "require_no_mixture",
    "require_secure_sum",
]
