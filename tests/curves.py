"""What the trackers' own files hold, read back: a curve is its steps and values, in order."""

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from wandb.proto.wandb_internal_pb2 import Record

Curve = list[tuple[int, float]]


def tensorboard_curve(folder: Path, name: str) -> Curve:
    """Return a curve from the event files of a run, by step: names of files sort 10 before 9."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = events.Tensors(name)
    return sorted((each.step, float(make_ndarray(each.tensor_proto))) for each in found)


def mlflow_run(folder: Path, uri: str = "") -> tuple[Any, Any]:
    """Return the client of a run's database, and the only run in it."""
    from mlflow import MlflowClient  # noqa: PLC0415 - the trackers say first that it tells nobody

    client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return client, run


def mlflow_curve(folder: Path, name: str) -> Curve:
    """Return a curve from a run's database."""
    client, run = mlflow_run(folder)
    return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]


def wandb_curve(folder: Path, name: str) -> Curve:
    """Return a curve from the files that ``wandb sync`` would upload, oldest first."""
    rows = [record.history for record in wandb_records(folder) if record.HasField("history")]
    items = [(row.step.num, {tuple(i.nested_key) or (i.key,): i for i in row.item}) for row in rows]
    return [(step, float(item[name,].value_json)) for step, item in items if (name,) in item]


def wandb_records(folder: Path) -> list[Record]:
    """Return all that W&B wrote for a run offline, oldest first."""
    paths = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    return [Record.FromString(data) for path in paths for data in _leveldb(path.read_bytes())]


CURVES: Mapping[str, Callable[[Path, str], Curve]] = {
    "tensorboard": tensorboard_curve,
    "mlflow": mlflow_curve,
    "wandb": wandb_curve,
}


def _leveldb(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format: blocks of 32 KiB, chunks of a record."""
    place, record, block = 7, b"", 2**15  # after W&B's own header
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # a whole one, or the last of its chunks
            yield record
            record = b""
