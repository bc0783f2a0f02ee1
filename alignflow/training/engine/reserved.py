"""Arguments of a trainer that the recipe sets by fields of its own. No torch: `check` reads it too."""

from __future__ import annotations

RESERVED = {
    "output_dir": "the home",
    "per_device_train_batch_size": "batch_size or compute.micro_batch_size",
    "gradient_accumulation_steps": "batch_size or compute.micro_batch_size",
    "gradient_checkpointing": "compute.gradient_checkpointing",
    "activation_checkpointing": "compute.gradient_checkpointing",
    "seed": "the recipe's seed",
    "data_seed": "the recipe's seed",
    "bf16": "tuning.dtype",
    "fp16": "tuning.dtype",
    "use_cpu": "the machine",
    "report_to": "MLflow, always",
    "optim": "optimizer",
    "save_strategy": "save_steps",
    "save_total_limit": "two, always",
    "resume_from_checkpoint": "the newest certified checkpoint, always",
    "packing": "nothing: rows are never joined or cut",
    "num_iterations": "nothing: every update samples anew",
    "steps_per_generation": "nothing: every update samples anew",
    "generation_batch_size": "batch_size",
    "model_init_kwargs": "base_model and tuning",
}
"""Name to the field, or whatever else decides it."""
