"""Fixtures that several parts of the tests use."""

import fedlora  # isort: skip  # before torch, whose waiting threads then sleep

import json
import logging
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fedlora.cli import main
from fedlora.recipe import Recipe

# A busy machine is no failure, and a failure is the same for everyone.
settings.register_profile("fedlora", deadline=None, derandomize=True)
settings.load_profile("fedlora")

_FRUIT = ["apple", "pear", "plum", "fig", "quince", "medlar", "grape", "cherry", "lime", "peach"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Tokenizer of the embedded base model; its chat template has generation markers."""
    folder = Path(fedlora.__file__).parent / "training" / "embedded"
    return AutoTokenizer.from_pretrained(folder)


CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Take back what a command made of logging: its handlers write to a stream that is closed."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Run ``fedlora`` with arguments; return exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Path]:
    """Two data files: what a fruit is, asked in two ways."""
    files = {}
    for site, question in (("north", "What is a {}?"), ("south", "Tell me about the {}.")):
        rows = [
            {
                "prompt": question.format(fruit),
                "completion": f"The {fruit} is a fruit of the {site}.",
            }
            for fruit in _FRUIT
        ]
        files[site] = tmp_path / f"{site}.jsonl"
        files[site].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return files


@pytest.fixture
def recipe_text(sites: dict[str, Path]) -> str:
    """A recipe for a run of seconds."""
    return f"""\
name: small
sequence_len: 64
micro_batch_size: 4
learning_rate: 1e-2
val_set_size: 0.2
bf16: false
privacy: {{unit: none}}
datasets:
  - {{path: {sites["north"]}, site: north}}
  - {{path: {sites["south"]}, site: south}}
federation: {{rounds: 3, local_steps: 2}}
"""


@pytest.fixture
def small_recipe(recipe_text: str) -> Callable[..., Recipe]:
    """Return the recipe with overrides."""

    def make(*overrides: str) -> Recipe:
        return Recipe.from_yaml(recipe_text, overrides=overrides)

    return make


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which the operating system cuts every file off after so many bytes.

    Writes fail with an ``OSError`` as on a full disk, without a disk of our own to fill.
    """

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
