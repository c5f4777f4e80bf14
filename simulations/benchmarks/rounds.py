"""Federated rounds of the in-process engine: what they cost above the training that they carry.

Ours, with inspection, codec and checkpoint, against the bare training steps on the same batches,
and against the plain way (``plain_way.py``), by default and like for like (float32, same batches).
Evaluation is left out everywhere. The bars are for a random Llama of about 30 M parameters with
the demo's texts and steps in a round; the embedded model's ratios stand beside them.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedlora.adapter import AdapterState
from fedlora.cli.simulate import DEMO
from fedlora.data.batches import Batch
from fedlora.recipe import Recipe, read_recipe
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.client import app
from fedlora.runtime.site.site import Site, resident_base
from fedlora.sections import EMBEDDED
from fedlora.training.base_model import resolve
from fedlora.training.objectives import sft_loss
from simulations.benchmarks.measure import Bar, compare, interleaved, report
from simulations.benchmarks.plain_way import federate

ROUNDS = 2
STEPS = read_recipe(DEMO).federation.local_steps
LIMITS = {"rounds / bare steps": 1.05, "ours / plain way": 0.5}


def run(n: int) -> None:
    """Measure both models and print the result."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        large = _bars(random_llama(work / "llama-30m"), work, n=n, prefix="")
        small = _bars(EMBEDDED, work, n=n, prefix="embedded: ")
    report("rounds", [*large, *small], LIMITS)


def _bars(base_model: str, work: Path, *, n: int, prefix: str) -> list[Bar]:
    ours = _recipe(base_model)
    full = _recipe(base_model, "bf16=false")
    sites = {
        recipe: [Site.open(recipe, name) for name in recipe.site_names] for recipe in (ours, full)
    }
    grouped = [_grouped(site) for site in sites[ours]]
    as_they_come = [_as_they_come(site) for site in sites[ours]]
    base = resolve(base_model, None)
    variants: dict[str, Callable[[], None]] = {
        "ours": partial(_rounds, ours, work),
        "bare": partial(_bare_steps, sites[ours], grouped),
        "plain": partial(federate, base, ours, dict(enumerate(as_they_come))),
        "ours fp32": partial(_rounds, full, work),
        "plain same": partial(federate, base, ours, dict(enumerate(grouped))),
    }
    seconds = interleaved(variants, n=n)
    limit = LIMITS if not prefix else {}
    return [
        compare(prefix + name, seconds, ours=mine, peer=peer, at_most=limit.get(name))
        for name, mine, peer in (
            ("rounds / bare steps", "ours", "bare"),
            ("ours / plain way", "ours", "plain"),
            ("like for like", "ours fp32", "plain same"),
        )
    ]


def _rounds(recipe: Recipe, work: Path) -> None:
    """Ours: messages, gate, codec, spool, fold, checkpoint and release around the steps."""
    run = RunFolder.create(recipe, resident_base(recipe).spec, data={}, runs=work / "runs")
    serve(InProcessGrid(app, clients=len(recipe.site_names)), run.path, observe=lambda _: None)


def _bare_steps(sites: Sequence[Site], batches: Sequence[Sequence[Sequence[Batch]]]) -> None:
    """The same steps on the same batches and base, and nothing else."""
    base, recipe = sites[0].base, sites[0].recipe
    parameters = [p for p in base.model.parameters() if p.requires_grad]
    base.load_adapter(AdapterState.initial(base.spec, seed=0))
    base.model.train()
    for number in range(recipe.federation.rounds):
        for mine in batches:
            optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, fused=True)
            for batch in mine[number]:
                loss = sft_loss(base, batch).sum() / recipe.batch_size
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()


def _grouped(site: Site) -> list[list[Batch]]:
    """Return the batches that our engine trains on, by round."""
    return [
        [batch for step in site.batches(number * STEPS, STEPS) for batch in step]
        for number in range(ROUNDS)
    ]


def _as_they_come(site: Site) -> list[list[Batch]]:
    """Return batches of as many examples in a shuffled order, each padded to its longest."""
    rows = random.Random(0).sample(list(site.train_rows), ROUNDS * STEPS * site.recipe.batch_size)
    size = site.recipe.batch_size
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    batches = [
        site.objective.collate(chunk, pad_token_id=site.base.pad_token_id) for chunk in chunks
    ]
    return [batches[start : start + STEPS] for start in range(0, len(batches), STEPS)]


def _recipe(base_model: str, *overrides: str) -> Recipe:
    """Return the demo's recipe for two of its sites and rounds, without evaluation."""
    demo = read_recipe(DEMO).model_dump(mode="json")
    demo["datasets"] = demo["datasets"][:2]
    demo["federation"] |= {"sites": 2, "rounds": ROUNDS, "evaluate_every": 0}
    demo["base_model"] = base_model
    return Recipe.from_yaml(yaml.safe_dump(demo), overrides=overrides)


def random_llama(folder: Path) -> str:
    """Write a random Llama of about 30 M parameters with the embedded model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve(EMBEDDED, None))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
