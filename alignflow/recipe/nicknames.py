"""What other trainers call the fields of a recipe: TRL and Transformers, Axolotl, LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Sequence

_THEIRS: dict[str, str] = {
    "base_model": "model model_name model_name_or_path model_id pretrained_model base_model_name",
    "base_model.chat_template": "chat_template template chat_template_path jinja_template",
    "base_model.template_arguments": "chat_template_kwargs enable_thinking",
    "data.sft": "dataset datasets dataset_name dataset_path train_dataset train_file train_data",
    "data.evaluation": "eval_dataset eval_datasets test_datasets validation_file val_set_size eval",
    "data.trained_turns": "train_on_inputs roles_to_train assistant_only_loss completion_only_loss",
    "sft.learning_rate": "lr rate peak_lr",
    "sft.num_train_epochs": "epochs num_epochs epoch n_epochs",
    "sft.max_steps": "steps num_steps max_train_steps total_steps",
    "sft.batch_size": "batch effective_batch_size total_batch_size global_batch_size "
    "gradient_accumulation_steps gradient_accumulation train_batch_size",
    "sft.max_length": "max_seq_length max_seq_len sequence_len seq_len cutoff_len sequence_length "
    "model_max_length max_sequence_length context_length max_prompt_length",
    "sft.warmup_ratio": "warmup warmup_steps",
    "sft.lr_scheduler_type": "lr_scheduler scheduler scheduler_type lr_schedule",
    "sft.weight_decay": "wd decay",
    "sft.optimizer": "optim optimiser",
    "sft.max_grad_norm": "gradient_clipping grad_clip clip_grad_norm",
    "sft.save_steps": "save_strategy saves_per_epoch save_every",
    "sft.logging_steps": "log_steps log_every logging_strategy",
    "tuning.mode": "adapter finetuning_type load_in_4bit load_in_8bit quantization_bit use_peft peft",
    "tuning.rank": "r lora_r lora_rank",
    "tuning.alpha": "lora_alpha",
    "tuning.dropout": "lora_dropout",
    "tuning.target_modules": "lora_target lora_target_modules lora_target_linear targets modules",
    "tuning.use_dora": "dora peft_use_dora",
    "tuning.use_rslora": "rslora peft_use_rslora",
    "tuning.lora_plus_ratio": "loraplus_lr_ratio",
    "tuning.init_adapter": "adapter_name_or_path lora_model_dir resume_adapter",
    "tuning.dtype": "bf16 fp16 torch_dtype precision compute_dtype",
    "dpo.beta": "dpo_beta pref_beta rl_beta kl_beta",
    "dpo.loss_type": "pref_loss loss",
    "method": "rl algorithm alignment stage trainer",
    "compute.micro_batch_size": "micro_batch_size per_device_train_batch_size per_device_batch_size",
    "compute.gradient_checkpointing": "gradient_checkpointing use_gradient_checkpointing",
    "compute.attention": "attn_implementation flash_attention flash_attn sdp_attention",
    "evaluation.max_new_tokens": "max_tokens max_completion_length",
    "evaluation.metrics": "metric compute_metrics eval_metrics",
    "seed": "random_seed data_seed",
    "name": "run_name experiment_name project_name",
    "tracking.experiment": "mlflow_experiment_name experiment wandb_project",
    "tracking.registered_model": "hub_model_id registered_name",
}
FIELDS = {theirs: ours for ours, names in _THEIRS.items() for theirs in names.split()}
"""Another's name to the field it means, by its place in the recipe."""


def meant(name: str, known: Sequence[str], homes: Sequence[str]) -> str | None:
    """The field that somebody means who writes `name` in a section that has the fields `known`.

    Args:
        name: As it is written.
        known: Fields of the section it stands in.
        homes: Places of the fields of this name in other sections.
    """
    place = FIELDS.get(name.lower().replace("-", "_"))
    if place is None:
        return homes[0] if homes else None
    field = place.rpartition(".")[2]
    return field if field in known else place
