"""The base model: found, described without its weights, and kept warm with one adapter on it.

The only importer of transformers, PEFT, bitsandbytes and the hub's client.
"""

from fedlora.training.base_model.facts import BaseFacts, describe
from fedlora.training.base_model.files import digest, resolve
from fedlora.training.base_model.generation import generate
from fedlora.training.base_model.resident import BaseModel

__all__ = ["BaseFacts", "BaseModel", "describe", "digest", "generate", "resolve"]
