"""Greedy answers of a merged model and of the GGUF file that `alignflow export` makes of it.

    python benchmarks/gguf_answers.py MERGE --llama-cpp DIR [--outtype f32 bf16 q8_0] [--json FILE]

MERGE is a merge artifact whose run judged it: the answers are those that its evaluation kept. The file
is loaded by llama.cpp itself (the package xllamacpp), given the same prompts as text, and says as
much as the evaluation let the model say.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import alignflow as af
from alignflow.data import read_judged
from alignflow.stages import RESPONSES_FILE, Prepared, read_manifest

CONTEXT_TOKENS = 2048


def answers(file: Path, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """What llama.cpp answers, greedily."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel = CONTEXT_TOKENS, 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    greedy = {"max_tokens": max_new_tokens, "temperature": 0.0, "top_k": 1}
    replies = (server.handle_completions({"prompt": prompt, **greedy}) for prompt in prompts)
    return [reply["choices"][0]["text"] for reply in replies]


def compared(
    merge: Path, llama_cpp: Path, outtype: str, prompts_at_most: int | None = None
) -> dict[str, Any]:
    """How many answers are the same, and the first that are not."""
    artifact = read_manifest(merge)
    longest = artifact.spec.params["evaluation"]["max_new_tokens"]
    judged = read_judged(Prepared(artifact.spec.input("data")).evaluation)
    prompts = [row["prompt"] for row in judged[:prompts_at_most]]
    kept = pq.read_table(merge / RESPONSES_FILE).to_pylist()[: len(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        model = merge / "model"
        af.export(model, "gguf", llama_cpp=llama_cpp, outtype=outtype, output=file)
        said = answers(file, prompts, longest)
        size = file.stat().st_size
    pairs = [(row["greedy"].strip(), said[row["prompt_index"]].strip()) for row in kept]
    other = [pair for pair in pairs if pair[0] != pair[1]]
    return {
        "outtype": outtype,
        "mb": size / 1e6,
        "answers": len(pairs),
        "same": len(pairs) - len(other),
        "first_other": other[:3],
    }


def table(name: str, found: Sequence[dict[str, Any]]) -> str:
    """The figures of a job, in Markdown."""
    lines = [f"| {name}: GGUF | MB | same greedy answers |", "|---|---|---|"]
    for one in found:
        lines.append(f"| {one['outtype']} | {one['mb']:.0f} | {one['same']} of {one['answers']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("merge", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--outtype", nargs="+", default=["f32", "bf16", "q8_0"])
    parser.add_argument("--prompts", type=int, help="at most so many")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = [
        compared(chosen.merge, chosen.llama_cpp, outtype, chosen.prompts)
        for outtype in chosen.outtype
    ]
    print(table(chosen.merge.name[:8], found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
