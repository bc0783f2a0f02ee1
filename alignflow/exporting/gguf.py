"""GGUF, by the converter of the user's checkout of llama.cpp."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from alignflow.errors import RecipeError, StageError

CONVERTER, QUANTIZER = "convert_hf_to_gguf.py", "llama-quantize"
BUILT = ("build/bin", "build/bin/Release", "")
"""Where a checkout has its programs."""


def demand_llama_cpp(checkout: Path | None, quantize: str | None) -> None:
    """Says what is missing before anything is written.

    Raises:
        RecipeError: No checkout, or one without its converter, or no program that quantizes.
    """
    if checkout is None:
        raise RecipeError(
            "--to gguf needs --llama-cpp DIR, a checkout of llama.cpp: the published gguf package "
            "has no converter. git clone https://github.com/ggml-org/llama.cpp"
        )
    if not (checkout / CONVERTER).is_file():
        raise RecipeError(
            f"--llama-cpp {checkout} holds no {CONVERTER}. Name the root of a checkout of "
            "llama.cpp from 2024 or later."
        )
    if quantize and quantizer(checkout) is None:
        raise RecipeError(
            f"--quantize {quantize} needs {QUANTIZER}, and there is none in {checkout}/build/bin or "
            f"on the PATH. Build it (cmake -B build && cmake --build build --target {QUANTIZER}), or "
            "leave --quantize out; --outtype q8_0 needs no such program."
        )


def quantizer(checkout: Path) -> str | None:
    """The checkout's own program that quantizes, else that on the PATH."""
    places = (checkout / place / QUANTIZER for place in BUILT)
    return next((str(path) for path in places if path.is_file()), None) or shutil.which(QUANTIZER)


def write_gguf(model: Path, out: Path, checkout: Path, outtype: str, quantize: str | None) -> None:
    """Converts a model into one file, whole or not at all.

    Raises:
        StageError: A program failed; its last lines are in the message.
    """
    whole, packed = out.with_name(f".{out.name}.whole"), out.with_name(f".{out.name}.packed")
    convert = [sys.executable, str(checkout / CONVERTER), str(model)]
    try:
        _run(
            [*convert, "--outfile", str(whole), "--outtype", outtype],
            whole,
            f"Install what it lacks (pip install -r {checkout}/requirements.txt)",
        )
        if quantize:
            program = str(quantizer(checkout))
            _run([program, str(whole), str(packed), quantize.upper()], packed, "Try another type")
        (packed if quantize else whole).replace(out)
    finally:
        for path in (whole, packed):
            path.unlink(missing_ok=True)


def _run(command: Sequence[str], made: Path, remedy: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode or not made.is_file():
        name = next(Path(part).name for part in command if part != sys.executable)
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise StageError(
            f"{name} ended with {done.returncode}:\n{tail}\n{remedy}; the merged model stands."
        )
