"""Every written tensor is held against base plus adapter, and no mutation of a merge passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merging_cases import family, write_adapter, write_base
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignflow.merging import AdapterStep, MergeOptions, merge
from alignflow.merging.certificate import Limits, status_of
from alignflow.merging.verifying.comparison import ENOUGH_TOKENS, probe_ids, verify
from alignflow.merging.verifying.weights import is_rounded

LINEAR: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NAME = "model.layers.0.self_attn.q_proj.weight"
Mutation = Callable[[Tensor, Tensor, Tensor], Tensor]
MUTATIONS: dict[str, Mutation] = {
    "left out": lambda before, after, other: before,
    "scaled by 1.01": lambda before, after, other: before + 1.01 * (after - before),
    "transposed": lambda before, after, other: after.T,
    "of another adapter": lambda before, after, other: other,
    "one value": lambda before, after, other: torch.cat([after[:1] * 1.02, after[1:]]),
}
"""What base, merged weight in float32, and another adapter's merge become."""


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two adapters, and a merge of each."""
    place = tmp_path_factory.mktemp("merged")
    write_base(family("llama"), place / "base", request.param)
    for seed, name in enumerate(("adapter", "other")):
        write_adapter(place / "base", place / name, seed=seed, **LINEAR)
        for dtype in ("auto", "float32"):
            options = MergeOptions(verify=False, dtype=dtype)  # type: ignore[arg-type]
            merge(place / "base", [AdapterStep(place / name)], place / f"{name}-{dtype}", options)
    return place


def tensor_of(directory: Path) -> Tensor:
    return load_file(str(directory / "model.safetensors"))[NAME].float()


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("streamed", [False, True])
def test_no_mutation_of_one_tensor_passes(
    merged: Path, tmp_path: Path, mutation: str, streamed: bool
) -> None:
    wrong = shutil.copytree(merged / "adapter-auto", tmp_path / "wrong")
    tensors = load_file(str(wrong / "model.safetensors"))
    exact = tensor_of(merged / "adapter-float32")
    before, other = tensor_of(merged / "base"), tensor_of(merged / "other-float32")
    value = MUTATIONS[mutation](before, exact, other)
    tensors[NAME] = value.to(tensors[NAME].dtype).contiguous()
    save_file(tensors, str(wrong / "model.safetensors"))
    steps = [AdapterStep(merged / "adapter")]
    good = verify(merged / "base", steps, merged / "adapter-auto", [], streamed=streamed)
    assert good.weights is not None and (good.weights.wrong, good.weights.unknown) == ([], [])
    assert good.weights.equal == len(tensors) and status_of(True, good, Limits()) == "passed"
    bad = verify(merged / "base", steps, wrong, [], streamed=streamed)
    assert bad.weights is not None and bad.weights.wrong == [NAME]
    assert status_of(True, bad, Limits(max_kl=1e9)) == "failed"


def test_a_value_that_lies_between_two_may_be_either_and_no_third() -> None:
    exact = torch.tensor([1.0, 1.0 + 2.0**-8, 3.0])
    for written in ([1.0, 1.0, 3.0], [1.0, 1.0 + 2.0**-7, 3.0]):
        assert is_rounded(torch.tensor(written), exact, torch.bfloat16)
    for written in ([1.0, 1.0 + 2.0**-6, 3.0], [1.0 + 2.0**-7, 1.0, 3.0], [float("nan"), 1.0, 3.0]):
        assert not is_rounded(torch.tensor(written), exact, torch.bfloat16)


def test_the_most_likely_token_decides_nothing_and_a_thousand_tokens_are_compared(
    merged: Path,
) -> None:
    steps = [AdapterStep(merged / "adapter")]
    figures = verify(merged / "base", steps, merged / "adapter-auto", [[1, 2, 3]])
    assert figures.tokens >= ENOUGH_TOKENS >= 1000
    unlike = figures.model_copy(update={"top1_agreement": 0.5})
    assert status_of(True, unlike, Limits()) == "passed"
    assert probe_ids(merged / "adapter-auto", []) == probe_ids(merged / "adapter-auto", [])
