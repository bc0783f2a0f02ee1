"""The certificate, NF4 bases, chains, weighted sums, shards and types."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from merging_cases import by_peft, differing, family, load, write_adapter, write_base
from peft import PeftModel

from alignflow.commands.merge import merge as merge_command
from alignflow.commands.merge import shown_progress
from alignflow.errors import AlignflowError, ArtifactError, CertificateError, RecipeError
from alignflow.files import digest_directory
from alignflow.merging import (
    AdapterStep,
    MergeOptions,
    merge,
    plan,
)
from alignflow.merging.certificate import read_certificate
from alignflow.merging.planning import MergePlan
from alignflow.merging.verifying import comparison
from alignflow.merging.verifying.comparison import verify

FAST = MergeOptions(verify=False)
LINEAR: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(family("llama"), tmp_path_factory.mktemp("base") / "base", shard="20KB")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter", **LINEAR)


@pytest.fixture(scope="module")
def second(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("second") / "adapter"
    return write_adapter(base, directory, seed=7, r=2, target_modules=["q_proj", "up_proj"])


def test_a_merge_in_float32_passes_and_a_foreign_result_fails(
    base: Path, adapter: Path, second: Path, tmp_path: Path
) -> None:
    options = MergeOptions(dtype="float32")
    certificate = merge(base, [AdapterStep(adapter)], tmp_path / "out", options)
    assert certificate.status == "passed"
    assert certificate.figures is not None and certificate.figures.kl < 1e-6
    assert certificate.figures.greedy_agreement == 1.0
    assert json.loads((tmp_path / "out/merge_certificate.json").read_text())["status"] == "passed"
    foreign = verify(base, [AdapterStep(second)], tmp_path / "out", [[1, 2, 3, 4]])
    assert foreign.kl > 1e-3


def test_the_command_merges_dry_runs_and_refuses_a_failed_certificate(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    merge_command(str(base), str(adapter), out, dry_run=True)
    assert "14 of 21 tensors change" in capsys.readouterr().out and not out.exists()
    merge_command(str(base), str(adapter), out, no_verify=True)
    done = read_certificate(out)
    assert done is not None and done.status == "unverified"
    merge_command(str(base), str(adapter), out)
    checked = read_certificate(out)
    assert checked is not None and checked.status == "passed" and checked.files == done.files
    assert "vllm serve" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="ADAPTER=WEIGHT"):
        merge_command(str(base), str(adapter), out, combine=["x"])
    real = comparison.compare
    monkeypatch.setattr(comparison, "compare", lambda *a: real(*a).model_copy(update={"kl": 1.0}))
    with pytest.raises(CertificateError, match="KL 1 nats"):
        merge_command(str(base), str(adapter), tmp_path / "other")


def test_a_hub_id_is_merged_from_its_snapshot_on_this_disk(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "c" * 40
    place = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(base, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    merge_command("org/tiny", str(adapter), tmp_path / "out")
    done = read_certificate(tmp_path / "out")
    assert done is not None and done.status == "passed" and done.base["source"] == "org/tiny"
    assert differing(by_peft(base, adapter), tmp_path / "out") == []
    with pytest.raises(RecipeError, match="no snapshot of it could be had"):
        merge_command("org/absent", str(adapter), tmp_path / "other")


def test_the_bar_shows_bytes_and_nothing_is_shown_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown_progress() as progress:
        assert progress is None
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with shown_progress() as progress:
        assert progress is not None
        progress(500_000_000, 1_000_000_000)
    assert "0.5/1.0 GB" in capsys.readouterr().err


def test_shards_and_index_are_kept_and_blocks_do_not_change_a_bit(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    expected = by_peft(base, adapter)
    for size in (256, 4 << 20):
        out = tmp_path / str(size)
        merge(base, [AdapterStep(adapter)], out, MergeOptions(verify=False, block_bytes=size))
        assert differing(expected, out) == []
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1
        assert not (out / ".merge").exists()


def test_another_type_is_merged_in_float32_and_cast_last(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    options = MergeOptions(verify=False, dtype="float16")
    merge(base, [AdapterStep(adapter)], tmp_path / "out", options)
    wide = by_peft(base, adapter, dtype=torch.float32)
    expected = {name: tensor.to(torch.float16) for name, tensor in wide.items()}
    assert differing(expected, tmp_path / "out") == []


def test_an_adapter_trained_on_nf4_merges_into_what_it_was_trained_on(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = MergeOptions(verify=False, dtype="float32", quantization="nf4")
    merge(base, [AdapterStep(adapter)], tmp_path / "out", options)
    from alignflow.models.loading import BaseModel, load_base

    record = BaseModel(path=str(base), source="base", digest="")
    quantized = load_base(record, dtype="float32", quantization="nf4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = quantized.dequantize().to(torch.float32)
        merged = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload()
    assert differing(dict(merged.state_dict()), tmp_path / "out") == []
    probes = [[1, 2, 3, 9, 4]]
    figures = verify(base, [AdapterStep(adapter)], tmp_path / "out", probes, "nf4")
    assert figures.kl < 1e-6 and figures.latency_ratio is None
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1000)
    streamed = verify(base, [AdapterStep(adapter)], tmp_path / "out", probes, "nf4")
    assert streamed.streamed and streamed.kl < 1e-6
    plain = verify(base, [AdapterStep(adapter)], tmp_path / "out", probes)
    assert plain.kl > 10 * streamed.kl, "on the original weights the adapter is another model"


def test_an_adapter_of_another_base_of_the_same_shape_gets_no_certificate(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    (adapter / "base_model.json").write_text(json.dumps({"digest": "0" * 64}))
    try:
        with pytest.raises(ArtifactError, match="trained on a base model with digest 000000000000"):
            merge(base, [AdapterStep(adapter)], tmp_path / "out", MergeOptions(verify=False))
        assert not (tmp_path / "out" / "merge_certificate.json").exists()
        (adapter / "base_model.json").write_text(json.dumps({"digest": digest_directory(base)}))
        merge(base, [AdapterStep(adapter)], tmp_path / "out", MergeOptions(verify=False))
    finally:
        (adapter / "base_model.json").unlink()


def test_a_nan_in_a_tensor_that_is_only_copied_fails_the_certificate(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    model = load(base)
    model.get_input_embeddings().weight.data[3, 0] = float("nan")
    model.save_pretrained(str(tmp_path / "broken"))
    certificate = merge(tmp_path / "broken", [AdapterStep(adapter)], tmp_path / "out", FAST)
    assert certificate.status == "failed" and not certificate.finite


def test_a_file_that_the_disk_changed_gets_no_certificate(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("alignflow.merging.certified_merge")
    writes = module.write_weights

    def damaged(planned: MergePlan, out: Path, *rest: Any) -> Any:
        written = writes(planned, out, *rest)
        file = next(out.glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return written

    monkeypatch.setattr(module, "write_weights", damaged)
    with pytest.raises(ArtifactError, match="The disk or the file system lost data"):
        merge(base, [AdapterStep(adapter)], tmp_path / "out", MergeOptions())
    assert not (tmp_path / "out" / "merge_certificate.json").exists()


def test_the_certificate_says_how_far_each_way_is_from_the_adapter_on_nf4(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    found = {}
    for way in ("dequantized", "original"):
        options = MergeOptions(quantization="nf4", qlora_base=way)
        certificate = merge(base, [AdapterStep(adapter)], tmp_path / way, options)
        assert certificate.figures is not None and way[:8] in certificate.arithmetic
        assert 0 < certificate.figures.top1_agreement <= 1
        found[way] = certificate.figures
    assert found["dequantized"].kl < found["original"].kl / 3
    assert found["dequantized"].max_logp_difference < found["original"].max_logp_difference


def test_weighted_deltas_are_peft_s_cat(
    base: Path, adapter: Path, second: Path, tmp_path: Path
) -> None:
    step = AdapterStep(adapter, 0.7, ((second, -0.4),))
    merge(base, [step], tmp_path / "out", MergeOptions(verify=False, dtype="float32"))
    # In float32: PEFT rounds the combined factors to the base's type, which loses digits in bf16.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = PeftModel.from_pretrained(load(base, dtype=torch.float32), str(adapter))
        model.load_adapter(str(second), "second")
        model.add_weighted_adapter(["default", "second"], [0.7, -0.4], "both", "cat")
        model.set_adapter("both")
        expected = dict(model.merge_and_unload().state_dict())
    assert differing(expected, tmp_path / "out") == []


def test_a_chain_gives_the_bits_of_one_merge_after_another(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    merge(base, [AdapterStep(adapter)], first, FAST)
    then = write_adapter(first, tmp_path / "then", seed=5, r=2, target_modules=["q_proj"])
    steps = [AdapterStep(adapter), AdapterStep(then)]
    merge(base, steps, tmp_path / "out", FAST)
    assert differing(by_peft(first, then), tmp_path / "out") == []
    assert verify(base, steps, tmp_path / "out", [[5, 6, 7]]).kl < 1e-3
    with pytest.raises(ArtifactError, match="trained on the merged model"):
        plan(base, [AdapterStep(then)], FAST)
    half = AdapterStep(adapter, 0.5)
    with pytest.raises(ArtifactError, match=r"a merge of \w+ \(weight 1.0\); here .* 0.5"):
        plan(base, [half, AdapterStep(then)], FAST)
    with pytest.raises(ArtifactError, match="in another way"):
        plan(base, steps, MergeOptions(verify=False, dtype="float32"))
    other = write_base(family("llama"), tmp_path / "other", shard="20KB", seed=9)
    with pytest.raises(ArtifactError, match=f"{other} is another one"):
        merge(other, steps, tmp_path / "foreign", FAST)
    (then / "base_model.json").write_text(json.dumps({"quantization": "nf4"}))
    with pytest.raises(RecipeError, match="with QLoRA on the preceding result"):
        plan(base, steps, FAST)
    continued = write_adapter(base, tmp_path / "continued", seed=6, **LINEAR)
    with pytest.raises(ArtifactError, match="continues another is merged alone"):
        plan(base, [AdapterStep(adapter), AdapterStep(continued)], FAST)


def test_a_whole_model_passes_through_verified(base: Path, tmp_path: Path) -> None:
    certificate = merge(base, [], tmp_path / "out")
    assert certificate.status == "passed" and certificate.adapters == []
    assert differing(dict(load(base).state_dict()), tmp_path / "out") == []


def test_a_resized_vocabulary_is_carried_into_the_config(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(104)
        model.save_pretrained(str(tmp_path / "resized"))
        adapter = write_adapter(
            tmp_path / "resized",
            tmp_path / "adapter",
            r=2,
            target_modules=["q_proj"],
            modules_to_save=["embed_tokens", "lm_head"],
        )
    certificate = merge(base, [AdapterStep(adapter)], tmp_path / "out")
    assert certificate.status == "passed"
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 104
    assert differing(by_peft(tmp_path / "resized", adapter), tmp_path / "out") == []
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1000)
    beyond = merge(base, [AdapterStep(adapter)], tmp_path / "beyond")
    assert beyond.status == "passed" and beyond.figures is not None and beyond.figures.streamed


def test_a_chain_that_parts_a_tied_embedding_and_head_is_certified(tmp_path: Path) -> None:
    base = write_base(family("llama", tie_word_embeddings=True), tmp_path / "base")
    first = write_adapter(base, tmp_path / "first", r=2, target_modules=["embed_tokens", "q_proj"])
    merge(base, [AdapterStep(first)], tmp_path / "merged", FAST)
    then = write_adapter(tmp_path / "merged", tmp_path / "then", r=2, target_modules=["v_proj"])
    certificate = merge(base, [AdapterStep(first), AdapterStep(then)], tmp_path / "out")
    assert certificate.figures is not None and certificate.figures.kl < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "targets"),
    [
        ("llama", {}, ["q_proj", "down_proj"]),
        ("qwen3", {"tie_word_embeddings": True}, ["v_proj", "up_proj"]),
        ("qwen2", {}, ["q_proj", "k_proj"]),
        ("gemma", {}, ["o_proj", "gate_proj"]),
        ("gpt2", {}, ["c_attn", "c_fc"]),
    ],
)
def test_logits_layer_by_layer_are_those_of_the_loaded_model(
    name: str, changes: dict[str, Any], targets: list[str], tmp_path: Path
) -> None:
    base = write_base(family(name, **changes), tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", r=4, target_modules=targets)
    streamed, expected = both_ways(base, adapter)
    assert torch.equal(streamed, expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_fused_experts_are_put_together_layer_by_layer(name: str, tmp_path: Path) -> None:
    """DeepSeek routes by a buffer of the files, which is read too."""
    base = write_base(family(name), tmp_path / "base", shard="20KB")
    fused = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    target = "o_proj" if name == "deepseek_v3" else "q_proj"
    adapter = write_adapter(
        base, tmp_path / "adapter", r=2, target_modules=[target], target_parameters=fused
    )
    assert torch.equal(*both_ways(base))
    assert torch.equal(*both_ways(base, adapter))


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head", "input_layernorm"]},
        {"trainable_token_indices": {"embed_tokens": [2, 5]}},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"use_rslora": True, "rank_pattern": {"q_proj": 3}},
    ],
)
def test_every_kind_of_adapter_is_computed_layer_by_layer(
    base: Path, lora: dict[str, Any], tmp_path: Path
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **{**LINEAR, **lora})
    streamed, expected = both_ways(base, adapter)
    assert torch.equal(streamed, expected)


def both_ways(base: Path, adapter: Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits layer by layer, and of the model as PEFT loads it in float32."""
    from alignflow.merging.verifying.reference import streamed_logits, streamed_model

    ids = [1, 2, 3, 4, 5]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model: Any = load(base, dtype=torch.float32).eval()
        if adapter:
            model = PeftModel.from_pretrained(model, str(adapter)).eval()
        expected = model(input_ids=torch.tensor([ids])).logits[0]
    steps = [AdapterStep(adapter)] if adapter else []
    return streamed_logits(streamed_model(base, steps), [ids])[0], expected


def test_probes_of_unequal_length_give_the_logits_of_each_alone(base: Path, adapter: Path) -> None:
    from alignflow.merging.verifying.reference import streamed_logits, streamed_model

    probes = [[1, 2, 3, 4, 5, 6, 7], [8, 9]]
    model = streamed_model(base, [AdapterStep(adapter)])
    together = streamed_logits(model, probes)
    for probe, logits in zip(probes, together, strict=True):
        [alone] = streamed_logits(model, [probe])
        assert logits.shape == alone.shape
        torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)


def test_probes_are_cut_so_that_their_logits_fit(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(base, [AdapterStep(adapter)], tmp_path / "out", FAST)
    monkeypatch.setattr(comparison, "LOGITS_BYTES", 4 * 96 * 2 * 3)
    probes = [list(range(4)), list(range(9))]
    assert comparison.probe_ids(tmp_path / "out", probes) == [[0, 1, 2, 3], [0, 1]]


def test_chains_and_weighted_sums_beyond_the_memory_are_certified_layer_by_layer(
    base: Path, adapter: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    rooted = write_adapter(
        base, tmp_path / "rooted", r=3, use_rslora=True, target_modules=["q_proj"]
    )
    sum_of_three = AdapterStep(adapter, 0.7, ((second, -0.4), (rooted, 0.5)))
    wide = MergeOptions(verify=False, dtype="float32")
    merge(base, [sum_of_three], first, wide)
    then = write_adapter(first, tmp_path / "then", seed=5, r=2, target_modules=["q_proj"])
    whole = [sum_of_three, AdapterStep(then)]
    merge(base, whole, tmp_path / "out", wide)
    in_memory = verify(base, whole, tmp_path / "out", [[5, 6, 7]])
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1000)
    streamed = verify(base, whole, tmp_path / "out", [[5, 6, 7]])
    assert streamed.streamed and not in_memory.streamed
    assert in_memory.kl < 1e-6 and in_memory.latency_ratio is not None
    assert in_memory.latency_ratio > 0
    assert streamed.kl < 1e-6 and streamed.top1_agreement == 1
    alone = verify(base, whole[:1], tmp_path / "out", [[5, 6, 7]])
    assert alone.kl > 100 * max(streamed.kl, 1e-9), "the second adapter is seen"


def test_what_could_not_be_certified_is_refused_before_anything_is_written(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(base, [AdapterStep(adapter)], tmp_path / "first", FAST)
    then = write_adapter(
        tmp_path / "first", tmp_path / "then", r=2, target_modules=["q_proj"], use_dora=True
    )
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1000)
    steps = [AdapterStep(adapter), AdapterStep(then)]
    with pytest.raises(ArtifactError, match="among several adapters one with DoRA"):
        merge(base, steps, tmp_path / "out", MergeOptions())
    assert not (tmp_path / "out").exists()
    merge(base, steps, tmp_path / "out", FAST)


def test_a_model_beyond_the_memory_is_certified_layer_by_layer(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1000)
    certificate = merge(base, [AdapterStep(adapter)], tmp_path / "out")
    found = certificate.figures
    assert certificate.status == "passed" and found is not None and found.streamed
    assert found.latency_ratio is None and found.greedy_agreement == found.top1_agreement


FAMILIES = {
    "llama": ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"],
    "qwen3": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "wte"],
    "gemma": ["q_proj", "o_proj", "gate_proj"],
    "mixtral": ["q_proj", "v_proj"],
    "qwen3_moe": ["k_proj", "o_proj"],
}
EMBEDDINGS = {"gpt2": "wte"}


@pytest.mark.parametrize("seed", range(32))
def test_random_models_and_adapters_merge_to_the_same_bits(seed: int, tmp_path: Path) -> None:
    """All but a LoRA bias on a layer that has none, where PEFT's own merge fails too."""
    draw = random.Random(seed)
    name = draw.choice(list(FAMILIES))
    hidden = draw.choice([32, 48, 64])
    shape: dict[str, Any] = (
        {"n_embd": hidden, "n_layer": 1}
        if name == "gpt2"
        else {
            "hidden_size": hidden,
            "intermediate_size": draw.choice([40, 96]),
            "num_hidden_layers": 1,
            "vocab_size": draw.choice([64, 101]),
        }
    )
    tied = name in ("gpt2", "gemma") or draw.random() < 0.3
    if name not in ("gpt2", "gemma", "llama"):
        shape |= {"tie_word_embeddings": tied}
    base = write_base(
        family(name, **shape),
        tmp_path / "base",
        draw.choice(["bfloat16", "float16", "float32"]),
        draw.choice(["20KB", "1GB"]),
        seed,
    )
    targets = draw.sample(FAMILIES[name], draw.randint(1, len(FAMILIES[name])))
    if name != "llama":
        targets = [target for target in targets if target != "wte"] or ["c_attn"]
    lora: dict[str, Any] = {
        "r": draw.randint(1, 9),
        "lora_alpha": draw.choice([1, 3, 16]),
        "target_modules": targets,
        "use_rslora": draw.random() < 0.5,
        "use_dora": draw.random() < 0.3,
        "bias": draw.choice(["none", "all", "lora_only"]),
        "fan_in_fan_out": name == "gpt2",
        "rank_pattern": {targets[0]: draw.randint(1, 5)} if draw.random() < 0.4 else {},
        "alpha_pattern": {targets[-1]: draw.randint(1, 5)} if draw.random() < 0.4 else {},
    }
    if name in ("mixtral", "qwen3_moe") and draw.random() < 0.7:
        fused = draw.sample(["gate_up_proj", "down_proj"], draw.randint(1, 2))
        lora |= {"target_parameters": [f"mlp.experts.{leaf}" for leaf in fused], "use_dora": False}
    apart = {"embed_tokens", "lm_head", "wte"}.isdisjoint(targets)
    match draw.choice(["nothing", "head", "norm", "tokens", "bias of B"]) if apart else "nothing":
        case "head" if not tied:
            lora |= {"modules_to_save": ["lm_head"]}
        case "norm":
            lora |= {"modules_to_save": ["ln_f" if name == "gpt2" else "norm"]}
        case "tokens":
            lora |= {"trainable_token_indices": {EMBEDDINGS.get(name, "embed_tokens"): [3, 50]}}
        case "bias of B" if name in ("qwen2", "gpt2") and "target_parameters" not in lora:
            lora |= {"lora_bias": True, "use_dora": False, "bias": "none"}
    adapter = write_adapter(base, tmp_path / "adapter", seed + 1, **lora)
    try:
        merge(base, [AdapterStep(adapter)], tmp_path / "out", FAST)
    except AlignflowError as refusal:
        assert lora.get("lora_bias"), f"refused: {refusal.message}"
        assert "lora_bias=False" in refusal.message
        return
    assert differing(by_peft(base, adapter), tmp_path / "out") == []
    weights = verify(base, [AdapterStep(adapter)], tmp_path / "out", []).weights
    assert weights is not None and (weights.wrong, weights.unknown) == ([], [])
    shutil.rmtree(tmp_path)
