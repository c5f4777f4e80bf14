"""Make the embedded base model: a small Llama that has read the documentation of Python libraries.

    python -m simulations.embedded_model --corpus build/corpus --into fedlora/training/embedded

The corpus is the docstrings of the packages in ``CORPUS``, all under permissive licences; pip
fetches them into the corpus folder when they are not there yet. Nothing of the standard library is
in it: the demo fine-tunes on that, so every docstring that the standard library also has is left
out. Everything is seeded; the model card written beside the weights tells what was measured.
"""

import argparse
import copy
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedlora.data.docstrings import read_package
from fedlora.data.standard_library import read_standard_library

CORPUS = {  # package: licence
    "transformers==5.23.0": "Apache-2.0",
    "peft==0.21.2": "Apache-2.0",
    "opacus==1.6.0": "Apache-2.0",
    "flwr==1.41.0": "Apache-2.0",
    "numpy==2.4.6": "BSD-3-Clause",
    "scipy==1.17.1": "BSD-3-Clause",
    "sympy==1.14.0": "BSD-3-Clause",
    "pandas==3.1.1": "BSD-3-Clause",
    "matplotlib==3.11.2": "Matplotlib licence (PSF-based)",
    "networkx==3.6.1": "BSD-3-Clause",
    "scikit-learn==1.9.1": "BSD-3-Clause",
    "scikit-image==0.26.0": "BSD-3-Clause",
    "statsmodels==0.15.0": "BSD-3-Clause",
    "astropy==8.0.2": "BSD-3-Clause",
    "xarray==2026.9.0": "Apache-2.0",
    "dask==2026.8.0": "BSD-3-Clause",
    "distributed==2026.8.0": "BSD-3-Clause",
    "ray==2.60.0": "Apache-2.0",
    "jax==0.10.2": "Apache-2.0",
    "nltk==3.10.4": "Apache-2.0",
    "mpmath==1.4.1": "BSD-3-Clause",
    "pyarrow==26.0.1": "Apache-2.0",
    "django==5.2.19": "BSD-3-Clause",
    "twisted==26.10.0": "MIT",
    "sqlalchemy==2.1.9": "MIT",
    "tornado==6.6.1": "Apache-2.0",
    "werkzeug==3.1.9": "BSD-3-Clause",
    "flask==3.1.3": "BSD-3-Clause",
    "aiohttp==3.14.5": "Apache-2.0 AND MIT",
    "httpx==0.28.1": "BSD-3-Clause",
    "urllib3==2.8.0": "MIT",
    "requests==2.34.2": "Apache-2.0",
    "anyio==4.16.0": "MIT",
    "trio==0.35.0": "MIT OR Apache-2.0",
    "scrapy==2.19.0": "BSD-3-Clause",
    "celery==5.7.0": "BSD-3-Clause",
    "kombu==5.7.0": "BSD-3-Clause",
    "fsspec==2026.9.0": "BSD-3-Clause",
    "sphinx==9.0.4": "BSD-2-Clause",
    "ipython==9.18.1": "BSD-3-Clause",
    "jedi==0.20.1": "MIT",
    "traitlets==5.16.1": "BSD-3-Clause",
    "pydantic==2.14.3": "MIT",
    "more-itertools==11.2.1": "MIT",
    "virtualenv==21.15.7": "MIT",
    "fonttools==4.68.0": "MIT",
    "kivy==2.3.1": "MIT",
    "textual==8.2.8": "MIT",
    "bokeh==3.9.2": "BSD-3-Clause",
    "holoviews==1.23.2": "BSD-3-Clause",
}
VOCABULARY, HIDDEN, LAYERS = 2048, 192, 5
SEQUENCE, BATCH, HELD_OUT, LONGEST_PIECE = 256, 16, 150, 1200
SPECIAL_TOKENS = ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{{ '\n' }}"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def fetch(folder: Path) -> None:
    """Install the corpus packages, without their dependencies, below ``folder``."""
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--target", str(folder), *CORPUS], check=True)


def read_pieces(folder: Path) -> list[str]:
    """Return each distinct documented function as ``call``, line break, docstring."""
    known = {function.first_paragraph for function in read_standard_library()}
    pieces = {}
    for package in sorted(folder.iterdir()):
        if not (package / "__init__.py").exists() or package.name.startswith("_"):
            continue
        for function in read_package(package, package=package.name):
            distinct = function.first_paragraph not in known
            if distinct and "test" not in function.module and function.docstring not in pieces:
                pieces[function.docstring] = f"{function.call}\n{function.docstring}"[
                    :LONGEST_PIECE
                ]
    return list(pieces.values())


def train_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the chat template's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def pack(pieces: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return ``(sequences, SEQUENCE)`` token ids: pieces one after another, each ended by eos."""
    ids: list[int] = []
    for row in tokenizer(pieces)["input_ids"]:
        ids += [*row, tokenizer.eos_token_id]
    return torch.tensor(ids[: len(ids) // SEQUENCE * SEQUENCE]).view(-1, SEQUENCE)


def unigram_entropy(sequences: torch.Tensor) -> float:
    """Return the entropy of single tokens in nats: the loss of a model that ignores context."""
    shares = torch.bincount(sequences.flatten()).double() / sequences.numel()
    shares = shares[shares > 0]
    return float(-(shares * shares.log()).sum())


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained network, about 2.6 M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=512,
            num_hidden_layers=LAYERS,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, sequences: torch.Tensor) -> float:
    """Return the mean loss per token in nats."""
    model.eval()
    chunks = torch.split(sequences, BATCH)
    return fmean(float(model(input_ids=rows, labels=rows).loss) for rows in chunks)


def train(model: LlamaForCausalLM, sequences: torch.Tensor, *, steps: int) -> Iterator[int]:
    """Train for ``steps`` batches, yielding the number of steps taken after each.

    Muon for the matrices, AdamW for embeddings and norms; short warm-up, then linear decay to zero.
    Each epoch visits every sequence once, in a new order.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 100, 1.2 * (1 - step / steps))
        )
        for optimizer in optimizers
    ]
    compiled = torch.compile(model)
    epoch = len(sequences) // BATCH
    for step in range(steps):
        if step % epoch == 0:
            order = torch.randperm(len(sequences))
        rows = sequences[order[step % epoch * BATCH :][:BATCH]]
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            compiled(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        yield step + 1


def save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    facts: Mapping[str, float],
    folder: Path,
) -> None:
    """Write the model folder with its card; the stored weights are bfloat16."""
    weights = copy.deepcopy(model)
    weights.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card(facts), encoding="utf-8")


def card(facts: Mapping[str, float]) -> str:
    """Return the model card: corpus, licences, time and loss."""
    template = (Path(__file__).parent / "embedded_model_card.md").read_text(encoding="utf-8")
    packages = "\n".join(
        f"| {package.replace('==', ' ')} | {licence} |" for package, licence in CORPUS.items()
    )
    sizes = {"hidden": HIDDEN, "layers": LAYERS, "vocabulary": VOCABULARY}
    return template.format(**facts, **sizes, batch=BATCH, sequence=SEQUENCE, packages=packages)


def main() -> None:
    """Read the corpus, train, and write the model with its card."""
    parser = argparse.ArgumentParser(prog="python -m simulations.embedded_model")
    parser.add_argument("--corpus", type=Path, required=True, help="where the packages are, or go")
    parser.add_argument("--into", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--steps", type=int, default=6500, help="batches of 4,096 tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # invalid escapes in the corpus
    torch.manual_seed(arguments.seed)
    fetch(arguments.corpus)
    pieces = read_pieces(arguments.corpus)
    random.Random(arguments.seed).shuffle(pieces)
    tokenizer = train_tokenizer(pieces)
    tokens = pack(pieces, tokenizer)
    held_out, sequences = tokens[:HELD_OUT], tokens[HELD_OUT:]
    facts: dict[str, float] = {
        "seed": arguments.seed,
        "pieces": len(pieces),
        "tokens": sequences.numel(),
        "unigram_entropy": unigram_entropy(sequences),
    }
    model = new_model(tokenizer)
    started = time.monotonic()
    for step in train(model, sequences, steps=arguments.steps):
        if step % 500 == 0 or step == arguments.steps:
            facts |= {"steps": step, "minutes": (time.monotonic() - started) / 60}
            facts["held_out_loss"] = held_out_loss(model, held_out)
            print(json.dumps(facts), flush=True)
            save(model, tokenizer, facts=facts, folder=arguments.into)


if __name__ == "__main__":
    main()
