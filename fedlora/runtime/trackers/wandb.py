"""Weights & Biases: its service, or files in the run's folder that ``wandb sync`` uploads."""

import os
import secrets
from collections.abc import Mapping

from fedlora.runtime.trackers.tracker import Place

_WAIT_S = 30.0
"""Seconds that the beginning and the end of a run wait for the service at most."""


class WeightsAndBiases:
    """Logs to the project ``WANDB_PROJECT``, by default one by the recipe's name.

    It sends nothing unless ``WANDB_MODE`` says ``online``, or there is a ``WANDB_API_KEY``. What it
    would find out by itself of the host, its code and its packages is not kept.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def begin(self, known: str) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers
        import wandb

        variables, number = self._place.environment, known or secrets.token_hex(8)
        mode = variables.get("WANDB_MODE", "online" if "WANDB_API_KEY" in variables else "offline")
        self._library = wandb
        self._run = wandb.init(
            project=variables.get("WANDB_PROJECT", self._place.recipe.name),
            id=number,
            name=self._place.run,
            resume="allow",
            dir=str(self._place.folder),
            config=self._place.recipe.model_dump(mode="json"),
            settings=wandb.Settings(
                mode=mode,  # type: ignore[arg-type]  # it checks what the variable says
                init_timeout=_WAIT_S,
                finish_timeout=_WAIT_S,
                console="off",
                host="",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        return number

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step, commit=True)

    def end(self, *, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)
        self._library.teardown()  # its process writes files in its own time, and ends with all kept
