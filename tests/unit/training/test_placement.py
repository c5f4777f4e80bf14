"""Where a base is placed, and whether it fits there."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import BaseModelError
from fedlora.training.base_model import BaseModel, describe, placement
from fedlora.training.base_model.memory import MARGIN, Memory
from fedlora.training.base_model.placement import place
from fedlora.training.objectives import sft_loss

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a machine whose memory a test can set."""
    monkeypatch.setattr(placement, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(placement, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 700 kB\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(recipe_of, kind):
    """With what to set instead."""
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if there[kind]():
        pytest.skip("it is there")
    with pytest.raises(BaseModelError, match=f"torch finds no {kind.upper()} device"):
        describe(recipe_of(device=kind))


def test_the_room_is_what_is_available(machine):
    """Not all of it, some of which others use; a container's bound counts, without its cache."""
    assert place(CPU, torch.float32, needed=1).room == 700 * 1024
    (machine / "memory.max").write_text("500000\n")
    (machine / "memory.stat").write_text("anon 100000\nfile 300000\n")
    assert place(CPU, torch.float32, needed=1).room == 400_000
    (machine / "memory.max").write_text("max\n")
    assert place(CPU, torch.float32, needed=1).room == 700 * 1024


def test_where_linux_does_not_tell_all_memory_counts(machine):
    """Rather than none."""
    (machine / "meminfo").unlink()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert place(CPU, torch.float32, needed=1).room == total


def test_a_base_without_room_is_refused_before_it_is_loaded(recipe_of, machine):
    """The error says what takes how much, what there is, and what helps; what is set already no."""
    recipe = recipe_of(micro_batch_size=8)
    with pytest.raises(BaseModelError) as caught:
        BaseModel.load(recipe)
    message = str(caught.value)
    for part in (
        "weights 0.0", "activations 0.", "micro-batches of 8 examples of 512 tokens",
        "cpu has 0.00072 GB free", "gradient_accumulation_steps", "gradient_checkpointing: true",
        "adapter: qlora", "a smaller sequence_len",
    ):  # fmt: skip
        assert part in message
    small = recipe_of(micro_batch_size=1, gradient_checkpointing=True, adapter="qlora")
    with pytest.raises(BaseModelError) as caught:
        BaseModel.load(small)
    for part in ("gradient_accumulation_steps", "gradient_checkpointing", "qlora"):
        assert part not in str(caught.value)


def test_it_is_refused_only_when_even_a_smaller_need_has_no_room(recipe_of):
    """The estimate may be too high by its margin; within that, training is tried."""
    facts, recipe = describe(recipe_of()), recipe_of()
    for factor, fits in ((0.99, False), (1.01, True)):
        room = int(facts.memory / (1 + MARGIN) * factor)
        tight = replace(facts, placement=replace(facts.placement, room=room))
        if fits:
            tight.require_room(recipe)
        else:
            with pytest.raises(BaseModelError):
                tight.require_room(recipe)


def test_private_gradients_need_one_device(recipe_of):
    """The gradient of an example is clipped as one."""
    private = {"unit": "example", "epsilon": 8, "delta": 1e-5, "records": 400}
    recipe = recipe_of(privacy=private, federation={"evaluate_every": 0})
    facts = describe(recipe)
    spread = replace(facts, placement=replace(facts.placement, cards=2))
    with pytest.raises(BaseModelError, match="needs the gradients of an example on one"):
        spread.require_room(recipe)
    spread.require_room(recipe_of())


def test_the_parts_add_up():
    """What is shown is what is counted."""
    memory = Memory(weights=4 * 10**9, adapter=10**9, activations=2 * 10**9, logits=3 * 10**9)
    assert memory.total == 10**10
    assert str(memory) == "10 GB (weights 4, adapter and optimiser 1, activations 2, logits 3)"


def test_the_facts_say_where_and_how(recipe_of):
    """In the words that are printed."""
    facts = describe(recipe_of(adapter="qlora", bf16=True))
    assert (facts.device, facts.dtype, facts.weights) == ("cpu", "bfloat16", "NF4")
    assert describe(recipe_of(load_in_8bit=True)).weights == "8-bit"
    assert describe(recipe_of()).weights == "float32"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", {}),
        ("llama", {"adapter": "qlora", "bf16": True}),
        ("llama", {"gradient_checkpointing": True}),
        ("gpt_neox", {}),
        ("mixtral", {"bf16": True}),
    ],
)
def test_the_estimate_is_near_what_is_measured(tmp_path, architecture, keys):
    """In a process of its own: never above the peak by its margin, nor below by half."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.memory_peak", str(tmp_path)]
    done = subprocess.run(
        [*command, architecture, json.dumps(keys)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    estimated, peak = json.loads(done.stdout.splitlines()[-1])
    assert 0.5 * peak < estimated < (1 + MARGIN) * peak


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_base_that_is_spread_computes_what_it_does_on_one_device(recipe_of, batch, monkeypatch):
    """Losses and gradients are the same, and the adapter comes out as it went in."""
    recipe = recipe_of(device="cuda")
    one = BaseModel.load(recipe)
    needed = describe(recipe).memory
    monkeypatch.setattr(placement, "room_on", lambda _: needed - 1)
    spread = BaseModel.load(recipe)
    assert describe(recipe).placement.cards == torch.cuda.device_count()
    assert len({parameter.device for parameter in spread.parameters}) > 1
    found = []
    for base in (one, spread):
        generator = torch.Generator().manual_seed(0)
        values = 0.05 * torch.randn(base.spec.size, generator=generator)
        state = AdapterState(spec=base.spec, values=values)
        base.load_adapter(state)
        assert torch.equal(base.adapter().values, values)
        base.model.train()
        losses = sft_loss(base, batch)
        losses.sum().backward()
        flat = torch.cat([parameter.grad.flatten().cpu() for parameter in base.parameters])
        found.append((losses.detach().cpu(), flat))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("keys", [{}, {"adapter": "qlora"}, {"load_in_8bit": True}])
def test_a_step_is_taken_on_cuda(recipe_of, batch, keys):
    """However the base is held; its loss is finite, and near that on the CPU."""
    losses = {}
    for device in ("cpu", "cuda"):
        base = BaseModel.load(recipe_of(device=device, **keys))
        base.model.train()
        loss = sft_loss(base, batch).sum()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in base.parameters)
        losses[device] = loss.item()
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)
