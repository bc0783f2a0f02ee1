"""How a merge is done: every choice of the caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class MergeOptions:
    """How to merge; every default is right for most."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the merged weights. `auto` keeps each tensor's; others merge in fp32, cast last."""
    quantization: Literal["nf4"] | None = None
    """What the base was quantized to while the adapter was trained."""
    qlora_base: Literal["dequantized", "original"] = "dequantized"
    """For `nf4`: merge into what the adapter was trained on, or into the original weights."""
    verify: bool = True
    """Compare logits of merged and base plus adapter. Without, the certificate is `unverified`."""
    probes: tuple[tuple[int, ...] | str, ...] = ()
    """Token ids or texts that the logits are compared on. None: texts of our own."""
    probe_quantization: bool = True
    """For `nf4`: compare with the adapter on the quantized base, as it was trained."""
    max_kl: float = 1e-3
    """Certificate fails above this KL, nats per token, of merged against base plus adapter."""
    min_top1_agreement: float = 0.99
    """Certificate fails below this share of equal most likely tokens."""
    base_digest: str | None = None
    """Digest of the base where the caller knows it. None: hashed while it is read."""
    base_source: str | None = None
    """What the certificate calls the base. None: its path."""
    tokenizer: Path | None = None
    """Directory of the tokenizer to put beside the model. None: the adapter's, else the base's."""
    final: Path | None = None
    """Where the result will stand when all is done, for the lines that serve it. None: as merged."""
    replace: bool = False
    """Whether a finished merge of something else in the result's directory is replaced."""
    block_bytes: int = 4 * 1024 * 1024
    """Bytes of fp32 computed at a time where row blocks are exact. Never changes the result."""
