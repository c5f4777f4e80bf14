"""``python -m tests.memory_peak FOLDER ARCHITECTURE KEYS``: estimate and peak of two steps, bytes.

The peak is of memory that no file backs, above what a process has after a small run.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fedlora.training.base_model import BaseModel, describe
from fedlora.training.objectives import sft_loss
from tests.tiny_models import random_tokens, tiny_recipe, write_tiny

_SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}
_LENGTH, _EXAMPLES = 256, 4


def main(folder: Path, architecture: str, keys: dict[str, Any]) -> None:
    """Train two steps on full batches, twice: on a tiny base first, which is not counted."""
    tiny = AutoConfig.for_model(architecture, **_SIZES | {"hidden_size": 48, "vocab_size": 512})
    _train(write_tiny(folder / "tiny", tiny), keys, length=8)
    base = write_tiny(folder / "base", AutoConfig.for_model(architecture, **_SIZES))
    held, peaks, running = _held(), [0], threading.Event()

    def watch() -> None:
        while not running.is_set():
            peaks[0] = max(peaks[0], _held())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        estimated = _train(base, keys, length=_LENGTH)
    finally:
        running.set()
        watcher.join()
    sys.stdout.write(json.dumps([estimated, peaks[0] - held]) + "\n")


def _train(folder: Path, keys: dict[str, Any], *, length: int) -> int:
    recipe = tiny_recipe(
        base_model=str(folder), sequence_len=length, micro_batch_size=_EXAMPLES, **keys
    )
    base, tokens = BaseModel.load(recipe), random_tokens(*[length] * _EXAMPLES)
    tokens.input_ids.remainder_(500)
    tokens.labels.copy_(tokens.input_ids)
    optimizer = torch.optim.AdamW(base.parameters, fused=True)
    for _ in range(2):
        base.model.train()
        sft_loss(base, tokens).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return describe(recipe).memory


def _held() -> int:
    """Return the bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
