"""What a stage starts from: the SFT stage's result or the base, and a champion's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from alignflow.errors import ArtifactError
from alignflow.models import (
    check_adapter,
    load_adapter,
    load_base,
    load_policy,
    new_adapter,
    put_adapter,
)
from alignflow.stages import ADAPTER, ADAPTER_WEIGHTS, MODEL
from alignflow.training.engine.job import Job


def sft_source(job: Job[Any]) -> tuple[Path | None, Path | None]:
    """(adapter directory, model directory) that a stage after SFT starts from."""
    if job.sft is not None:
        adapter, model = job.sft / ADAPTER, job.sft / MODEL
        return (adapter, None) if adapter.is_dir() else (None, model)
    if job.tuning.init_adapter and job.tuning.mode != "full":
        return Path(job.tuning.init_adapter), None
    return None, None


def starting_policy(job: Job[Any]) -> Any:
    """The SFT stage's result, the adapter that the recipe names, or the base with a new one."""
    adapter, sft_model = sft_source(job)
    if sft_model is not None:
        return load_policy(job.base, job.sft, dtype=job.weights_dtype, quantization=None)
    if adapter is None or job.tuning.mode == "full":
        return base_to_tune(job)
    model = load_base(job.base, dtype=job.weights_dtype, quantization=job.quantization)
    return load_adapter(model, adapter, job.base, trainable=True)


def base_to_tune(job: Job[Any]) -> Any:
    """The base, with a new adapter unless all of it trains."""
    model = load_base(job.base, dtype=job.weights_dtype, quantization=job.quantization)
    return model if job.tuning.mode == "full" else new_adapter(model, job.tuning, "CAUSAL_LM")


def drop_reference(model: Any) -> None:
    """Deletes the frozen copy of the start that TRL made of an adapter; the policy's stays."""
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
        model.set_adapter("default")


def continue_from_champion(model: Any, job: Job[Any]) -> None:
    """Gives the policy the champion's weights, where a retrain continues one.

    What the stage made of its own start (the reference, its log-probabilities) stays as it is.

    Raises:
        ArtifactError: They do not fit the policy.
    """
    directory = job.champion
    if directory is None:
        return
    if job.tuning.mode == "full":
        weights = load_policy(job.base, directory, dtype=job.weights_dtype, quantization=None)
        model.load_state_dict(weights.state_dict())
        return
    check_adapter(directory / ADAPTER, job.base)
    state = load_file(str(directory / ADAPTER / ADAPTER_WEIGHTS))
    try:
        put_adapter(model, state, directory / ADAPTER)
    except ArtifactError as error:
        raise ArtifactError(
            f"{directory}: the champion's adapter does not fit the policy ({error.message}). The "
            "recipe's rank or target modules have changed; retrain.start_from: base trains a new one."
        ) from error
    job.events.message(f"continues the policy in {directory}")
