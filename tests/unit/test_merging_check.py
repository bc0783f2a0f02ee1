"""`alignflow check` says before training what the merge at the end would refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from check_cases import changed, checked, edit_json, lines, model_copy

from alignflow.checking.architecture import read_shape
from alignflow.checking.merging import merged_bytes
from alignflow.checking.needs import needs_of
from alignflow.errors import ArtifactError
from alignflow.merging import MergeOptions, check_base
from alignflow.models.headers import header_bytes
from alignflow.recipe import Recipe


def write_base(folder: Path, dtype: str = "BF16", **config: Any) -> Path:
    """A model of one layer, its weights zero."""
    widths = {"BF16": 2, "F8_E4M3": 1}
    tensors = [
        ("model.embed_tokens.weight", "BF16", (8, 4)),
        ("model.layers.0.self_attn.q_proj.weight", dtype, (4, 4)),
    ]
    size = sum(widths[kind] * math.prod(shape) for _, kind, shape in tensors)
    (folder / "model.safetensors").write_bytes(header_bytes(tensors) + bytes(size))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def test_a_quantized_base_is_refused_before_training(tmp_path: Path) -> None:
    base = model_copy(tmp_path)
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq"})
    found = checked(tmp_path, base_model=str(base))
    assert found.exit_code == 66
    assert "merge: " in lines(found, "error") and "quantized (gptq)" in lines(found, "error")


def test_a_layer_in_eight_bits_is_refused_by_name_only_where_adapters_go(tmp_path: Path) -> None:
    base = write_base(tmp_path, "F8_E4M3")
    with pytest.raises(ArtifactError, match=r"q_proj\.weight has type F8_E4M3"):
        check_base(base, ["q_proj"], MergeOptions())
    assert check_base(base, ["v_proj"], MergeOptions()).merged == []


def test_transposed_layers_are_refused_only_for_their_dequantized_values(tmp_path: Path) -> None:
    base = write_base(tmp_path, model_type="gpt2")
    with pytest.raises(ArtifactError, match=r"Conv1D.*merge\.qlora_base to original"):
        check_base(base, [], MergeOptions(quantization="nf4"))
    check_base(base, [], MergeOptions(quantization="nf4", qlora_base="original"))


def test_the_disk_is_asked_for_the_type_that_is_written(tmp_path: Path) -> None:
    shape = read_shape(write_base(tmp_path))
    narrow = Recipe.model_validate(changed())
    wide = Recipe.model_validate(changed(merge__dtype="float32"))
    none = narrow.model_copy(update={"merge": None})
    assert merged_bytes(wide, shape) == 2 * merged_bytes(narrow, shape) == 4 * shape.parameters
    assert merged_bytes(none, shape) == 0
    needed = [
        needs_of(r, shape, tmp_path, download=False, named={}).disk_bytes
        for r in (wide, narrow, none)
    ]
    assert needed[0] > needed[1] > needed[2]
