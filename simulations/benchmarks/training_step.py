"""A step of local training against TRL's ``SFTTrainer``, and against a loop written out by hand.

On a random Llama of about 45 M parameters with a vocabulary of 32,000: LoRA of rank 16 on all
linear modules, four rows of 256 tokens a step, all supervised, in the processor's own precision.
Time: the loops take their steps in turn, each whole, from fetching its rows to the optimiser's
step. Memory: the peak above the loaded model, each loop in a process of its own. All three reach
the same loss, or the benchmark stops.

Where there is CUDA, also a random Llama of the shape of Llama 3.1 8B in NF4, rows of 1,024 tokens,
with activation checkpointing; else that is said.
"""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from fedlora.sections import EMBEDDED
from fedlora.training.base_model import resolve
from simulations.benchmarks.measure import Bar, compare, once, report
from simulations.benchmarks.peak import elsewhere, peak_of
from simulations.benchmarks.step_loops import LOOPS, Work
from simulations.benchmarks.turns import Turns, in_turn

LIMITS = {"step, ours / TRL": 1.02, "memory, ours / TRL": 1.02}
SMALL = LlamaConfig(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1376,
    num_hidden_layers=9,
    num_attention_heads=8,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
EIGHT_BILLION = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
)
WORK = Work(base_model="", adapter="lora", steps=4, rows=4, tokens=256, checkpointing=False)
LARGE = replace(WORK, adapter="qlora", tokens=1024, checkpointing=True)
_STEPS_OF_PEAK = 3
_CLOSE = 0.01
"""Nats between the loops' mean losses: orders of summation differ, in bfloat16."""


def run(n: int) -> None:
    """Measure and print the result."""
    with tempfile.TemporaryDirectory() as folder:
        bars = measured(replace(WORK, base_model=written(SMALL, Path(folder) / "small")), n=n)
        if torch.cuda.is_available():
            large = written(EIGHT_BILLION, Path(folder) / "8b")
            bars += measured(replace(LARGE, base_model=large), n=n, prefix="8B in NF4, ")
        else:
            print("There is no CUDA device: the rows of 8B in NF4 were not run.")
    report("training_step", bars, LIMITS)


def measured(work: Work, *, n: int, prefix: str = "") -> list[Bar]:
    """Return time and memory of our loop beside each of the others."""
    work, bars = replace(work, steps=n + 1), []
    for peer in ("TRL", "plain"):
        seconds = _seconds(work, peer)
        name = f"{prefix}step, ours / {peer}"
        bars.append(compare(name, seconds, ours="ours", peer=peer, at_most=LIMITS.get(name)))
        tokens = work.rows * work.tokens
        rates = {name: tokens / median(taken) for name, taken in seconds.items()}
        print(f"{prefix}tokens/s: " + ", ".join(f"{k} {v:,.0f}" for k, v in rates.items()))
    peaks = {name: elsewhere(peak, replace(work, steps=_STEPS_OF_PEAK), name) for name in LOOPS}
    for peer in ("TRL", "plain"):
        name = f"{prefix}memory, ours / {peer}"
        pair = {"ours": peaks["ours"], "peer": peaks[peer]}
        bars.append(once(name, **pair, unit="MB", at_most=LIMITS.get(name)))
    return bars


def _seconds(work: Work, peer: str) -> dict[str, list[float]]:
    """Return the seconds of each step of ours and a peer's, which they take in turn."""
    losses: dict[str, float] = {}
    loops = {name: LOOPS[name](work) for name in ("ours", peer)}

    def play(name: str, turns: Turns) -> None:
        losses[name] = loops[name](partial(turns.step, name))

    seconds = in_turn({name: partial(play, name) for name in loops})
    if abs(losses["ours"] - losses[peer]) > _CLOSE:
        raise RuntimeError(f"The loops do not do the same: their losses are {losses}.")
    return seconds


def peak(work: Work, name: str) -> float:
    """Return the peak of some steps above the loaded model, in MB, in this process."""
    loop = LOOPS[name](work)
    return peak_of(lambda: loop(_free))


def _free() -> AbstractContextManager[None]:
    return nullcontext()


def written(config: LlamaConfig, folder: Path) -> str:
    """Write a random Llama of this shape with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(EMBEDDED, None))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
