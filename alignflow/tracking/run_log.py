"""One MLflow run: its params, metrics, tags and files, each written once however often it is sent."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.tracking.connection import Connection

METRICS_PER_REQUEST = 500
PARAMS_PER_REQUEST = 100
STATUS = {
    "completed": "FINISHED",
    "cached": "FINISHED",
    "cancelled": "KILLED",
    "suspended": "KILLED",
}


class RunLog:
    """One MLflow run, written so that writing again changes nothing."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self._client = connection.client
        self.run_id = run_id
        run = self._client.get_run(run_id)
        self._params = set(run.data.params)
        self._sent = {
            (name, metric.step)
            for name in run.data.metrics
            for metric in self._client.get_metric_history(run_id, name)
        }

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs params that the run does not have yet."""
        from mlflow.entities import Param

        new = [
            Param(name, as_param(value))
            for name, value in ((metric_name(key), value) for key, value in values.items())
            if name not in self._params and value is not None
        ]
        for start in range(0, len(new), PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_REQUEST])
        self._params |= {param.key for param in new}

    def metrics(self, history: Mapping[str, Mapping[int, float]]) -> None:
        """Logs the (metric, step) pairs that the run does not have yet."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(metric_name(name), float(value), now, step)
            for name, steps in history.items()
            for step, value in steps.items()
            if (metric_name(name), step) not in self._sent
        ]
        for start in range(0, len(new), METRICS_PER_REQUEST):
            part = new[start : start + METRICS_PER_REQUEST]
            self._client.log_batch(self.run_id, metrics=part)
            self._sent |= {(metric.key, metric.step) for metric in part}

    def figures(self, values: Mapping[str, float | None], prefix: str, step: int = 0) -> None:
        """Logs single figures, those that were measured, under names with a prefix."""
        measured = {name: value for name, value in values.items() if value is not None}
        self.metrics({f"{prefix}{name}": {step: value} for name, value in measured.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._client.set_tag(self.run_id, name, str(value))

    def data(
        self, name: str, digest: str, source: str, context: str, rows: int | None = None
    ) -> None:
        """Records a data set by its digest and, where it is known, its number of rows."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = None if rows is None else json.dumps({"num_rows": rows})
        entry = Dataset(name, digest[:36], "local", json.dumps({"uri": source}), profile=profile)
        self._client.log_inputs(
            self.run_id, [DatasetInput(entry, [InputTag("mlflow.data.context", context)])]
        )

    def files(self, path: Path, folder: str | None = None) -> None:
        """Copies a file or a directory to the artifact store."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        elif path.exists():
            self._client.log_artifact(self.run_id, str(path), folder)

    def rename(self, name: str) -> None:
        self._client.update_run(self.run_id, name=name)

    def end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, STATUS.get(status, "FAILED"))


def metric_name(name: str) -> str:
    """`name` with what MLflow refuses replaced."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def as_param(value: Any) -> str:
    """A param's text: lists sorted and joined, at most 6,000 characters."""
    if isinstance(value, list | tuple | set):
        value = ",".join(sorted(str(item) for item in value))
    return str(value)[:6000]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their path's words joined with `_`; None is left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}_")
        elif value is not None:
            flat[prefix + name] = value
    return flat
