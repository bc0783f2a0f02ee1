"""Models: the only place that decides dtype, device and quantization."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from alignflow.builtin import base_model_directory
from alignflow.errors import ArtifactError, RecipeError
from alignflow.files import digest_directory, file_stamps
from alignflow.models.adapter_fit import demand_all_keys, fit_vocabulary
from alignflow.models.reward_head import HEAD_WEIGHT, read_last_attended
from alignflow.recipe import MOVES_THE_BASE, Attention, is_builtin
from alignflow.stages import ADAPTER, MODEL, Record, StageSpec

LIBRARIES = ("trl", "peft", "accelerate", "bitsandbytes", "datasets", "torch")


def quiet_libraries() -> None:
    """Silences what libraries log and draw on a run that goes well."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet() -> warnings.catch_warnings[None]:
    """Hides the deprecations that these libraries set off in one another."""
    return warnings.catch_warnings(action="ignore")


class BaseModel(Record):
    """The frozen base: where it is and what it is."""

    path: str
    source: str
    revision: str | None = None
    digest: str
    tokenizer_digest: str | None = None
    chat_template_digest: str | None = None
    context_length: int | None = None
    model_type: str | None = None
    torch_dtype: str | None = None
    dequantized_from: str | None = None
    """What a GGUF file had most weights in, such as Q4_1."""
    attention: Attention = "auto"
    """How this process loads it; not of the model's identity."""

    @property
    def identity(self) -> dict[str, Any]:
        """What it is, wherever it lies and however it is loaded."""
        return self.model_dump(exclude={"path", "attention", "dequantized_from"})


def read_base(prepare_directory: Path, attention: Attention = "auto") -> BaseModel:
    """The base model a prepare artifact names.

    Its files are hashed again only when a size or a modification time differs from what `prepare`
    saw.

    Raises:
        ArtifactError: It is no longer where it was, or no longer what it was.
    """
    record = json.loads((prepare_directory / "base_model.json").read_text())
    location = json.loads((prepare_directory / "location.json").read_text())
    path = Path(location["path"])
    if is_builtin(record["source"]):  # wherever this package lies now
        path = base_model_directory(record["source"].removeprefix("builtin:"))
    if not (path / "config.json").is_file():
        raise ArtifactError(
            f"The base model {record['source']} is no longer in {path}. Put it back, or delete "
            f"{prepare_directory} to prepare again."
        )
    if not _unchanged(path, location["files"], record["digest"]):
        raise ArtifactError(
            f"The base model {record['source']} in {path} is not the one that the data were "
            f"prepared for (digest {record['digest'][:12]}). Put that one back, or run the recipe "
            "again from the start."
        )
    return BaseModel(path=str(path), attention=attention, **record)


def _unchanged(path: Path, stamped: dict[str, list[int]], digest: str) -> bool:
    """Whether a base model's files are what they were; further files beside them change nothing."""
    stamps = file_stamps(path)
    if all(stamps.get(name) == stamp for name, stamp in stamped.items()):
        return True
    if path.name == digest:  # the Hub's snapshot of a commit, downloaded again
        return stamped.keys() <= stamps.keys()
    return digest_directory(path) == digest


def base_of(spec: StageSpec) -> BaseModel:
    """The base model of a stage: what continued pre-training made, else what `prepare` names.

    Raises:
        ArtifactError: It is no longer where it was, or no longer what it was.
    """
    if "pretrain" not in spec.inputs:
        return read_base(spec.input("data"), spec.compute.attention)
    directory = spec.input("pretrain")
    record = json.loads((directory / "base_model.json").read_text())
    return BaseModel(path=str(directory / MODEL), attention=spec.compute.attention, **record)


def load_tokenizer(prepare_directory: Path) -> Any:
    """The tokenizer with the chat template in force; it has a pad token."""
    tokenizer = AutoTokenizer.from_pretrained(
        str(prepare_directory / "tokenizer"), trust_remote_code=False
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device() -> torch.device:
    """Where models of this process live."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(base: BaseModel, *, dtype: str, quantization: str | None) -> Any:
    """The base model for text."""
    return _load(AutoModelForCausalLM, base.path, dtype, quantization, base.attention)


def load_policy(
    base: BaseModel, stage_directory: Path | None, *, dtype: str, quantization: str | None
) -> Any:
    """What a training stage made, ready to answer; the base itself for None."""
    if stage_directory is None:
        return load_base(base, dtype=dtype, quantization=quantization)
    return _load_trained(AutoModelForCausalLM, base, stage_directory, dtype, quantization)


def load_merged(directory: Path, dtype: str | None = None) -> Any:
    """A merged model, loaded as any user would; of itself in float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ArtifactError: There is none, or it is still marked as quantized.
    """
    config = directory / "config.json"
    if not config.is_file():
        raise ArtifactError(f"{directory} holds no model (no config.json).")
    if "quantization_config" in json.loads(config.read_text()):
        raise ArtifactError(f"{directory}: the merged model is still marked as quantized.")
    dtype = dtype or ("float32" if device().type == "cpu" else "bfloat16")
    return _load(AutoModelForCausalLM, str(directory), dtype, None).eval()


def load_reward_model(
    base: BaseModel, stage_directory: Path, *, dtype: str, quantization: str | None
) -> Any:
    """A reward model: logits of shape [batch, 1]."""
    return _load_trained(
        AutoModelForSequenceClassification, base, stage_directory, dtype, quantization
    )


def load_scorer(
    base: BaseModel, model: Path | None, *, dtype: str, quantization: str | None
) -> Any:
    """A new scalar head on the weights in `model`, a directory; on the base's for None."""
    path = str(model or base.path)
    kind = AutoModelForSequenceClassification
    return _load(kind, path, dtype, quantization, base.attention)


def load_adapter(model: Any, directory: Path, base: BaseModel, *, trainable: bool = False) -> Any:
    """`model` with the adapter in `directory`, and with the vocabulary that it was trained on.

    Raises:
        ArtifactError: The adapter is not there, or does not fit the model.
    """
    check_adapter(directory, base)
    replaces = fit_vocabulary(model, directory)
    try:
        with quiet():
            loaded: Any = PeftModel.from_pretrained(model, str(directory), is_trainable=trainable)
            outcome = loaded.load_adapter(str(directory), "default", is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        raise ArtifactError(
            f"The adapter in {directory} does not fit the base model {base.source}: "
            f"{str(error).splitlines()[0]}. Use an adapter of this base."
        ) from error
    demand_all_keys(outcome, directory)
    loaded.replaces_embeddings = replaces
    return loaded


def check_adapter(directory: Path, base: BaseModel) -> None:
    """Raises ArtifactError when the adapter is not there, names another base or has moved its own."""
    if not (directory / "adapter_config.json").is_file():
        raise ArtifactError(f"{directory} holds no adapter (no adapter_config.json).")
    config = json.loads((directory / "adapter_config.json").read_text())
    started = str(config.get("init_lora_weights")).partition("_niter_")[0]
    if started in MOVES_THE_BASE:
        raise ArtifactError(
            f"The adapter in {directory} belongs to a changed base: {MOVES_THE_BASE[started]}. Save "
            "it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), which "
            "makes it one of the original base."
        )
    named = directory / "base_model.json"
    if named.is_file() and (digest := json.loads(named.read_text())["digest"]) != base.digest:
        raise ArtifactError(
            f"The adapter in {directory} was trained on a base model with digest {digest[:12]}, "
            f"this run's base {base.source} has {base.digest[:12]}. Use an adapter of this base."
        )


def trainable_in(model: Any, dtype: str) -> None:
    """Keeps what trains in `dtype`: TRL casts adapters on NF4 weights to bfloat16.

    A reward model's head, and a whole layer beside adapters, stay in float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = ".modules_to_save." in name or name == HEAD_WEIGHT
            kept = "float32" if whole else dtype
            parameter.data = parameter.data.to(getattr(torch, kept))


def _load_trained(
    kind: Any, base: BaseModel, stage: Path, dtype: str, quantization: str | None
) -> Any:
    """What a training stage made: a whole model, or an adapter on the base."""
    if (stage / MODEL).is_dir():
        return _load(kind, str(stage / MODEL), dtype, None, base.attention)
    model = _load(kind, base.path, dtype, quantization, base.attention)
    return load_adapter(model, stage / ADAPTER, base)


def _load(
    kind: Any, path: str, dtype: str, quantization: str | None, attention: Attention = "auto"
) -> Any:
    """A model in this process; a classifier has one scalar head.

    Raises:
        RecipeError: Transformers has no such model of this architecture, or no such attention.
    """
    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    scores = kind is AutoModelForSequenceClassification
    if scores:
        options["num_labels"] = 1
    if quantization:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            llm_int8_skip_modules=["lm_head", "score"],
        )
        options["device_map"] = {"": device()}
    quiet_libraries()
    with quiet():
        try:
            model = kind.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
                use_safetensors=True,
                **options,
            )
        except (ValueError, ImportError) as error:
            raise RecipeError(
                f"{path} cannot be loaded as {kind.__name__} with compute.attention {attention}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
    _name_experts(model.config.get_text_config())
    if quantization:
        keep_unpacked(model)
    elif device().type != "cpu":
        model = model.to(device())
    return read_last_attended(model, Path(path)) if scores else model


def _name_experts(config: Any) -> None:
    """Lets TRL's router loss ask for `num_experts` where the family calls them local."""
    if hasattr(config, "num_local_experts") and not hasattr(config, "num_experts"):
        kind = type(config)
        kind.attribute_map = {**kind.attribute_map, "num_experts": "num_local_experts"}


def keep_unpacked(model: Any) -> None:
    """Switches off bitsandbytes' in-place repacking on CPUs.

    After it, gradients through the base are dropped without a word and merges are garbage.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
