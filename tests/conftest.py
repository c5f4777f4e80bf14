"""Fixtures that several parts of the tests use."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import fedlora


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Tokenizer of the embedded base model; its chat template has generation markers."""
    folder = Path(fedlora.__file__).parent / "training" / "embedded"
    return AutoTokenizer.from_pretrained(folder)
