"""Seconds and memory of a training step, by compute type and gradient checkpointing, on this machine.

    python benchmarks/precision.py [--threads 2] [--steps 5]

LoRA of rank 16 on all linear layers, 8 rows of 128 tokens, on the quickstart's base model (1M
parameters) and on a model of SmolLM-135M's shape with random weights. Each way is a process of its
own. This is what `tuning.dtype: auto` and `compute.gradient_checkpointing: auto` rest on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ppo_model import build_base

ROWS, TOKENS = 8, 128


def measure(base: Path, dtype: str, checkpointing: bool, steps: int, threads: int) -> None:
    """Prints one way's figures as JSON."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype).to(device)
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, TOKENS), device=device)
    taken = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() // 2**20
    print(json.dumps({"seconds": statistics.median(taken[1:]), "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        base, dtype, checkpointing = arguments.one
        measure(Path(base), dtype, checkpointing == "on", arguments.steps, arguments.threads)
        return
    from alignflow.builtin import base_model_directory

    print(
        "| model | compute type | checkpointing | seconds a step | peak MiB |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        bases = {
            "1M": base_model_directory("freight-base"),
            "135M": build_base(Path(folder) / "base"),
        }
        for name, base in bases.items():
            for dtype in ("float32", "bfloat16"):
                for checkpointing in ("off", "on"):
                    command = [
                        sys.executable,
                        __file__,
                        "--one",
                        str(base),
                        dtype,
                        checkpointing,
                        "--steps",
                        str(arguments.steps),
                        "--threads",
                        str(arguments.threads),
                    ]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(done.stderr[-3000:])
                    found = json.loads(done.stdout.splitlines()[-1])
                    print(
                        f"| {name} | {dtype} | {checkpointing} | {found['seconds']:.3f} | "
                        f"{found['peak']} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
