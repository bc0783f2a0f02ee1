"""A retrain continues the champion: its weights become the policy's, the reference stays."""

from __future__ import annotations

from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from alignflow.errors import ArtifactError
from alignflow.models.loading import ADAPTER, check_adapter, load_policy, quiet
from alignflow.training.engine.common import Job


def continue_from_champion(model: Any, job: Job[Any]) -> None:
    """Gives the policy the weights of the role `init`, where a retrain continues a champion.

    What the stage made of its own start (the reference, its log-probabilities) stays as it is.

    Raises:
        ArtifactError: They do not fit the policy.
    """
    if "init" not in job.spec.inputs:
        return
    directory = job.spec.input("init")
    if job.tuning.mode == "full":
        weights = load_policy(job.base, directory, dtype=job.weights_dtype, quantization=None)
        model.load_state_dict(weights.state_dict())
        return
    check_adapter(directory / ADAPTER, job.base)
    state = load_file(str(directory / ADAPTER / "adapter_model.safetensors"))
    try:
        with quiet():
            outcome: Any = set_peft_model_state_dict(model, state, adapter_name="default")
        misfit = [*outcome.unexpected_keys][:1]
    except RuntimeError as error:
        misfit = [str(error).splitlines()[-1].strip()]
    if misfit:
        raise ArtifactError(
            f"{directory}: the champion's adapter does not fit the policy ({misfit[0]}). The recipe's "
            "rank or target modules have changed; retrain.start_from: base trains a new one."
        )
    job.events.message(f"continues the policy in {directory}")
