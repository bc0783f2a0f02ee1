"""Writing what was trained, and saying what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from alignflow.files import atomic_write_json
from alignflow.models import BaseModel, quiet, rounded_to
from alignflow.stages import ADAPTER, MODEL
from alignflow.training.engine.arguments import gradient_checkpointing
from alignflow.training.engine.job import Job


def save(model: Any, job: Job[Any]) -> Path:
    """Writes `adapter/` or `model/` of the stage's output; equal weights, equal bytes."""
    is_adapter = isinstance(model, PeftModel)
    directory = job.output / (ADAPTER if is_adapter else MODEL)
    if is_adapter:
        save_adapter(model, directory, job.base, job.quantization)
        return _with_tokenizer(directory, job)
    with quiet():
        dtype = "bfloat16" if job.weights_dtype == "bfloat16" else job.dtype
        rounded_to(model, getattr(torch, dtype)).save_pretrained(str(directory))
    return _with_tokenizer(directory, job)


def _with_tokenizer(directory: Path, job: Job[Any]) -> Path:
    """Puts the tokenizer, chat template and generation config in force beside what was trained."""
    shutil.copytree(job.data.tokenizer, directory, dirs_exist_ok=True)
    return directory


def save_adapter(
    model: PeftModel, directory: Path, base: BaseModel, quantization: str | None
) -> Path:
    """Writes an adapter without what changes from run to run: order of sets, paths, a card.

    Embeddings stand in it where those that it was loaded with did. Beside it stands what it was
    trained on, which `alignflow merge` merges it into wherever it goes.
    """
    embeddings = bool(getattr(model, "replaces_embeddings", False))
    options: Any = {"selected_adapters": ["default"], "save_embedding_layers": embeddings}
    with quiet():
        model.save_pretrained(str(directory), **options)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = dict(sorted(json.loads(path.read_text()).items()))
    for name in ("target_modules", "modules_to_save"):
        config[name] = sorted(config[name]) if config[name] else config[name]
    config["base_model_name_or_path"] = base.source
    atomic_write_json(path, config)
    trained_on = {"source": base.source, "digest": base.digest, "quantization": quantization}
    atomic_write_json(directory / "base_model.json", trained_on)
    return directory


def parameters(model: Any, job: Job[Any], micro_batch: int, accumulated: int) -> dict[str, Any]:
    """What MLflow gets of a training stage; `accumulated` micro-batches are one batch."""
    trainable, total = counts(model)
    values: dict[str, Any] = {
        **job.tuning.logged(),
        "dtype": job.dtype,
        "trainable_params": trainable,
        "total_params": total,
        "trainable_percent": round(100 * trainable / total, 4),
        "base_model": job.base.source,
        "base_model_digest": job.base.digest,
        "seed": job.spec.seed,
        "gradient_checkpointing": gradient_checkpointing(job.spec.compute),
        "micro_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulated,
        "torch_threads": torch.get_num_threads(),
        **job.section.model_dump(mode="json", exclude={"trainer_args"}),
        **{f"trainer_args_{name}": value for name, value in job.section.trainer_args.items()},
        **{f"input_{role}_digest": given.digest for role, given in job.spec.inputs.items()},
    }
    return values | (_adapter_parameters(model) if isinstance(model, PeftModel) else {})


def _adapter_parameters(model: PeftModel) -> dict[str, Any]:
    """Of the adapter that is there: one that a stage continues may differ from the recipe's."""
    config: Any = model.peft_config["default"]
    scale = config.r**0.5 if config.use_rslora else config.r
    targeted: Any = model.base_model.targeted_module_names
    resolved = sorted({name.rpartition(".")[2] for name in targeted})
    ranks = [module.r["default"] for module in model.modules() if isinstance(module, LoraLayer)]
    return {
        "lora_rank": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_scaling": config.lora_alpha / scale,
        "lora_dropout": config.lora_dropout,
        "lora_target_modules_resolved": ",".join(resolved),
        "lora_modules": len(ranks),
        "lora_rank_lowest": min(ranks),
        "lora_rank_highest": max(ranks),
        "lora_use_rslora": config.use_rslora,
        "lora_use_dora": config.use_dora,
    }


def counts(model: Any) -> tuple[int, int]:
    """Trainable and all parameters; packed 4-bit weights count as what they stand for."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
