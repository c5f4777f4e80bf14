"""TensorBoard: files that ``tensorboard --logdir`` shows."""

from collections.abc import Mapping

from fedlora.runtime.trackers.tracker import Place


class TensorBoard:
    """Writes event files, always in the run's folder: it has no server to send to."""

    def __init__(self, place: Place) -> None:
        self._folder = place.folder / "tensorboard"

    def begin(self, known: str) -> str:
        from tensorboard.summary import Writer

        self._writer = Writer(str(self._folder))
        return known

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, *, complete: bool) -> None:  # noqa: ARG002 - its files say nothing of it
        self._writer.close()
