"""The LoRA family: each kind trains, starts where it should, and merges with a certificate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from stage_runs import cases, logs_of, run_and_publish, run_stage, work_of

from alignflow.errors import ArtifactError, DataError, RecipeError
from alignflow.files import sha256_file
from alignflow.merging import AdapterStep, MergeOptions, merge
from alignflow.models.adapters import new_adapter
from alignflow.models.loading import BaseModel, load_adapter, load_base, quiet, read_base
from alignflow.recipe import TuningSection
from alignflow.stages.artifacts import Artifact
from alignflow.stages.layout import EVA_FILE
from alignflow.stages.spec import StageSpec
from alignflow.training.engine import initialization

Make = Callable[..., StageSpec]
EVA = {"initialization": "eva", "rank": 6}
PROBES = ((0, 5, 6, 7, 8, 9), (0, 40, 41, 42))
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"down_proj": 6}, "alpha_pattern": {r"layers\.1\..*q_proj": 3}},
    "layers": {"layers_to_transform": [1]},
    "orthogonal": {"initialization": "orthogonal"},
    "eva": EVA,
    "eva with dora and rslora": {"initialization": "eva", "use_dora": True, "use_rslora": True},
    "bfloat16": {"adapter_dtype": "bfloat16"},
    "loftq": {"mode": "qlora", "initialization": "loftq"},
    "loftq with rslora": {"mode": "qlora", "initialization": "loftq", "use_rslora": True},
}


def base_of(prepared: Artifact) -> BaseModel:
    return read_base(prepared.directory)


def tensors(spec: StageSpec) -> dict[str, torch.Tensor]:
    return load_file(str(work_of(spec) / "output" / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("kind", cases(KINDS, "dora", "patterns", "eva", "bfloat16", "loftq"))
def test_each_kind_trains_and_merges_with_a_passed_certificate(
    training_spec: Make, prepared: Artifact, tmp_path: Path, kind: str
) -> None:
    spec = training_spec("sft", tuning=KINDS[kind], learning_rate=1e-2)
    result = run_stage(spec)
    base, quantized = base_of(prepared), KINDS[kind].get("mode") == "qlora"
    assert any(value.abs().max() > 0 for name, value in tensors(spec).items() if "lora_B" in name)
    certificate = merge(
        Path(base.path),
        [AdapterStep(work_of(spec) / "output" / "adapter")],
        tmp_path / "merged",
        MergeOptions(probes=PROBES, quantization="nf4" if quantized else None),
    )
    assert certificate.status == "passed"
    assert certificate.figures is not None and certificate.figures.kl < 1e-6
    initial = KINDS[kind].get("initialization", "default")
    assert result.params["lora_initialization"] == initial


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([PROBES[0]])).logits


@pytest.mark.parametrize(
    "tuning",
    [{}, {"initialization": "gaussian"}, {"use_dora": True}, {"initialization": "orthogonal"}],
)
def test_a_new_adapter_changes_nothing_and_off_it_is_the_base(
    prepared: Artifact, tuning: dict[str, Any]
) -> None:
    base = base_of(prepared)
    plain = logits(load_base(base, dtype="float32", quantization=None))
    model = new_adapter(
        load_base(base, dtype="float32", quantization=None),
        TuningSection.model_validate({"rank": 4, **tuning}),
        "CAUSAL_LM",
    )
    assert torch.allclose(logits(model), plain, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)


def test_patterns_and_layers_set_rank_alpha_and_place(prepared: Artifact) -> None:
    tuning = TuningSection(
        rank=4,
        rank_pattern={"down_proj": 6},
        alpha_pattern={"q_proj": 3.0},
        layers_to_transform=[1],
    )
    model = load_base(base_of(prepared), dtype="float32", quantization=None)
    adapted = new_adapter(model, tuning, "CAUSAL_LM")
    found = {
        name.removeprefix("base_model.model.model."): (
            module.r["default"],
            module.scaling["default"],
        )
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert {name.split(".")[1] for name in found} == {"1"}
    assert found["layers.1.mlp.down_proj"] == (6, 2.0)
    assert found["layers.1.self_attn.q_proj"] == (4, 0.75)
    assert found["layers.1.self_attn.v_proj"] == (4, 2.0)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"layers_to_transform": [2]}, r"names layer 2; the model has layers 0 to 1"),
        ({"rank_pattern": {"w1": 8}}, r"rank_pattern: 'w1' means none of the modules"),
        (
            {"alpha_pattern": {"q_proj": 8}, "target_modules": ["v_proj"]},
            r"alpha_pattern: 'q_proj' means none",
        ),
    ],
)
def test_a_pattern_or_layer_that_is_not_there_is_refused(
    training_spec: Make, tuning: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_stage(training_spec("sft", tuning=tuning))


def test_eva_starts_from_the_leading_directions_of_the_inputs(
    training_spec: Make, prepared: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate of almost 0 leaves A at its start; it is compared with a plain SVD of the inputs."""
    seen: list[torch.Tensor] = []
    original = initialization.Batches.forward

    def forward(self: Any, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        layer = model.get_base_model().model.layers[1].mlp.down_proj
        mask = initialization.read_tokens(inputs)
        hook = layer.register_forward_hook(lambda _, given, __: seen.append(given[0][mask]))
        original(self, model, inputs)
        hook.remove()

    monkeypatch.setattr(initialization.Batches, "forward", forward)
    spec = training_spec("sft", tuning=EVA, learning_rate=1e-9)
    result = run_stage(spec)
    inputs = torch.cat(seen[: len(seen) // 2 * 2])
    directions = torch.linalg.svd(inputs - inputs.mean(dim=0), full_matrices=False).Vh
    a = next(v for n, v in tensors(spec).items() if "layers.1.mlp.down_proj.lora_A" in n)
    inside = (a @ directions[: len(a)].T).norm(dim=1)
    assert inside.min() > 0.9, inside
    assert torch.allclose(a.norm(dim=1), torch.ones(len(a)), atol=1e-3)
    ranks = (result.params["lora_rank_lowest"], result.params["lora_rank_highest"])
    assert ranks[0] < 6 < ranks[1]


def test_a_later_attempt_takes_the_first_ones_eva_vectors_and_ends_the_same(
    training_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignflow.training.engine.callbacks import Report

    options = {"tuning": EVA, "max_steps": 6, "save_steps": 2}
    whole = training_spec("sft", home=tmp_path / "whole", **options)
    run_stage(whole)
    broken = training_spec("sft", home=tmp_path / "broken", **options)
    original = Report.on_step_end

    def fail(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Report, "on_step_end", fail)
    with pytest.raises(KeyboardInterrupt):
        run_stage(broken)
    monkeypatch.setattr(Report, "on_step_end", original)
    monkeypatch.delattr(initialization, "get_eva_state_dict")
    run_stage(broken, attempt=2)
    file = "output/adapter/adapter_model.safetensors"
    assert sha256_file(work_of(broken) / file) == sha256_file(work_of(whole) / file)
    assert "Continues from step 2." in (work_of(broken) / "events.jsonl").read_text()


def test_eva_with_too_few_tokens_says_how_many_it_needs(training_spec: Make) -> None:
    tuning = {"initialization": "eva", "rank": 512}
    with pytest.raises(DataError, match=r"eva needs 1024 tokens .* 48 rows have \d+"):
        run_stage(training_spec("sft", tuning=tuning))


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_eva_reads_pairs_where_there_is_no_sft(training_spec: Make, stage: str) -> None:
    spec = training_spec(stage, tuning=EVA)
    result = run_stage(spec)
    assert (work_of(spec) / EVA_FILE).is_file()
    assert result.params["lora_rank_highest"] > 6
    if stage == "dpo":
        assert result.params["reference_logps_computed"] == 60


def test_after_sft_with_eva_the_reward_model_has_its_ranks_and_weights(
    training_spec: Make, prepared: Artifact, tmp_path: Path
) -> None:
    sft = run_and_publish(training_spec("sft", tuning=EVA, home=tmp_path / "sft"))
    spec = training_spec("reward", tuning=EVA, sft=sft, learning_rate=1e-9, max_steps=1)
    run_stage(spec)
    before = load_file(str(sft.directory / "adapter" / "adapter_model.safetensors"))
    after = tensors(spec)
    assert len({len(value) for name, value in before.items() if "lora_A" in name}) > 1
    assert all((after[name] - value).abs().max() < 1e-6 for name, value in before.items())


def test_loftq_is_near_the_best_that_its_rank_can_restore(prepared: Artifact) -> None:
    from bitsandbytes.functional import dequantize_4bit

    base = base_of(prepared)
    plain = load_base(base, dtype="float32", quantization=None)
    model = load_base(base, dtype="float32", quantization="nf4")
    without = (logits(model) - logits(plain)).norm()
    tuning = TuningSection(mode="qlora", rank=8, alpha=24, initialization="loftq")
    adapted = new_adapter(model, tuning, "CAUSAL_LM")
    layer = adapted.base_model.model.model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == 3.0
    weight = layer.base_layer.weight
    lost = plain.model.layers[0].mlp.up_proj.weight - dequantize_4bit(
        weight.data, weight.quant_state
    )
    restored = 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    best = torch.linalg.svdvals(lost)[8:].norm()
    assert best * 0.999 < (lost - restored).norm() < best * 1.05 < lost.norm()
    assert (logits(adapted) - logits(plain)).norm() < 0.9 * without


def test_dpo_from_a_loftq_start_has_that_start_as_reference(training_spec: Make) -> None:

    tuning = {"mode": "qlora", "initialization": "loftq"}
    spec = training_spec("dpo", tuning=tuning, loss_type="sigmoid", warmup_ratio=0)
    run_stage(spec)
    first = logs_of(spec)[0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_with_lora_plus_the_first_step_of_b_is_longer_by_the_ratio(training_spec: Make) -> None:
    """The first step of AdamW moves a weight by the rate; A has no gradient while B is zero."""
    options = {"max_steps": 1, "warmup_ratio": 0, "lr_scheduler_type": "constant"}
    for ratio, expected in ((None, 1e-3), (16.0, 16e-3)):
        spec = training_spec("sft", tuning={"lora_plus_ratio": ratio}, **options)
        run_stage(spec)
        steps = [value.abs().max() for name, value in tensors(spec).items() if "lora_B" in name]
        assert max(steps) == pytest.approx(expected, rel=1e-2)


def test_an_adapter_that_moved_its_base_is_refused(
    training_spec: Make, prepared: Artifact, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = base_of(prepared)
    model = load_base(base, dtype="float32", quantization=None)
    config = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"])
    with quiet():
        get_peft_model(model, config).save_pretrained(str(tmp_path / "pissa"))
    with pytest.raises(ArtifactError, match="PiSSA takes the principal part out"):
        load_adapter(model, tmp_path / "pissa", base)
