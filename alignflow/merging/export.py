"""Other formats of a merged model: GGUF by llama.cpp's own converter, and 4-bit NF4."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from alignflow.errors import ArtifactError, RecipeError, StageError
from alignflow.files import atomic_write_json
from alignflow.merging.certificate import CERTIFICATE_FILE

CONVERTER = "convert_hf_to_gguf.py"


def check_export(kind: Literal["gguf", "nf4"], llama_cpp: Path | None) -> None:
    """Says what is missing before anything is merged.

    Raises:
        RecipeError: `gguf` without a checkout of llama.cpp, or one without its converter.
    """
    if kind != "gguf":
        return
    if llama_cpp is None:
        raise RecipeError(
            "--export gguf needs --llama-cpp DIR, a checkout of llama.cpp: the published gguf "
            "package has no converter. git clone https://github.com/ggml-org/llama.cpp"
        )
    if not (llama_cpp / CONVERTER).is_file():
        raise RecipeError(
            f"--llama-cpp {llama_cpp} holds no {CONVERTER}. Name the root of a checkout of "
            "llama.cpp from 2024 or later."
        )


def demand_room(base: Path) -> None:
    """Says before anything is merged that the 4-bit model could not be made here.

    Raises:
        ArtifactError: The merged model does not fit the memory, and is quantized as a whole.
    """
    from alignflow.merging.verifying import fits_memory

    if not fits_memory(base):
        raise ArtifactError(
            f"--export nf4 loads the whole model, and one of the size of {base} does not fit this "
            "machine's memory in float32. Merge without it, and export on a larger machine."
        )


def export_model(model: Path, kind: Literal["gguf", "nf4"], llama_cpp: Path | None = None) -> str:
    """Writes the other format beside the model; returns a sentence that names it.

    Raises:
        ArtifactError: It cannot be written.
        StageError: The converter failed; its last lines are in the message.
    """
    check_export(kind, llama_cpp)
    if kind == "gguf":
        return _to_gguf(model, model.with_name(f"{model.name}.gguf"), llama_cpp or Path())
    return _to_nf4(model, model.with_name(f"{model.name}-nf4"))


def _to_gguf(model: Path, out: Path, llama_cpp: Path) -> str:
    """Runs llama.cpp's converter on the merged model."""
    command = [sys.executable, str(llama_cpp / CONVERTER), str(model), "--outfile", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode or not out.is_file():
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise StageError(
            f"{CONVERTER} ended with {done.returncode}:\n{tail}\nInstall what it lacks "
            f"(pip install -r {llama_cpp}/requirements.txt); the merged model in {model} stands."
        )
    return f"{out}: {out.stat().st_size:,} bytes, by {llama_cpp / CONVERTER}"


def _to_nf4(model: Path, out: Path) -> str:
    """Writes the merged model in 4 bits, and how far its logits are from the merged model's."""
    from alignflow.merging.verifying import compare, logits_of, probe_ids
    from alignflow.models import BaseModel, load_base, load_merged, quiet

    if out.exists():
        raise ArtifactError(f"{out} exists. Remove it to export again.")
    ids = probe_ids(model, [])
    expected = logits_of(load_merged(model), ids)
    record = BaseModel(path=str(model), source=str(model), digest="")
    packed = load_base(record, dtype="bfloat16", quantization="nf4").eval()
    figures = compare(expected, logits_of(packed, ids), ids)
    with quiet():
        packed.save_pretrained(str(out))
    for path in model.iterdir():
        if path.suffix in (".json", ".jinja", ".txt", ".model") and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    (out / CERTIFICATE_FILE).unlink(missing_ok=True)
    atomic_write_json(out / "nf4_figures.json", json.loads(figures.model_dump_json()))
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return (
        f"{out}: {size:,} bytes; against the merged model KL {figures.kl:.3g} nats per token, "
        f"most likely token equal in {figures.top1_agreement:.2%}"
    )
