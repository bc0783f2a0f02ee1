"""How fast the ledger takes preferences in, by how much it holds already.

    python benchmarks/ingest.py 10000 100000

For each size: the ledger is filled to it, then 10,000 new, 10,000 duplicate and 2,000 bad of 10,000
rows are added, each in a process of its own, and the time of `add` is told, without that of starting
Python. Rates are per second of wall clock and of processor time; the latter does not depend on what
else runs on the machine. The largest resident memory is that of filling the ledger.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROBE_ROWS = 10_000
SENTENCE = "the pipeline keeps every preference once and says where it came from and went"
WORDS = SENTENCE.split()


def pair(number: int) -> dict[str, str]:
    """A pair of about 650 bytes."""
    start = number % len(WORDS)
    text = " ".join((WORDS[start:] + WORDS[:start]) * 2)
    return {
        "prompt": f"Question {number}: {text}?",
        "chosen": f"Answer {number}: {text}.",
        "rejected": f"Refusal {number}: {text}!",
    }


def lines(first: int, last: int, bad_every: int = 0) -> Iterator[str]:
    """JSON lines; every `bad_every`-th is torn."""
    for number in range(first, last):
        line = json.dumps(pair(number))
        yield (line[:-9] if bad_every and number % bad_every == 0 else line) + "\n"


def write(path: Path, first: int, last: int, bad_every: int = 0) -> Path:
    """Writes them."""
    with path.open("w") as file:
        file.writelines(lines(first, last, bad_every))
    return path


def timed_add(home: Path, path: Path) -> dict[str, float]:
    """Times one `add` in a process of its own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); import ingest; ingest.child(*sys.argv[1:3])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home), str(path), str(Path(__file__).parent)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def child(home: str, path: str) -> None:
    """What the process of `timed_add` does."""
    from alignflow.ledger import add, status

    if Path(home, "ledger.db").exists():
        status(Path(home))  # opened once before, as in a process that lives
    wall, processor = time.perf_counter(), time.process_time()
    result = add(Path(home), [Path(path)])
    print(
        json.dumps(
            {
                "wall": time.perf_counter() - wall,
                "processor": time.process_time() - processor,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "read": result.as_json()["read"],
                "accepted": result.counts.accepted,
            }
        )
    )


def measure(size: int, folder: Path) -> None:
    """Prints the rows of one size."""
    home = folder / f"home-{size}"
    filled = timed_add(home, write(folder / "fill.jsonl", 0, size))
    megabytes = sum(file.stat().st_size for file in home.rglob("*.db*")) / 1e6
    print(
        f"| {size:,} | filling | {size / filled['wall']:,.0f} | {size / filled['processor']:,.0f} | "
        f"{filled['memory']:.0f} | {megabytes:.0f} |"
    )
    last = size + PROBE_ROWS
    probes = {
        "new": write(folder / "new.jsonl", size, last),
        "duplicates": write(folder / "again.jsonl", size + 1, last),
        "a fifth bad": write(folder / "bad.jsonl", last, last + PROBE_ROWS, bad_every=5),
    }
    for name, path in probes.items():
        took = timed_add(home, path)
        print(
            f"| {size:,} | {name} | {took['read'] / took['wall']:,.0f} | "
            f"{took['read'] / took['processor']:,.0f} | {took['memory']:.0f} | |",
            flush=True,
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="+")
    arguments = parser.parse_args()
    print("| rows held | added | rows/s | rows/s of processor | memory, MiB | ledger, MB |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            measure(size, Path(folder))


if __name__ == "__main__":
    main()
