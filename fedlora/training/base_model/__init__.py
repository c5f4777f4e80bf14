"""The base model: found, described without its weights, and kept warm with one adapter on it.

The only importer of transformers, PEFT and bitsandbytes.
"""

from fedlora.training.base_model.bnb_adamw import bnb_adamw, require_optimizer
from fedlora.training.base_model.facts import BaseFacts, describe, mergeable
from fedlora.training.base_model.files import digest, other_files, resolve, weight_files
from fedlora.training.base_model.panel import Panel
from fedlora.training.base_model.resident import BaseModel

__all__ = [
    "BaseFacts",
    "BaseModel",
    "Panel",
    "bnb_adamw",
    "describe",
    "digest",
    "mergeable",
    "other_files",
    "require_optimizer",
    "resolve",
    "weight_files",
]
