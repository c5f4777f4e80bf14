"""A publisher with a store and small releases, as campaigns and tests of their readers want one."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedlora.adapter import AdapterSpec, AdapterState, TensorSpec
from fedlora.peft_folder import write_peft_folder
from fedlora.release.folder import Release, files_of
from fedlora.release.manifest import (
    Adapter,
    Aggregation,
    Base,
    Code,
    Cohort,
    Evaluation,
    Manifest,
    Origin,
    Privacy,
    Quantization,
)
from fedlora.release.publisher import Publisher
from fedlora.release.pull import Puller
from fedlora.release.seen import SEEN, Seen
from fedlora.release.source import Target
from fedlora.release.store import Store, new_store
from fedlora.signing import Signer

DIGEST = "ab" * 32


MODULES = {"model.layers.0.self_attn.q_proj": (3, 5), "model.layers.0.mlp.up_proj": (3, 4)}
"""Input and output features of the modules that the adapters are of."""


def adapter(seed: int) -> AdapterState:
    """Return an adapter of rank 2 with random values."""
    tensors: list[TensorSpec] = []
    for module, (inputs, outputs) in MODULES.items():
        tensors += (
            TensorSpec(module=module, factor="A", shape=(2, inputs)),
            TensorSpec(module=module, factor="B", shape=(outputs, 2)),
        )
    spec = AdapterSpec(
        base_model="embedded",
        base_model_revision=None,
        base_digest=DIGEST,
        rank=2,
        alpha=4.0,
        target_modules=("q_proj", "up_proj"),
        tensors=tuple(tensors),
    )
    generator = torch.Generator().manual_seed(seed)
    return AdapterState(spec=spec, values=torch.randn(spec.size, generator=generator))


def manifest_of(folder: Path, **changed: Any) -> Manifest:  # noqa: ANN401 - the manifest's fields
    """Return a manifest of what is in a folder."""
    values = {
        "name": "demo",
        "created": "2026-01-01T00:00:00Z",
        "files": files_of(folder),
        "base": Base(name="embedded", digest=DIGEST),
        "adapter": Adapter(
            digest=DIGEST,
            rank=2,
            alpha=4.0,
            target_modules=("q_proj", "up_proj"),
            modules=2,
            parameters=30,
        ),
        "quantization": Quantization(),
        "origin": Origin(run="demo-1", round=1, rounds=1, recipe=DIGEST),
        "cohort": Cohort(population=4),
        "aggregation": Aggregation(method="product", robust="none"),
        "privacy": Privacy(unit="none", statement=("No differential privacy was applied.",)),
        "evaluation": Evaluation(),
        "code": Code(fedlora="0.1.0", torch=torch.__version__),
    }
    return Manifest(**{**values, **changed})


@dataclass
class Scene:
    """A store, its publisher, and a reader with a home."""

    path: Path
    signer: Signer
    store: Store
    puller: Puller
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    publisher: Publisher = field(init=False)

    def __post_init__(self) -> None:
        self.publisher = self.publisher_at(self.store)

    @classmethod
    def new(cls, path: Path) -> "Scene":
        """Make all of it under ``path``."""
        new_store(path / "store", key=path / "publisher.key")
        signer = Signer.load(path / "publisher.key")
        store = Store(path / "store", key=signer.public)
        puller = Puller(store, signer.public, home=path / "home")
        return cls(path, signer, store, puller)

    def publisher_at(self, target: Target) -> Publisher:
        """Return the publisher at another target, whose memory and clock are the same."""
        seen = Seen(self.path / "publisher" / SEEN)
        return Publisher(target, self.signer, seen=seen, clock=lambda: self.now)

    def draft(self, *, seed: int = 0) -> Path:
        """Write an adapter into a folder of its own."""
        folder = self.path / f"draft-{seed}"
        write_peft_folder(adapter(seed), folder)
        (folder / "README.md").write_text("# demo\n", encoding="utf-8")
        return folder

    def publish(self, *, seed: int = 0, **changed: Any) -> Release:  # noqa: ANN401 - as above
        """Publish an adapter."""
        folder = self.draft(seed=seed)
        return self.publisher.publish(folder, manifest_of(folder, **changed))
