"""Who else keeps a run's curves, beside its own files: the only importer of these libraries."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fedlora.errors import RunError
from fedlora.runtime.trackers.curves import Curves, open_curves
from fedlora.runtime.trackers.mlflow import Mlflow
from fedlora.runtime.trackers.tensorboard import TensorBoard
from fedlora.runtime.trackers.tracker import Place, Tracker
from fedlora.runtime.trackers.wandb import WeightsAndBiases
from fedlora.sections import TrackerName

__all__ = ["Curves", "Place", "Tracker", "require_installed", "tracking"]

_TRACKERS: Mapping[TrackerName, Callable[[Place], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": WeightsAndBiases,
}
"""Each imports the library of its name when it begins."""


def require_installed(names: Sequence[TrackerName]) -> None:
    """Do nothing if the trackers' libraries are there; none is imported.

    Raises:
        RunError: one is not; says how to install it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"trackers: {', '.join(missing)} is not installed: pip install "
            f"'fedlora[{','.join(missing)}]', or name other trackers."
        )


@contextmanager
def tracking(names: Sequence[TrackerName], place: Place) -> Iterator[Curves]:
    """Return the curves of a run in the trackers that are named, closed at the end of the block.

    Raises:
        RunError: a library is not installed.
    """
    require_installed(names)
    trackers: dict[str, Tracker] = {name: _TRACKERS[name](place) for name in names}
    with open_curves(trackers, place.folder / "trackers.json") as curves:
        yield curves
