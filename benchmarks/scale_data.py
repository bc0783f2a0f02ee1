"""What more rows cost: `prepare`, and the start of SFT and DPO, by the number of rows.

    python benchmarks/scale_data.py [--rows 1000 10000 100000] [--tokens 500] [--json FILE]

Rows are conversations of about so many tokens, pairs of the same. `prepare` runs as the stage does;
beside it the tokenizer library's own batch encoding of the same rendered text, on the same
processors. The start of a training stage is what stands before its first forward pass: rows opened,
lengths, the trainer made, its first batch collated; reference log-probabilities are put in, not
computed. Memory is what a process has of its own beyond what it had before it opened any row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

MIB = 1024**2
WORDS = (
    "pallet",
    "depot",
    "invoice",
    "carrier",
    "delay",
    "steel",
    "paper",
    "glass",
    "route",
    "dock",
)
MODEL = "builtin:freight-base"
LONGEST, BATCH = 4096, 2000


def text_of(random: Random, words: int) -> str:
    return " ".join(random.choices(WORDS, k=words)) + f" {random.randrange(10**9)}"


def write_rows(folder: Path, count: int, tokens: int) -> dict[str, Path]:
    """Demonstrations and pairs, of about so many tokens each."""
    random, words = Random(0), max(2, tokens // 8)
    files = {part: folder / f"{part}.jsonl" for part in ("sft", "preferences")}
    with files["sft"].open("w") as sft, files["preferences"].open("w") as pairs:
        for _ in range(count):
            prompt, answer = text_of(random, words), text_of(random, words)
            sft.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
            pair = {"prompt": prompt, "chosen": answer, "rejected": text_of(random, words)}
            pairs.write(json.dumps(pair) + "\n")
    return files


def own_bytes(pid: int) -> int:
    """Anonymous memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                yield from family(int(child))
        except OSError:
            continue


class Peak:
    """The most anonymous memory that any process of this one's family has had inside the block."""

    def __enter__(self) -> Peak:
        self.before, self.bytes, self._done = own_bytes(os.getpid()), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            for pid in family(os.getpid()):
                self.bytes = max(self.bytes, own_bytes(pid) - self.before)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a piece of work says, done in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_told, args=(theirs, work, *arguments))
    child.start()
    theirs.close()
    answer = ours.recv()
    child.join()
    return answer


def _told(pipe: Any, work: Callable[..., Any], *arguments: Any) -> None:
    pipe.send(work(*arguments))


def prepare(home: Path, files: dict[str, Path]) -> dict[str, float]:
    """The stage, from its spec to its artifact."""
    from alignflow.stages import load_stage, publish, work_directory

    spec = spec_of("prepare", home, files)
    stage, work = load_stage("prepare"), work_directory(home, "prepare", spec.key)
    (work / "output").mkdir(parents=True)
    begun = time.perf_counter()
    with Peak() as peak:
        result = stage(spec, work, events_in(work))
    seconds = time.perf_counter() - begun
    publish(spec, result, seconds, 1)
    return {"seconds": seconds, "mib": peak.bytes / MIB}


def start(home: Path, files: dict[str, Path], method: str) -> dict[str, float]:
    """A training stage up to its first update; DPO's reference is put in."""
    from alignflow.stages import find, load_stage, work_directory
    from alignflow.training.engine import QuietTrainer, ReferenceLogps

    def nothing_is_missing(self: Any) -> list[int]:
        self._logps[:] = 0.0
        return []

    class Began(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Began

    ReferenceLogps.missing = nothing_is_missing  # type: ignore[method-assign]
    QuietTrainer.training_step = stop  # type: ignore[assignment, method-assign]
    prepared = find(home, "prepare", spec_of("prepare", home, files).key)
    spec = spec_of(method, home, files, prepare=prepared)
    stage, work = load_stage(method), work_directory(home, method, spec.key)
    (work / "output").mkdir(parents=True)
    begun = time.perf_counter()
    with Peak() as peak:
        try:
            stage(spec, work, events_in(work))
        except Began:
            seconds = time.perf_counter() - begun
    return {"seconds": seconds, "mib": peak.bytes / MIB}


def events_in(work: Path) -> Any:
    from alignflow.stages import EventWriter

    return EventWriter(work / "events.jsonl", 1)


def spec_of(stage: str, home: Path, files: dict[str, Path], **artifacts: Any) -> Any:
    from alignflow.pipeline import stage_spec
    from alignflow.recipe import Recipe

    content: dict[str, Any] = {
        "name": "scale",
        "base_model": MODEL,
        "data": {part: str(path) for part, path in files.items()},
        "sft": {"max_length": LONGEST},
    }
    if "preferences" in files:
        content |= {"method": "dpo", "dpo": {"max_length": LONGEST}}
    return stage_spec(Recipe.model_validate(content), stage, home, artifacts)


def bare(files: dict[str, Path]) -> float:
    """Seconds of the tokenizer library's batch encoding of the text that `prepare` encodes."""
    from tokenizers import Tokenizer

    from alignflow.builtin import base_model_directory
    from alignflow.data import load_template

    directory = base_model_directory(MODEL.removeprefix("builtin:"))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    template = load_template(directory)
    assert template is not None
    seconds = 0.0
    for part, sides in (("sft", ("completion",)), ("preferences", ("chosen", "rejected"))):
        with files[part].open() as lines:
            while rows := [json.loads(line) for line in islice(lines, BATCH)]:
                texts = [
                    template.render([{"role": "user", "content": row["prompt"]}, answer])
                    for row in rows
                    for answer in ({"role": "assistant", "content": row[side]} for side in sides)
                ]
                begun = time.perf_counter()
                tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                seconds += time.perf_counter() - begun
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    told: list[dict[str, Any]] = []
    print("| rows | prepare s | tokenizer s | MiB | start of SFT s | MiB | start of DPO s | MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for count in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "home"
            files = write_rows(Path(folder), count, asked.tokens)
            row: dict[str, Any] = {"rows": count, "prepare": alone(prepare, home, files)}
            row["tokenizer"] = alone(bare, files)
            row |= {method: alone(start, home, files, method) for method in ("sft", "dpo")}
        told.append(row)
        cells = [f"{row['prepare']['seconds']:.1f}", f"{row['tokenizer']:.1f}"]
        cells.append(f"{row['prepare']['mib']:.0f}")
        for method in ("sft", "dpo"):
            cells += [f"{row[method]['seconds']:.1f}", f"{row[method]['mib']:.0f}"]
        print(f"| {count:,} | {' | '.join(cells)} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
