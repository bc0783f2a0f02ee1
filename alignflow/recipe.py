"""The recipe: what to train, on what, how, and how to judge it. No torch here.

Each field's description stands under it, and is what `alignflow check`, the Prefect form and the
documentation show. Names of hyper-parameters are Transformers' and TRL's; `batch_size` (effective,
over devices and accumulation) and `compute.micro_batch_size` are ours.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignflow.recipe_retrain import RetrainSection
from alignflow.recipe_section import Section

METHODS = ("dpo", "ppo")

TARGET_PRESETS: dict[str, tuple[str, ...]] = {
    "attention-qv": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
}


class ModelSource(Section):
    """Pretrained weights. A plain string `SOURCE` or `SOURCE@REVISION` is accepted too."""

    source: str = Field(min_length=1)
    """`builtin:NAME`, a local directory, or a Hub id such as `Qwen/Qwen3-0.6B`."""

    revision: str | None = None
    """Hub commit, tag or branch. None is the default branch; its commit is recorded."""

    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's own."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            source, _, revision = value.partition("@")
            return {"source": source, "revision": revision or None}
        return value


class DataSource(Section):
    """Rows. A plain string is accepted for a source with nothing else to say."""

    source: str = Field(min_length=1)
    """`builtin:NAME`, `ledger:NAME[@SNAPSHOT]`, a file or glob (.jsonl, .jsonl.gz, .json, .parquet,
    .csv), or a Hub dataset id."""

    revision: str | None = None
    """Hub commit, tag or branch."""

    split: str = "train"
    """Split of a Hub dataset."""

    subset: str | None = None
    """Configuration name of a Hub dataset."""

    weight: float = Field(default=1.0, gt=0, le=1)
    """Share of the source's rows that is used, drawn with the recipe's seed."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Column mapping, `{our name: name in the source}`."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class DataSection(Section):
    """Where rows come from, and how many may be lost."""

    sft: list[DataSource] = Field(default_factory=list)
    """Demonstrations: text, prompt/completion, or chat messages."""

    preferences: list[DataSource] = Field(default_factory=list)
    """Pairs: prompt/chosen/rejected as text or messages, or implicit-prompt dialogues."""

    evaluation: list[DataSource] = Field(default_factory=list)
    """Prompts with a `target` each; never trained on, in whatever source they also stand."""

    general: list[DataSource] = Field(default_factory=list)
    """General text on which forgetting is measured."""

    held_out_share: float = Field(default=0.1, ge=0, le=0.5)
    """Share of preference prompts kept from training to measure the reward model and DPO."""

    max_dropped_share: float = Field(default=0.2, ge=0, le=1)
    """Largest share of a source's rows that may be bad or too long before `prepare` fails."""

    @field_validator("sft", "preferences", "evaluation", "general", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None:
            return []
        return value if isinstance(value, list) else [value]


class TuningSection(Section):
    """Which weights move."""

    mode: Literal["lora", "qlora", "full"] = "lora"
    """`lora`: adapters on frozen weights; `qlora`: on NF4 weights; `full`: every weight."""

    rank: int = Field(default=16, ge=1, le=1024)
    """LoRA rank: 8 to 16 for format and style, 64 to 128 for reasoning."""

    alpha: float | None = Field(default=None, gt=0, le=4096)
    """LoRA alpha; None is twice the rank."""

    target_modules: str | list[str] = "all-linear"
    """`attention-qv`, `attention`, `all-linear`, or a list of module names."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input, a probability."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""

    use_dora: bool = False
    """Decompose the weight into magnitude and direction (DoRA)."""

    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that adapters are trained in. bfloat16 loses small updates."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. `auto`: bfloat16 on a GPU, float32 on a CPU."""

    init_adapter: str | None = None
    """Directory of an adapter that training starts from, on the same base model."""

    @property
    def lora_alpha(self) -> float:
        """Alpha in force."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    @property
    def lora_scaling(self) -> float:
        """Factor on the product of the two adapter matrices."""
        return self.lora_alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    @model_validator(mode="after")
    def _no_head(self) -> Self:
        targets = (
            self.target_modules if isinstance(self.target_modules, list) else [self.target_modules]
        )
        if not targets:
            raise ValueError("target_modules is empty; name modules or use all-linear")
        if "lm_head" in targets:
            raise ValueError(
                "target_modules names lm_head, which TRL's fused loss and the shared reference "
                "cannot train; leave it out (all-linear already does)"
            )
        if self.mode == "qlora" and self.use_dora:
            raise ValueError("use_dora with mode qlora is not supported; use mode lora")
        return self


class TrainingSection(Section):
    """What every training stage has."""

    learning_rate: float = Field(gt=0, lt=1)
    """Peak rate of AdamW. For LoRA about ten times the rate of full tuning."""

    num_train_epochs: float = Field(default=1.0, gt=0, le=1000)
    """Passes over the rows."""

    max_steps: int | None = Field(default=None, ge=1)
    """Updates; None trains for num_train_epochs."""

    batch_size: int = Field(default=16, ge=1)
    """Rows (pairs, for preferences) per update, over all devices and accumulation."""

    max_length: int = Field(default=1024, ge=8)
    """Tokens, prompt plus response. Longer rows are dropped and counted, never cut."""

    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the updates over which the rate rises."""

    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup", "constant"] = "linear"
    """How the rate falls afterwards."""

    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """AdamW's decoupled weight decay."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""

    logging_steps: int = Field(default=5, ge=1)
    """Updates between two logged metrics."""

    save_steps: int = Field(default=200, ge=1)
    """Updates between two certified checkpoints."""

    trainer_args: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of TRL's configuration class of this stage; part of the stage key."""


class SFTSection(TrainingSection):
    """Supervised fine-tuning: the loss is on responses only."""

    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak rate of AdamW."""


class RewardSection(TrainingSection):
    """Reward model: an adapter and a scalar head, Bradley-Terry loss on pairs."""

    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    """Peak rate of AdamW."""

    center_rewards_coefficient: float | None = Field(default=0.01, ge=0)
    """Weight of the penalty that keeps the mean reward near zero; None is off."""


class DPOSection(TrainingSection):
    """Direct preference optimization from the SFT model, which stays as the reference."""

    learning_rate: float = Field(default=2e-5, gt=0, lt=1)
    """Peak rate of AdamW."""

    beta: float = Field(default=0.1, gt=0, le=10)
    """Pull toward the reference, dimensionless. Lower drifts further."""

    loss_type: list[str] = Field(default_factory=lambda: ["sigmoid", "sft"], min_length=1)
    """TRL's loss names. The SFT term keeps the chosen response likely (quickstart: 24 % to 85 %)."""

    loss_weights: list[float] | None = None
    """One weight per loss; None is 1.0 for the first and 0.5 for an SFT term, else 1.0."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels assumed wrong."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} "
                f"losses {self.loss_type}; give one per loss"
            )
        return self

    @property
    def weights(self) -> list[float]:
        """Loss weights in force, one per loss."""
        if self.loss_weights is not None:
            return self.loss_weights
        return [
            0.5 if name == "sft" and len(self.loss_type) > 1 else 1.0 for name in self.loss_type
        ]


class PPOSection(TrainingSection):
    """Proximal policy optimization against the reward model. `batch_size` counts rollouts."""

    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    """Peak rate of the policy's AdamW."""

    value_learning_rate: float | None = Field(default=None, gt=0, lt=1)
    """Peak rate of the value model's AdamW; None is learning_rate."""

    batch_size: int = Field(default=64, ge=2)
    """Rollouts per update."""

    num_ppo_epochs: int = Field(default=2, ge=1)
    """Passes over each batch of rollouts."""

    num_mini_batches: int = Field(default=2, ge=1)
    """Optimizer steps per pass; divides batch_size."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response, in tokens."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the rollouts."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Weight of the per-token KL to the reference."""

    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimator of that KL: k1 is the log-ratio, k3 is never negative."""

    target_kl: float | None = Field(default=None, gt=0)
    """Nats per response that kl_coef is adapted toward; None keeps kl_coef fixed."""

    kl_horizon: float = Field(default=10_000, gt=0)
    """Rollouts over which an adapted kl_coef moves by its error."""

    max_approx_kl: float | None = Field(default=0.1, gt=0)
    """Passes over a batch end early above this divergence from the policy that sampled it."""

    cliprange: float = Field(default=0.2, gt=0)
    """Clip of the probability ratio."""

    cliprange_value: float = Field(default=0.2, gt=0)
    """Clip of the value's step."""

    vf_coef: float = Field(default=0.5, gt=0)
    """Weight of the value loss."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""

    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation."""

    reward_clamp: float = Field(default=4.0, gt=0)
    """Scores, standardized by the first batch, are clamped to this."""

    missing_eos_penalty: float | None = Field(default=3.0, gt=0)
    """A response that does not end scores minus this; None is off."""

    min_reward_accuracy: float = Field(default=0.55, ge=0, le=1)
    """Held-out accuracy that the reward model must reach, its 95 % lower bound above 0.5."""

    logging_steps: int = Field(default=1, ge=1)
    """Updates between two logged metrics."""

    save_steps: int = Field(default=5, ge=1)
    """Updates between two certified checkpoints."""

    @property
    def value_rate(self) -> float:
        """Rate of the value model in force."""
        return self.value_learning_rate or self.learning_rate

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Self:
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"batch_size is {self.batch_size}, which num_mini_batches "
                f"{self.num_mini_batches} does not divide; change one"
            )
        return self


class EvaluationSection(Section):
    """How models are judged, before and after each stage."""

    metrics: list[str] = Field(default_factory=lambda: ["exact_match"])
    """Modules of alignflow.evaluation.metrics (`execution_accuracy`, `exact_match`, `json_validity`, `overlap`), or paths of your own `evaluate` modules. The first is `accuracy`."""

    models: list[Literal["base", "sft", "aligned"]] = Field(
        default_factory=lambda: ["base", "sft", "aligned"]
    )
    """Models that are evaluated."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response, in tokens."""

    batch_size: int = Field(default=64, ge=1)
    """Prompts generated at once."""

    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampled responses."""

    sampled: bool = True
    """Also draw one response per prompt at `temperature`."""

    max_examples: int | None = Field(default=None, ge=1)
    """Prompts used of each group; None is all."""

    json_schema: str | None = None
    """Path of the JSON schema that `json_validity` checks responses against."""

    bootstrap_resamples: int = Field(default=2000, ge=100)
    """Resamples of the 95 % intervals, clustered by prompt."""


class MergeSection(Section):
    """How the adapter becomes part of the weights."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the merged weights; `auto` keeps the base model's."""

    qlora_base: Literal["dequantized", "original"] = "dequantized"
    """For QLoRA: merge into what the adapter was trained on, or into the original weights."""

    max_kl: float = Field(default=1e-3, gt=0)
    """Certificate fails above this KL, in nats, of merged against base plus adapter."""

    min_top1_agreement: float = Field(default=0.99, gt=0, le=1)
    """Certificate fails below this share of equal most likely tokens."""


class ComputeSection(Section):
    """Hardware. Recorded, but not part of a stage's key."""

    micro_batch_size: int | Literal["auto"] = "auto"
    """Rows per forward pass; `auto` starts at the effective batch, and an out-of-memory retry halves it."""

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations to save memory; `auto` is on for a GPU, off for a CPU."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a stage; None is all cores."""

    timeout_seconds: int = Field(default=7 * 24 * 3600, ge=1)
    """A stage that runs longer is stopped and retried."""

    stall_seconds: int = Field(default=3600, ge=10)
    """A stage without progress for this long is stopped and retried."""

    retries: int = Field(default=3, ge=0, le=20)
    """Further attempts of a stage after a failure that may pass."""


class TrackingSection(Section):
    """What MLflow gets."""

    experiment: str | None = None
    """MLflow experiment; None is the recipe's name."""

    registered_model: str | None = None
    """Name the certified merged model is registered under; None is the recipe's name."""

    upload: Literal["merged", "adapter", "reference"] = "adapter"
    """Copied to the artifact store; `reference` only records the path, on storage all can read."""


class Recipe(Section):
    """One pipeline, from data to a merged model."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    """Names the MLflow experiment and the runs: lower-case letters, digits, dots, dashes."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initialization, data order, dropout and sampling."""

    base_model: ModelSource
    """The pretrained weights."""

    data: DataSection
    """Rows to train and to judge on."""

    tuning: TuningSection = Field(default_factory=TuningSection)
    """Which weights move."""

    sft: SFTSection | None = None
    """Supervised fine-tuning; None starts alignment from the base model."""

    reward: RewardSection | None = None
    """Reward model; None trains none."""

    method: Literal["dpo", "ppo", "none"] = "none"
    """Alignment method."""

    dpo: DPOSection | None = None
    """Settings of method dpo."""

    ppo: PPOSection | None = None
    """Settings of method ppo, which needs a reward section too."""

    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    """How models are judged."""

    merge: MergeSection | None = Field(default_factory=MergeSection)
    """How the result is merged; None leaves the adapter."""

    compute: ComputeSection = Field(default_factory=ComputeSection)
    """Hardware."""

    tracking: TrackingSection = Field(default_factory=TrackingSection)
    """MLflow."""

    retrain: RetrainSection | None = None
    """When the deployed flow `retrain` trains again, and what decides about the result."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        for method in METHODS:
            given = getattr(self, method) is not None
            if self.method == method and not given:
                raise ValueError(f"method is {method} but there is no {method} section; add one")
            if self.method != method and given:
                raise ValueError(
                    f"there is a {method} section but method is {self.method}; "
                    f"set `method: {method}` or remove the section"
                )
        if self.method == "ppo" and self.reward is None:
            raise ValueError("method ppo maximizes a reward model; add a reward section")
        if self.sft is None and self.method == "none" and self.reward is None:
            raise ValueError("nothing to train: give sft, reward, or a method")
        if self.sft is not None and not self.data.sft:
            raise ValueError("there is an sft section but data.sft is empty; name a source")
        if (self.reward or self.method in METHODS) and not self.data.preferences:
            raise ValueError(
                "reward and alignment train on preferences but data.preferences is empty; "
                "name a source"
            )
        if self.tracking.upload == "merged" and self.merge is None:
            raise ValueError("tracking.upload is merged but merge is off; use adapter")
        return self

    @property
    def stages(self) -> list[str]:
        """Stages in their order."""
        return [
            "prepare",
            *(["sft"] if self.sft else []),
            *(["reward"] if self.reward else []),
            *([self.method] if self.method != "none" else []),
            *(["evaluate"] if self.data.evaluation or self.data.general else []),
            *(["merge"] if self.merge and (self.sft or self.method != "none") else []),
        ]
