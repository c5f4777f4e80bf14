"""Federated, privacy-preserving LoRA fine-tuning, built on Flower."""

__version__ = "0.1.0"
