"""The folder of one run, and what must be in it to go on after a stop.

::

    recipe.yaml      as resolved
    spec.json        the adapter's specification
    beginning.safetensors
                     the adapter that training begins with, if the recipe names one
    data.json        digests of the sites' rows, so that a resumed run trains on the same; without
                     privacy alone
    rounds.jsonl     one record a round
    checkpoints/     the last rounds, each a folder that is there whole or not at all
    spool/           the round in progress: its encoded updates, and its cohort if that is secret
    sites/           what each simulated site remembers between rounds, if anything
    comparison.json  what the baselines reached
    release/         the adapter in PEFT's format, model card, provenance, manifest; unsigned
    releases.jsonl   what became of the releases that were published, one line each
    report.html
    trackers.json    how far each tracker is, and its files: tensorboard/, mlflow.db, wandb/
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedlora import atomic
from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import RunError
from fedlora.recipe import Recipe, read_recipe
from fedlora.runtime.beginning import beginning_of
from fedlora.tensor_file import pieces

_BEGINNING = "beginning.safetensors"
_KEEP = 2
"""Checkpoints that are kept: the last, and the one before in case a disk loses the last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything that the next round depends on."""

    round: int
    """Rounds that are complete; 0 before the first."""
    adapter: AdapterState
    median_norm: float | None = None
    """Median norm of the last round's updates."""
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    """State of the server optimiser."""
    record: Mapping[str, Any] | None = None
    """The last round's line of ``rounds.jsonl``."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its checkpoints and records."""

    path: Path

    @classmethod
    def create(
        cls, recipe: Recipe, spec: AdapterSpec, *, data: Mapping[str, str], runs: Path
    ) -> Self:
        """Make ``runs/<name>-<time>`` and write the recipe and the specification into it.

        Raises:
            AdapterError: ``init_from`` holds no adapter that fits.
            PolicyError: it holds another than the recipe was locked to.
            ReleaseError: it is a release's folder, and a byte is not what was published.
            StorageError: the folder cannot be written.
        """
        beginning = beginning_of(recipe, spec) if recipe.init_from else None
        path = stamped_folder(runs, recipe.name)
        try:
            with atomic.new_folder(path) as folder:
                (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
                (folder / "spec.json").write_text(spec.to_json(), encoding="utf-8")
                if beginning is not None:
                    with (folder / _BEGINNING).open("wb") as file:
                        file.writelines(pieces({"adapter": beginning.values}))
                (folder / "data.json").write_text(json.dumps(dict(data)), encoding="utf-8")
        except BaseException:
            with suppress(OSError):  # it is complete if Ctrl-C came late
                path.rmdir()
            raise
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the run at ``path``.

        Raises:
            RunError: there is no run.
        """
        if not (path / "recipe.yaml").is_file() or not (path / "spec.json").is_file():
            raise RunError(
                f"{path}: this is not a run folder (it holds no recipe.yaml and spec.json). "
                "Name a folder such as runs/demo-20260101-120000."
            )
        return cls(path.resolve())

    @property
    def name(self) -> str:
        """The run's identity, also on the wire."""
        return self.path.name

    @property
    def release(self) -> Path:
        """Where the adapter is published."""
        return self.path / "release"

    @property
    def releases(self) -> Path:
        """What became of the releases that were published while the run was played, a line each."""
        return self.path / "releases.jsonl"

    @property
    def is_published(self) -> bool:
        """Whether all rounds are played and the adapter is in its place."""
        return self.release.is_dir()

    @property
    def report(self) -> Path:
        """Where the report is written."""
        return self.path / "report.html"

    @property
    def spool(self) -> Path:
        """Where the updates of the round in progress wait."""
        return self.path / "spool"

    def kept_cohort(self, number: int) -> Path:
        """Where the drawn cohort of round ``number`` is kept until that round is committed."""
        return self.spool / f"cohort-{number:04}.json"

    def recipe(self) -> Recipe:
        """Read the resolved recipe."""
        return read_recipe(self.path / "recipe.yaml")

    def spec(self) -> AdapterSpec:
        """Read the adapter's specification."""
        return AdapterSpec.from_json((self.path / "spec.json").read_text(encoding="utf-8"))

    def data(self) -> dict[str, str]:
        """Return the digest of each site's rows."""
        digests: dict[str, str] = json.loads((self.path / "data.json").read_text(encoding="utf-8"))
        return digests

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the complete rounds."""
        return [json.loads(line) for line in self._record_lines()]

    def baselines(self) -> dict[str, dict[str, list[float]]]:
        """Return what was trained without federation: loss sum and tokens by measured site.

        The outer key is the site that trained alone, or ``all data pooled``.
        """
        path = self.path / "comparison.json"
        baselines: dict[str, dict[str, list[float]]] = {}
        if path.is_file():
            baselines = json.loads(path.read_text(encoding="utf-8"))
        return baselines

    def keep_baselines(self, baselines: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Write what the baselines reached so far."""
        atomic.write_file(self.path / "comparison.json", json.dumps(baselines, indent=1))

    def save(self, checkpoint: Checkpoint) -> None:
        """Commit a round: its checkpoint first, then its record, then the spool is emptied."""
        with atomic.new_folder(self._checkpoint(checkpoint.round)) as folder:
            tensors = {f"optimizer.{k}": v for k, v in checkpoint.optimizer.items()}
            tensors["adapter"] = checkpoint.adapter.values
            with (folder / "state.safetensors").open("wb") as file:
                file.writelines(pieces(tensors))
            facts = {"median_norm": checkpoint.median_norm, "record": checkpoint.record}
            (folder / "state.json").write_text(json.dumps(facts), encoding="utf-8")
        self._append_record(checkpoint)
        shutil.rmtree(self.spool, ignore_errors=True)
        unfinished = self.path.glob("checkpoints/.round-*")  # of a process that was killed
        for path in [*unfinished, *self._checkpoints()[:-_KEEP]]:
            shutil.rmtree(path, ignore_errors=True)

    def beginning(self) -> AdapterState:
        """Return the adapter that training begins with.

        Raises:
            RunError: the recipe names one, and the run's copy of it cannot be read.
        """
        path, recipe = self.path / _BEGINNING, self.recipe()
        if recipe.init_from is None:
            return AdapterState.initial(self.spec(), seed=recipe.seed)
        try:
            return AdapterState(spec=self.spec(), values=load_file(path)["adapter"])
        except Exception as error:  # whatever a damaged file provokes
            raise RunError(
                f"{path}: the adapter that the run begins with cannot be read ({error}). Start a "
                "new run."
            ) from error

    def load(self) -> Checkpoint:
        """Return the last checkpoint, or the beginning, and mend ``rounds.jsonl`` to agree with it.

        Raises:
            RunError: the last checkpoint cannot be read.
        """
        paths = self._checkpoints()
        if not paths:
            return Checkpoint(round=0, adapter=self.beginning())
        checkpoint = self._read(paths[-1])
        self._append_record(checkpoint)
        return checkpoint

    def checkpoint(self, number: int) -> Checkpoint:
        """Return the checkpoint of round ``number``, which must be one of the last.

        Raises:
            RunError: it is not kept, or cannot be read.
        """
        path, kept = self._checkpoint(number), self._checkpoints()
        if path not in kept:
            known = ", ".join(each.name for each in kept) or "none"
            raise RunError(f"{self.path}: there is no checkpoint of round {number}, only: {known}.")
        return self._read(path)

    def committed(self, number: int) -> float:
        """Return when a round that is kept was committed, in seconds since the epoch."""
        return (self._checkpoint(number) / "state.json").stat().st_mtime

    def _read(self, path: Path) -> Checkpoint:
        try:
            tensors = load_file(path / "state.safetensors")
            facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
            values = tensors.pop("adapter").to(torch.float32)
            return Checkpoint(
                round=int(path.name.removeprefix("round-")),
                adapter=AdapterState(spec=self.spec(), values=values),
                median_norm=facts["median_norm"],
                optimizer={k.removeprefix("optimizer."): v for k, v in tensors.items()},
                record=facts["record"],
            )
        except Exception as error:  # whatever a damaged file provokes
            raise RunError(
                f"{path}: the checkpoint is damaged ({error}). "
                "Delete this folder to resume from the one before it."
            ) from error

    def _append_record(self, checkpoint: Checkpoint) -> None:
        """Write ``rounds.jsonl`` anew: the rounds before as they are, this one last."""
        earlier = self._record_lines()[: checkpoint.round]
        lines = [*earlier, json.dumps(checkpoint.record)]
        atomic.write_file(self.path / "rounds.jsonl", "\n".join(lines) + "\n")

    def _record_lines(self) -> list[str]:
        path = self.path / "rounds.jsonl"
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def _checkpoint(self, number: int) -> Path:
        return self.path / "checkpoints" / f"round-{number:04}"

    def _checkpoints(self) -> list[Path]:
        paths = self.path.glob("checkpoints/round-*")
        return sorted(paths, key=lambda path: (len(path.name), path.name))  # 10000 is after 9999


def stamped_folder(runs: Path, name: str) -> Path:
    """Make an empty folder ``runs/<name>-<time>`` that is nobody else's.

    Raises:
        StorageError: it cannot be written.
    """
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    names = (f"{name}-{stamp}{suffix}" for suffix in chain([""], map("-{}".format, count(2))))
    with atomic.storage_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
        return next(runs / each for each in names if _claim(runs / each))


def _claim(path: Path) -> bool:
    """Make an empty folder unless another run, perhaps of another process, has the name."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
