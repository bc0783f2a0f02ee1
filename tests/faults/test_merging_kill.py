"""A merge that is killed continues where it was, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignflow.errors import ArtifactError
from alignflow.files import hash_files
from alignflow.merging import AdapterStep, MergeOptions, merge

LAYERS, WIDTH, RANK = 6, 64, 2
CODE = """
import os, sys, time
from pathlib import Path
from alignflow.merging import AdapterStep, MergeOptions, merge
def progress(done, total):
    if done > total // 2:
        print('half', flush=True)
        time.sleep(60)
merge(Path(sys.argv[1]), [AdapterStep(Path(sys.argv[2]))], Path(sys.argv[3]),
      MergeOptions(verify=False), progress)
"""


def write_inputs(folder: Path) -> tuple[Path, Path]:
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    generator = torch.Generator().manual_seed(0)
    weight_map, factors = {}, {}
    for number in range(LAYERS):
        name = f"model.layers.{number}.self_attn.q_proj"
        weight = torch.randn(WIDTH, WIDTH, generator=generator).bfloat16()
        file = f"model-{number}.safetensors"
        save_file({f"{name}.weight": weight}, str(base / file))
        weight_map[f"{name}.weight"] = file
        stem = f"base_model.model.{name}"
        factors[f"{stem}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=generator)
        factors[f"{stem}.lora_B.weight"] = torch.randn(WIDTH, RANK, generator=generator)
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(factors, str(adapter / "adapter_model.safetensors"))
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapter


def test_a_killed_merge_keeps_its_finished_files_and_gives_the_same_bytes(tmp_path: Path) -> None:
    base, adapter = write_inputs(tmp_path)
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = [sys.executable, "-c", CODE, str(base), str(adapter), str(out)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("model-*.safetensors")}
    assert 0 < len(kept) < LAYERS and not (out / "merge_certificate.json").exists()
    time.sleep(0.01)
    options, steps = MergeOptions(verify=False), [AdapterStep(adapter)]
    merge(base, steps, out, options)
    merge(base, steps, whole, options)
    ignored = {"merge_certificate.json"}
    first, second = hash_files(out), hash_files(whole)
    assert {n: f for n, f in first.items() if n not in ignored} == {
        n: f for n, f in second.items() if n not in ignored
    }
    for name, stamp in kept.items():
        assert (out / name).stat().st_mtime_ns == stamp


def test_a_damaged_file_is_written_again_and_a_finished_merge_is_not(tmp_path: Path) -> None:
    base, adapter = write_inputs(tmp_path)
    out, options, steps = tmp_path / "out", MergeOptions(verify=False), [AdapterStep(adapter)]
    done = merge(base, steps, out, options)
    stamp = (out / "model-0.safetensors").stat().st_mtime_ns
    assert merge(base, steps, out, options) == done
    assert (out / "model-0.safetensors").stat().st_mtime_ns == stamp
    content = bytearray((out / "model-3.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "model-3.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="whose files were changed"):
        merge(base, steps, out, options)
    again = merge(base, steps, out, replace(options, replace=True))
    assert again.files == done.files
    assert (out / "model-3.safetensors").read_bytes() != bytes(content)


def test_another_adapter_does_not_continue_an_unfinished_merge(tmp_path: Path) -> None:
    base, adapter = write_inputs(tmp_path)
    out, options = tmp_path / "out", MergeOptions(verify=False)
    merge(base, [AdapterStep(adapter)], out, options)
    (out / ".merge").mkdir()  # as if it had been killed after its last file
    for file in out.glob("model-*.safetensors"):
        (out / ".merge" / f"{file.name}.json").write_text(json.dumps({"plan": "another"}))
    (out / "merge_certificate.json").unlink()
    scaled = merge(base, [AdapterStep(adapter, 0.5)], out, options)
    fresh = merge(base, [AdapterStep(adapter, 0.5)], tmp_path / "fresh", options)
    assert {n: f["sha256"] for n, f in scaled.files.items()} == {
        n: f["sha256"] for n, f in fresh.files.items()
    }
