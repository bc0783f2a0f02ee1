"""The command lines of `alignflow merge` and, of what it made, `alignflow export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merging_cases import by_peft, differing, family, write_adapter, write_base

from alignflow.commands.cli import exit_code_of
from alignflow.errors import ArtifactError, RecipeError, StageError
from alignflow.exporting import export
from alignflow.merging import AdapterStep, MergeOptions, merge
from alignflow.merging.planning import trained_on_nf4

CONVERTER = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--outfile")
parser.add_argument("--outtype")
chosen = parser.parse_args()
weights = pathlib.Path(chosen.model, "model.safetensors").read_bytes()
pathlib.Path(chosen.outfile).write_bytes(b"GGUF" + chosen.outtype.encode() + weights[:8])
"""
QUANTIZER = """#!/bin/sh
{ printf 'GGUF%s' "$3"; tail -c 8 "$1"; } > "$2"
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    base = write_base(family("llama", num_hidden_layers=1), folder / "base")
    return base, write_adapter(base, folder / "adapter", r=2, target_modules=["q_proj"])


@pytest.fixture(scope="module")
def merged(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose certificate passed."""
    base, adapter = inputs
    out = tmp_path_factory.mktemp("merged") / "tiny"
    merge(base, [AdapterStep(adapter)], out, MergeOptions(dtype="float32"))
    return out


def llama_cpp(folder: Path, code: str) -> Path:
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(code)
    return folder


def test_the_command_line_merges_lists_and_refuses_with_its_exit_code(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = map(str, inputs)
    out = tmp_path / "out"
    assert exit_code_of(["merge", base, adapter, str(out), "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["tensor"] for entry in listed["merged"]] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert not out.exists()
    assert exit_code_of(["merge", base, adapter, str(out), "--no-verify"]) == 0
    assert f"{out}: unverified" in capsys.readouterr().out
    assert differing(by_peft(*inputs), out) == []
    assert exit_code_of(["merge", base, str(tmp_path / "nowhere"), str(out)]) == 64
    halves = [f"{adapter}=0.5", str(tmp_path / "halves"), "--with", f"{adapter}=0.5"]
    assert exit_code_of(["merge", base, *halves, "--dtype", "float32", "--no-verify"]) == 0


def test_gguf_is_written_by_the_users_own_converter(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = llama_cpp(tmp_path / "good", CONVERTER), tmp_path / "tiny.gguf"
    arguments = ["export", str(merged), "--to", "gguf", "--llama-cpp", str(made)]
    assert exit_code_of([*arguments, "--output", str(out), "--outtype", "bf16"]) == 0
    assert out.read_bytes().startswith(b"GGUFbf16")
    assert f"{out}: 16 bytes" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="--quantize q4_k_m needs llama-quantize"):
        export(merged, "gguf", llama_cpp=made, quantize="q4_k_m", output=tmp_path / "small.gguf")
    program = made / "build/bin/llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text(QUANTIZER)
    program.chmod(0o755)
    export(merged, "gguf", llama_cpp=made, quantize="q4_k_m", output=tmp_path / "small.gguf")
    assert (tmp_path / "small.gguf").read_bytes().startswith(b"GGUFQ4_K_M")


def test_a_converter_that_fails_leaves_nothing_and_is_quoted(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--llama-cpp DIR"):
        export(merged, "gguf")
    with pytest.raises(RecipeError, match="holds no convert_hf_to_gguf"):
        export(merged, "gguf", llama_cpp=tmp_path)
    broken = llama_cpp(tmp_path / "broken", "raise SystemExit('No module named gguf')")
    out = tmp_path / "out"
    with pytest.raises(StageError, match=r"ended with 1:\nNo module named gguf\n.*requirements"):
        export(merged, "gguf", llama_cpp=broken, output=out / "tiny.gguf")
    assert list(out.iterdir()) == []


def test_a_four_bit_model_is_measured_against_the_merged_one(merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-nf4"
    made = export(merged, "nf4", output=out)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_quant_type"] == "nf4" and config["load_in_4bit"]
    found = json.loads((out / "nf4_figures.json").read_text())
    assert found["finite"] and 0 < found["kl"] < 1
    assert "against the merged model KL" in made.notes[0]
    with pytest.raises(ArtifactError, match="Remove it, or name another"):
        export(merged, "nf4", output=out)


def test_an_adapter_says_wherever_it_is_whether_it_was_trained_on_nf4(tmp_path: Path) -> None:
    assert not trained_on_nf4(tmp_path)
    for quantization in (None, "nf4"):
        note = {"source": "base", "digest": "0" * 64, "quantization": quantization}
        (tmp_path / "base_model.json").write_text(json.dumps(note))
        assert trained_on_nf4(tmp_path) == (quantization == "nf4")
