"""A stage as a Prefect task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from alignflow.pipeline import tell
from alignflow.recipe import ComputeSection
from alignflow.stages import (
    Artifact,
    StageSpec,
    artifact_directory,
    find,
    forkserver,
    read_manifest,
    run_stage,
)
from tasks.policy import by_stage_key, device_slot, task_options
from tasks.prefect_artifacts import StageArtifacts

CACHED = "Cached"


@task(persist_result=True, result_serializer="json", cache_key_fn=by_stage_key)
def stage_task(spec: StageSpec, recipe: str) -> Any:
    """Runs one stage in a child process, or finds its artifact.

    Args:
        spec: What to do; JSON, so that Prefect shows it.
        recipe: Its name, and whose stage it is, for the keys of what is shown.

    Returns:
        The artifact's directory.
    """
    directory = str(artifact_directory(Path(spec.home), spec.stage, spec.key))
    if find(Path(spec.home), spec.stage, spec.key):
        # Prefect forgot, or never knew: the artifact store is the truth.
        return Completed(name=CACHED, message="The artifact verifies.", data=directory)
    shown = StageArtifacts(recipe, spec)
    log = get_run_logger()

    def on_event(event: Mapping[str, Any]) -> None:
        tell(lambda observer: observer.stage_event(spec, event))
        shown.event(event)
        if event["kind"] in ("message", "error"):
            log.info("%s", event["text"])

    with device_slot(spec.stage):
        artifact = run_stage(spec, on_event=on_event, server=forkserver.current())
    shown.finished(artifact)
    return directory


def complete_stage(
    recipe: str, spec: StageSpec, compute: ComputeSection, finished: Artifact | None, whose: str
) -> tuple[Artifact, bool]:
    """The artifact of a recipe's stage, and whether it was there before; Prefect shows that too.

    Raises:
        AlignflowError: No attempt succeeded.
    """
    options = task_options(spec.stage, compute, finished=finished is not None, whose=whose)
    recipe = f"{recipe} {whose}".strip()
    state: State[Any] = stage_task.with_options(**options)(spec, recipe, return_state=True)
    state.result()  # raises what the last attempt raised
    if finished is not None:
        return finished, state.name == CACHED
    return read_manifest(artifact_directory(Path(spec.home), spec.stage, spec.key)), False
