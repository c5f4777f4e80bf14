"""MLflow: a server, or a database in the run's folder."""

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from fedlora.runtime.trackers.tracker import Place

_PARAMETERS = 100
"""As many as a call may have."""
_LONGEST = 6000
"""Letters of a parameter's value."""


class Mlflow:
    """Logs to ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME``.

    Without the first it is ``mlflow.db`` beside the run's other files, and without the second an
    experiment by the recipe's name.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def begin(self, known: str) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to MLflow's makers
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # a round would wait for 120 s
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient, entities

        for chatty in ("mlflow", "alembic"):  # each table of a new database
            logging.getLogger(chatty).setLevel(logging.WARNING)
        own = f"sqlite:///{self._place.folder.resolve() / 'mlflow.db'}"
        uri = self._place.environment.get("MLFLOW_TRACKING_URI", own)
        self._client, self._entities = MlflowClient(tracking_uri=uri), entities
        self._run = known or self._new()
        self._client.update_run(self._run, status="RUNNING")
        return self._run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        found = [self._entities.Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=found)

    def end(self, *, complete: bool) -> None:
        self._client.set_terminated(self._run, status="FINISHED" if complete else "KILLED")

    def _new(self) -> str:
        """Make a run with the recipe as its parameters, and the experiment if it is not there."""
        place = self._place
        name = place.environment.get("MLFLOW_EXPERIMENT_NAME", place.recipe.name)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run: str = self._client.create_run(number, run_name=place.run).info.run_id
        parameters = [
            self._entities.Param(key, value)
            for key, value in _flat(place.recipe.model_dump(mode="json")).items()
        ]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(run, params=parameters[start : start + _PARAMETERS])
        return run


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return ``section.key`` with each value as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[prefix + key] = text[:_LONGEST]
    return flat
