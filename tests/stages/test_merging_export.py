"""The command line of `alignflow merge`, and the other formats it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merging_cases import by_peft, differing, family, write_adapter, write_base

from alignflow.commands.cli import exit_code_of
from alignflow.errors import StageError
from alignflow.merging.export import export_model
from alignflow.merging.planning import trained_on_nf4

CONVERTER = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--outfile")
chosen = parser.parse_args()
weights = pathlib.Path(chosen.model, "model.safetensors").read_bytes()
pathlib.Path(chosen.outfile).write_bytes(b"GGUF" + weights[:8])
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    base = write_base(family("llama", num_hidden_layers=1), folder / "base")
    return base, write_adapter(base, folder / "adapter", r=2, target_modules=["q_proj"])


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
    assert exit_code_of(["merge", base, adapter, str(out), "--export", "gguf"]) == 64
    assert "--llama-cpp DIR" in capsys.readouterr().err
    halves = [f"{adapter}=0.5", str(tmp_path / "halves"), "--with", f"{adapter}=0.5"]
    assert exit_code_of(["merge", base, *halves, "--dtype", "float32", "--no-verify"]) == 0


def test_gguf_is_written_by_the_users_own_converter(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    made = llama_cpp(tmp_path / "good", CONVERTER)
    said = export_model(inputs[0], "gguf", made)
    out = inputs[0].with_name("base.gguf")
    assert out.read_bytes().startswith(b"GGUF") and f"{out}: 12 bytes" in said
    broken = llama_cpp(tmp_path / "broken", "raise SystemExit('No module named gguf')")
    with pytest.raises(StageError, match=r"ended with 1:\nNo module named gguf\n.*requirements"):
        export_model(inputs[0], "gguf", broken)


def test_a_four_bit_model_is_measured_against_the_merged_one(
    inputs: tuple[Path, Path],
) -> None:
    said = export_model(inputs[0], "nf4")
    out = inputs[0].with_name("base-nf4")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_quant_type"] == "nf4" and config["load_in_4bit"]
    found = json.loads((out / "nf4_figures.json").read_text())
    assert found["finite"] and 0 < found["kl"] < 1 and "against the merged model KL" in said


def test_an_adapter_says_wherever_it_is_whether_it_was_trained_on_nf4(tmp_path: Path) -> None:
    assert not trained_on_nf4(tmp_path)
    for quantization in (None, "nf4"):
        note = {"source": "base", "digest": "0" * 64, "quantization": quantization}
        (tmp_path / "base_model.json").write_text(json.dumps(note))
        assert trained_on_nf4(tmp_path) == (quantization == "nf4")
