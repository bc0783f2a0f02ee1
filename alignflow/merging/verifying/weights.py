"""Whether every written tensor is base plus adapter: PEFT adds them in float32, one rounding later.

KL cannot tell: on SmolLM2-135M in bfloat16 it is 1.80e-5 for an honest merge, and no other where one
layer's delta was left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from alignflow.errors import ArtifactError
from alignflow.merging.certificate import Weights
from alignflow.merging.planning import names
from alignflow.merging.verifying.reference import values_on_disk
from alignflow.merging.writing import Reader
from alignflow.models import Located, read_tensors

NOISE = 2.0**-22
"""Of a tensor's largest value: what two orders of a float32 sum may differ by."""
FUSED = 3
"""Dimensions of experts in one tensor. Of these and of embeddings PEFT rounds a delta, then adds it."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embeddings.weight")
NAMED = 8
"""Tensors that a certificate names of a kind."""


def compared_weights(
    expected: Iterable[tuple[str, Tensor]], base: Path, merged: Path, roundings: int
) -> Weights:
    """What the tensors of a merged model are, beside what they should be.

    Args:
        expected: Name and float32 value of each parameter of base plus adapters.
        base: Directory of the base. What is no parameter of the model is copied from there.
        merged: Directory of what was written.
        roundings: How often a value was rounded on its way, once for each step of a chain.
    """
    reader, located = Reader(), read_tensors(merged)
    left, wrong, unknown, equal = set(located), [], [], 0
    source = read_tensors(base)
    for name, value in expected:
        shape, before = tuple(value.shape), None
        try:
            _, values = values_on_disk(merged, name, shape, located, reader)
            if value.ndim == FUSED or name.endswith(EMBEDDINGS):
                before = values_on_disk(base, name, shape, source, reader)[1]()
        except ArtifactError:
            unknown.append(name)
            continue
        parts = names.parts_on_disk(name, located)
        dtype = reader.tensor(located[parts[0]]).dtype
        left.difference_update(parts)
        if is_rounded(values(), value.cpu(), dtype, roundings, before):
            equal += 1
        else:
            wrong.append(name)
    for name, same in _copied(left, source, located, reader):
        if same is None:
            unknown.append(name)
        elif same:
            equal += 1
        else:
            wrong.append(name)
    return Weights(
        equal=equal, wrong=wrong[:NAMED], unknown=unknown[:NAMED], wrong_count=len(wrong)
    )


def is_rounded(
    written: Tensor,
    exact: Tensor,
    dtype: torch.dtype,
    roundings: int = 1,
    before: Tensor | None = None,
) -> bool:
    """Whether each value is the exact one in another type, rounded to nearest.

    Where the exact one lies between two values, to float32's noise, either will do; after several
    roundings each may add as much as the last. With the base's value `before`, what was added to it
    may have been rounded too.
    """
    nearest = exact.to(dtype).float()
    if torch.equal(written, nearest):
        return True
    noise = NOISE * float(exact.abs().max())
    allowed = (nearest - exact).abs() + noise
    unit = torch.finfo(dtype).eps / 2
    if before is not None:
        allowed = allowed + 2 * unit * (exact - before).abs()
    if roundings > 1:
        allowed = allowed + 2 * (roundings - 1) * unit * exact.abs()
    return bool(((written - exact).abs() <= allowed).all())


def _copied(
    left: set[str], base: Mapping[str, Located], located: Mapping[str, Located], reader: Reader
) -> Iterator[tuple[str, bool | None]]:
    """Tensors that are no parameters, such as a vision tower's, and whether they are the base's."""
    for name in sorted(left):
        known = names.find(name, base)
        if known is None or base[known].shape != located[name].shape:
            yield name, None
            continue
        written = reader.tensor(located[name])
        yield name, torch.equal(written, reader.tensor(base[known]).to(written.dtype))
