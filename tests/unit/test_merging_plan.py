"""What cannot be merged is refused from headers alone, by name, before a weight is read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import ArtifactError, DiskSpaceError
from alignflow.merging import AdapterStep, MergeOptions, merge, plan
from alignflow.models.headers import header_bytes, read_header

OPTIONS = MergeOptions(verify=False)
Q = "model.layers.0.self_attn.q_proj"


def write_tensors(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "F32") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 4 if dtype == "F32" else 1
    data = b"\0" * (size * sum(math.prod(shape) for shape in tensors.values()))
    path.write_bytes(header_bytes([(n, dtype, s) for n, s in tensors.items()]) + data)


def write_base(directory: Path, **config: Any) -> Path:
    write_tensors(
        directory / "model.safetensors",
        {"model.embed_tokens.weight": (8, 4), f"{Q}.weight": (6, 4), "lm_head.weight": (8, 4)},
    )
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8}
    (directory / "config.json").write_text(json.dumps({**settings, **config}))
    return directory


def write_adapter(
    directory: Path, tensors: dict[str, tuple[int, ...]] | None = None, **config: Any
) -> Path:
    shapes = tensors or {f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 2)}
    write_tensors(
        directory / "adapter_model.safetensors",
        {f"base_model.model.{name}": shape for name, shape in shapes.items()},
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def test_a_plan_names_what_changes_and_imports_no_torch(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    described = plan(base, [AdapterStep(adapter)], OPTIONS).describe()
    assert [entry["tensor"] for entry in described["merged"]] == [f"{Q}.weight"]
    assert described["bytes"] == 4 * (32 + 24 + 32)
    code = (
        "import sys; from pathlib import Path; from alignflow.merging import AdapterStep, MergeOptions, plan; "
        f"plan(Path({str(base)!r}), [AdapterStep(Path({str(adapter)!r}))], MergeOptions()); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another model's shape": (
        {"tensors": {f"{Q}.lora_A.weight": (2, 5), f"{Q}.lora_B.weight": (6, 2)}},
        rf"make a delta of shape \(6, 5\), the base's {Q}.weight has \(6, 4\)",
    ),
    "a layer that is not there": (
        {"tensors": {"model.x.lora_A.weight": (2, 4), "model.x.lora_B.weight": (6, 2)}},
        r"model\.x\.lora_A\.weight .* adapts model\.x",
    ),
    "a missing factor": (
        {"tensors": {f"{Q}.lora_A.weight": (2, 4)}},
        "without its other factor",
    ),
    "a reward head": ({"tensors": {"score.weight": (1, 4)}}, r"score\.weight.*no such tensor"),
    "a changed base": ({"init_lora_weights": "pissa"}, "changes the base model itself"),
    "another method": ({"peft_type": "LOHA"}, "peft_type is LOHA"),
    "a variant": ({"use_qalora": True}, "use_qalora is True"),
    "a bias without one in the base": (
        {
            "tensors": {
                f"{Q}.lora_A.weight": (2, 4),
                f"{Q}.lora_B.weight": (6, 2),
                f"{Q}.lora_B.bias": (6,),
            }
        },
        "the base has no .*q_proj.bias",
    ),
    "too many tokens": (
        {
            "tensors": {"model.embed_tokens.token_adapter.trainable_tokens_delta": (1, 4)},
            "trainable_token_indices": [8],
        },
        "Resize its vocabulary first",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name(case: str, tmp_path: Path) -> None:
    settings, message = REFUSED[case]
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", **settings)
    with pytest.raises(ArtifactError, match=message):
        plan(base, [AdapterStep(adapter)], OPTIONS)


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ArtifactError, match=r"quantized \(bitsandbytes\)"):
        plan(base, [AdapterStep(write_adapter(tmp_path / "adapter"))], OPTIONS)


def test_a_base_with_another_digest_is_refused(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    (adapter / "base_model.json").write_text(json.dumps({"digest": "a" * 64}))
    options = MergeOptions(base_digest="b" * 64)
    with pytest.raises(ArtifactError, match=r"digest aaaaaaaaaaaa, this base .* has bbbbbbbbbbbb"):
        plan(base, [AdapterStep(adapter)], options)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    file = write_base(tmp_path / "base") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="the file ends at"):
        read_header(file)


def test_a_directory_with_something_else_is_never_overwritten(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    with pytest.raises(ArtifactError, match="is not empty"):
        merge(base, [], tmp_path / "out", OPTIONS)
    with pytest.raises(ArtifactError, match="the base model itself"):
        merge(base, [], base, OPTIONS)


def test_a_disk_that_is_too_small_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignflow.merging.writing import directory

    class Full:
        free = 10

    monkeypatch.setattr(directory.shutil, "disk_usage", lambda _path: Full)
    with pytest.raises(DiskSpaceError, match="10 bytes are free"):
        merge(write_base(tmp_path / "base"), [], tmp_path / "out", OPTIONS)
