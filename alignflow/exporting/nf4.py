"""A merged model in 4 bits (NF4 of bitsandbytes), and how far it is from what it was made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from alignflow.errors import ArtifactError
from alignflow.files import atomic_write_json
from alignflow.merging import CERTIFICATE_FILE


def demand_memory(model: Path) -> None:
    """Says before anything is loaded that the 4-bit model could not be made here.

    Raises:
        ArtifactError: The merged model does not fit the memory, and is quantized as a whole.
    """
    from alignflow.merging.verifying import fits_memory

    if not fits_memory(model):
        raise ArtifactError(
            f"--to nf4 loads the whole model, and {model} does not fit this machine's memory in "
            "float32. Export on a larger machine."
        )


def write_nf4(model: Path, out: Path) -> str:
    """Writes the model in 4 bits; how far its logits are from the merged model's, in words."""
    from alignflow.merging.verifying import compare, logits_of, probe_ids
    from alignflow.models import BaseModel, load_base, load_merged, quiet

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
    return (
        f"against the merged model KL {figures.kl:.3g} nats per token, most likely token equal in "
        f"{figures.top1_agreement:.2%}"
    )
