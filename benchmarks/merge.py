"""Streaming merge against PEFT's way and against copying the files, in one run, interleaved.

    python -m benchmarks.merge --sizes 0.1B 1B --rounds 3
    python -m benchmarks.merge --sizes 0.1B 1B --certificate

With --certificate it is what the certificate adds to a merge: without it, with the logits alone, and
with the proof of every tensor too.

Every measurement is a process of its own, on the same random bf16 model and rank-16 adapter on all
linear layers. Each ends with its files fsynced. Anonymous memory is sampled from
/proc/<pid>/smaps_rollup every 20 ms (shared mappings of files told apart).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    "0.1B": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
}
RANK = 16
SHARD_BYTES = 1 << 30
SAMPLE_SECONDS = 0.02

OURS = """
import sys
from pathlib import Path
from alignflow.merging import AdapterStep, MergeOptions, merge
merge(Path(sys.argv[1]), [AdapterStep(Path(sys.argv[2]))], Path(sys.argv[3]),
      MergeOptions(verify=False))
"""
KNOWN_BASE = OURS.replace("verify=False", "verify=False, base_digest='0' * 64")
"""As in a pipeline, which has hashed the base already."""
CERTIFIED = OURS.replace("verify=False", "verify=True")
LOGITS_ALONE = f"""
from alignflow.merging.verifying import comparison
comparison.compared_weights = lambda expected, *rest: None
{CERTIFIED}"""
PEFT = """
import os, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
merged = PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()
merged.save_pretrained(sys.argv[3])
for name in os.listdir(sys.argv[3]):
    descriptor = os.open(os.path.join(sys.argv[3], name), os.O_RDONLY)
    os.fsync(descriptor)
"""
COPY = """
import os, shutil, sys
os.makedirs(sys.argv[3])
for name in os.listdir(sys.argv[1]):
    target = os.path.join(sys.argv[3], name)
    shutil.copyfile(os.path.join(sys.argv[1], name), target)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
"""
WAYS = {"copy": COPY, "alignflow": OURS, "known_base": KNOWN_BASE, "peft": PEFT}
CERTIFYING = {"merge": OURS, "logits": LOGITS_ALONE, "proof": CERTIFIED}
COMPARED = ("alignflow", "peft")
"""Whose results are kept to the end."""


def write_model(shape: dict[str, int], base: Path, adapter: Path) -> int:
    """Random weights written tensor by tensor, so that no size needs the memory of its model."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(**shape, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])  # type: ignore[arg-type]
    config.dtype = "bfloat16"
    base.mkdir(parents=True)
    adapter.mkdir(parents=True)
    config.save_pretrained(str(base))
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, Any]] = [{}]
    factors: dict[str, Any] = {}
    for name, size in tensors_of(shape):
        weight = (torch.randn(size, generator=generator) * 0.02).bfloat16()
        if sum(t.nbytes for t in shards[-1].values()) + weight.nbytes > SHARD_BYTES:
            shards = _flush(shards, base, save_file)
        shards[-1][name] = weight
        if "_proj" in name:
            stem = "base_model.model." + name.removesuffix(".weight")
            a = torch.randn(RANK, size[1], generator=generator) * 0.02
            factors[f"{stem}.lora_A.weight"] = a
            b = torch.randn(size[0], RANK, generator=generator) * 0.02
            factors[f"{stem}.lora_B.weight"] = b
    _flush(shards, base, save_file)
    _index(base)
    save_file(factors, str(adapter / "adapter_model.safetensors"), metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "task_type": "CAUSAL_LM",
        "target_modules": sorted({n.split(".")[-2] for n, _ in tensors_of(shape) if "_proj" in n}),
        "base_model_name_or_path": str(base),
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return sum(path.stat().st_size for path in base.iterdir())


def _flush(shards: list[dict[str, Any]], base: Path, save_file: Any) -> list[dict[str, Any]]:
    number = len(list(base.glob("*.safetensors"))) + 1
    file = base / f"model-{number:05d}.safetensors"
    save_file(shards[-1], str(file), metadata={"format": "pt"})
    return [{}]


def _index(base: Path) -> None:
    from safetensors import safe_open

    weight_map = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            weight_map |= dict.fromkeys(opened.keys(), file.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def tensors_of(shape: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama."""
    hidden, inner, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    values = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    listed: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (vocab, hidden))]
    for number in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        listed += [
            (f"{layer}.input_layernorm.weight", (hidden,)),
            (f"{layer}.post_attention_layernorm.weight", (hidden,)),
            (f"{layer}.self_attn.q_proj.weight", (hidden, hidden)),
            (f"{layer}.self_attn.k_proj.weight", (values, hidden)),
            (f"{layer}.self_attn.v_proj.weight", (values, hidden)),
            (f"{layer}.self_attn.o_proj.weight", (hidden, hidden)),
            (f"{layer}.mlp.gate_proj.weight", (inner, hidden)),
            (f"{layer}.mlp.up_proj.weight", (inner, hidden)),
            (f"{layer}.mlp.down_proj.weight", (hidden, inner)),
        ]
    return [*listed, ("model.norm.weight", (hidden,)), ("lm_head.weight", (vocab, hidden))]


def measure(code: str, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """Seconds of one process, imports included, and its peak memory."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    arguments = [sys.executable, "-W", "ignore", "-c", code, str(base), str(adapter), str(out)]
    begun, used = time.perf_counter(), _processor_seconds()
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peaks = {"anonymous": 0.0, "resident": 0.0}
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - begun
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{code}\nended with {process.returncode}: {errors[-2000:]}")
    return {"seconds": seconds, "processor_seconds": _processor_seconds() - used, **peaks}


def _processor_seconds() -> float:
    """Of all children that have ended, in user and kernel: what others' load changes little."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def _watch(process: subprocess.Popen[str], peaks: dict[str, float]) -> None:
    status = Path(f"/proc/{process.pid}/smaps_rollup")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()[1:]
        except OSError:
            return
        fields = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines}
        peaks["anonymous"] = max(peaks["anonymous"], fields.get("Anonymous", 0))
        peaks["resident"] = max(peaks["resident"], fields.get("Rss", 0))
        time.sleep(SAMPLE_SECONDS)


def equal_bits(one: Path, other: Path) -> bool:
    """Whether two models have the same tensors, bit for bit, however they are split into files."""
    from alignflow.merging.writing import Reader
    from alignflow.models import read_tensors

    first, second = read_tensors(one), read_tensors(other)
    reader = Reader()
    return set(first) == set(second) and all(
        reader.view(first[name]) == reader.view(second[name]) for name in first
    )


def latency(base: Path, merged: Path, repeats: int = 15) -> float:
    """Median over interleaved pairs of seconds of merged over plain base, one forward pass each."""
    import torch
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(str(p), dtype="auto") for p in (base, merged)]
    ids = torch.arange(64).unsqueeze(0)
    ratios = []
    with torch.no_grad():
        for number in range(repeats + 2):
            seconds = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                begun = time.perf_counter()
                models[which](input_ids=ids, use_cache=False)
                seconds[which] = time.perf_counter() - begun
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios[2:])


def compare(size: str, rounds: int, folder: Path, ways: dict[str, str]) -> dict[str, Any]:
    """All ways on one size, interleaved."""
    base, adapter = folder / "base", folder / "adapter"
    size_bytes = write_model(SHAPES[size], base, adapter)
    outs = {way: folder / "out" / way for way in ways}
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in outs}
    for number in range(rounds):
        for way in outs if number % 2 == 0 else reversed(list(outs)):
            runs[way].append(measure(ways[way], base, adapter, outs[way]))
            if way not in COMPARED:
                shutil.rmtree(outs[way])
    medians = {
        way: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for way, found in runs.items()
    }
    result: dict[str, Any] = {
        "size": size,
        "gigabytes": size_bytes / 1e9,
        "rounds": rounds,
        "median": medians,
        "runs": runs,
    }
    ours = medians["alignflow"]["seconds"] if "alignflow" in ways else 0.0
    if "copy" in ways:
        result["over_copy"] = ours / medians["copy"]["seconds"]
    if "peft" in ways:
        result["faster_than_peft"] = medians["peft"]["seconds"] / ours
        result["bit_identical"] = equal_bits(outs["alignflow"], outs["peft"])
        shutil.rmtree(outs["peft"])
        if size_bytes < 3e9:
            result["latency_merged_over_base"] = latency(base, outs["alignflow"])
    return result


def main() -> None:
    """Prints a table and, with --json, writes all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["0.1B", "1B"], choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the models are written")
    parser.add_argument("--no-peft", action="store_true", help="for sizes beyond the memory")
    parser.add_argument("--certificate", action="store_true", help="what the certificate adds")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    ways = CERTIFYING if chosen.certificate else WAYS
    if chosen.no_peft:
        ways = {way: code for way, code in ways.items() if way != "peft"}
    if chosen.folder:
        chosen.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            result = compare(size, chosen.rounds, Path(folder), ways)
        results.append(result)
        print(f"\n{size}: {result['gigabytes']:.2f} GB, median of {result['rounds']}")
        for way, found in result["median"].items():
            spread = [run["seconds"] for run in result["runs"][way]]
            print(
                f"  {way:10} {found['seconds']:7.2f} s ({min(spread):.2f} to {max(spread):.2f})"
                f"  processor {found['processor_seconds']:6.2f} s"
                f"  anonymous {found['anonymous']:7.0f} MB  resident {found['resident']:7.0f} MB"
            )
        for name in ("over_copy", "faster_than_peft", "bit_identical", "latency_merged_over_base"):
            if name in result:
                print(f"  {name}: {result[name]}")
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
