"""Architectures at toy size, each with a chat template that models are published with.

A pair goes the whole way (prepare, SFT, reward model, DPO, generation that stops where it was taught
to, merge, the same answers from what was merged), or `check` refuses it and says why. `make test` does
a few, `make models` all, and prints the table into docs/models.md.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import chat_templates
import pytest
import torch
from stage_runs import make_spec, prepare_spec, question, run_and_publish, write_lines
from toy_architectures import REAL, save_toy

from alignflow.checking.template import template_findings
from alignflow.checking.toy_trial import try_out
from alignflow.data import ResponseContract
from alignflow.errors import AlignflowError
from alignflow.models import load_merged, load_policy, load_tokenizer, read_base, respond
from alignflow.models.generate import end_tokens
from alignflow.recipe import EvaluationSection, MergeSection, ModelSource, TuningSection
from alignflow.stages import Artifact, StageSpec

OWN = {
    "cohere": "cohere",
    "cohere2": "cohere2",
    "deepseek_v3": "deepseekv3",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4_v5",
    "glm4": "glm4moe",
    "glm4_moe": "glm4moe",
    "gpt_oss": "gptoss",
    "lfm2": "lfm2",
    "llama": "llama3_2",
    "mistral": "llama3",
    "nemotron_h": "nemotron_3_nano",
    "phi3": "phi3_5",
    "qwen2": "qwen2_5",
    "qwen3": "qwen3",
    "qwen3_5_text": "qwen3_5_think",
    "qwen3_moe": "qwen3_6",
    "qwen3_next": "qwen3_instruct_2507",
}
"""Templates of an architecture's own family; the others take turns with those that are left."""
QUICK = ("llama", "gpt2", "qwen3_next", "mamba2", "gpt_oss")
ANSWERS = ("It is red.", "It is blue.", "It is green.", "It is gold.")
STEPS = {"max_steps": 2, "batch_size": 4, "max_length": 4096}
TABLE = os.environ.get("ALIGNFLOW_MODELS_TABLE")
"""File that the outcomes are appended to, a JSON line each."""


@cache
def pairs() -> dict[str, str]:
    """A template for each architecture."""
    spare = [name for name in chat_templates.names() if name not in OWN.values()]
    rest = [name for name in REAL if name not in OWN]
    return OWN | {name: spare[place % len(spare)] for place, name in enumerate(rest)}


ALIKE_NATS = 0.1
NOT_ASKED = ("reward", "ppo", "gradient_checkpointing")
"""What a trial may fail at while SFT and DPO work; a recipe that asks for it is refused."""


class Refusal(NamedTuple):
    """What `check` refuses of a pair."""

    all: str
    """Why it refuses every recipe; empty if it does not."""
    reward: str
    """Why it refuses a reward model."""


class Life(NamedTuple):
    """What became of a pair."""

    closes: str
    """The token that ended its answers."""
    merged_alike: int
    """Answers that are the same before and after the merge, or part where two tokens are alike."""


def live(base: Path, template: str, folder: Path, *, reward: bool) -> Life:
    """Everything that a recipe does with a base model, on few rows and steps."""
    prepared = run_and_publish(preparing(base, template, folder))
    sft = run_and_publish(make_spec(prepared, folder, "sft", **STEPS))
    if reward:
        run_and_publish(make_spec(prepared, folder, "reward", sft=sft, **STEPS))
    dpo = run_and_publish(make_spec(prepared, folder, "dpo", sft=sft, **STEPS))
    merged = run_and_publish(merging(folder, prepared, sft, dpo))
    tokenizer = load_tokenizer(prepared.directory)
    record = read_base(prepared.directory)
    adapted = load_policy(record, dpo.directory, dtype="float32", quantization=None)
    whole = load_merged(merged.directory / "model")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question(number)}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for number in range(4)
    ]
    free = [
        respond(model, tokenizer, prompts, max_new_tokens=8, batch_size=3)
        for model in (adapted, whole)
    ]
    contract = ResponseContract.kept_with(tokenizer)
    assert contract is not None
    closes = contract.closes[0]
    end = tokenizer.convert_tokens_to_ids(closes)
    others = [token for token in end_tokens(whole, tokenizer) if token != end]
    for model in (adapted, whole):
        with forced(model, end, others):
            for answer in respond(model, tokenizer, prompts[:2], max_new_tokens=8):
                assert answer.ended and answer.ids[-1] == end
    for saved in (merged.directory / "model", dpo.directory / "adapter"):
        assert ResponseContract.kept_with(tokenizer_in(saved)) == contract
        ends = json.loads((saved / "generation_config.json").read_text())["eos_token_id"]
        assert end in (ends if isinstance(ends, list) else [ends])
    answered = zip(prompts, *free, strict=True)
    return Life(closes, sum(alike(whole, p, a.ids, b.ids) for p, a, b in answered))


@torch.inference_mode()
def alike(model: Any, prompt: list[int], one: list[int], other: list[int]) -> bool:
    """Whether two answers are the same, but for what follows a choice between tokens that are alike."""
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if same is None:
        return len(one) == len(other)
    ids = torch.tensor([[*prompt, *one[:same]]])
    logps = model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
    return bool((logps[one[same]] - logps[other[same]]).abs() < ALIKE_NATS)


def tokenizer_in(directory: Path) -> Any:
    from transformers import AutoTokenizer

    kind: Any = AutoTokenizer
    return kind.from_pretrained(str(directory))


def preparing(base: Path, template: str, folder: Path) -> StageSpec:
    asked = range(8)
    rows = {
        "sft": [{"prompt": question(n), "completion": ANSWERS[n % 4]} for n in asked],
        "preferences": [
            {"prompt": question(n), "chosen": ANSWERS[n % 4], "rejected": "No idea."} for n in asked
        ],
        "evaluation": [{"prompt": question(n), "target": "red"} for n in range(20, 22)],
    }
    files = {part: write_lines(folder / f"{part}.jsonl", given) for part, given in rows.items()}
    spec = prepare_spec(folder, base, files)
    model = spec.params["base_model"]
    model["template_arguments"] = chat_templates.ARGUMENTS.get(template, {})
    limits = {"sft": 4096, "preferences": 4096, "ratings": None, "prompts": None}
    return spec.model_copy(update={"params": {**spec.params, "limits": limits}})


def merging(folder: Path, prepared: Artifact, sft: Artifact, dpo: Artifact) -> StageSpec:
    evaluation = EvaluationSection(
        metrics=["exact_match"], max_new_tokens=4, bootstrap_resamples=100
    )
    return StageSpec(
        stage="merge",
        home=str(folder),
        seed=0,
        params={
            "tuning": TuningSection(rank=4).model_dump(mode="json"),
            "dtype": "float32",
            "section": MergeSection(dtype="float32").model_dump(mode="json"),
            "evaluation": evaluation.model_dump(mode="json"),
        },
        inputs={"data": prepared.ref(), "sft": sft.ref(), "aligned": dpo.ref()},
    )


class forced:
    """Makes a model end its third token on, and not before: it learnt nothing in two steps."""

    def __init__(self, model: Any, token: int, others: list[int]) -> None:
        self.model, self.token, self.others, self.calls = model, token, others, 0

    def __enter__(self) -> None:
        self.hook = self.model.register_forward_hook(self._prefer)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _prefer(self, _module: Any, _inputs: Any, output: Any) -> Any:
        self.calls += 1
        output.logits[:, -1, self.others] -= 1e4
        output.logits[:, -1, self.token] += 1e4 if self.calls > 2 else -1e4
        return output


def refused(base: Path, template: str) -> Refusal:
    """What `check` says of the pair."""
    arguments = chat_templates.ARGUMENTS.get(template, {})
    model = ModelSource(source=str(base), template_arguments=arguments)
    _, findings = template_findings(base, model, needed=True)
    errors = [finding.line for finding in findings if finding.level == "error"]
    answer = try_out({"directory": str(base), "attention": None})
    failed = answer.get("failed", {})
    errors += [f"{name}: {text}" for name, text in failed.items() if name not in NOT_ASKED]
    return Refusal("; ".join(errors), failed.get("reward", ""))


def cases() -> list[Any]:
    marks: dict[str, Any] = dict.fromkeys(QUICK, ())
    return [
        pytest.param(name, id=f"{name}-{pairs()[name]}", marks=marks.get(name, pytest.mark.models))
        for name in REAL
    ]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", cases())
def test_a_model_goes_the_whole_way_or_is_refused_by_name(
    architecture: str, tmp_path: Path
) -> None:
    template = pairs()[architecture]
    tokenizer = chat_templates.tokenizer(chat_templates.source(template))
    base = save_toy(architecture, tmp_path / "base", tokenizer)
    why = refused(base, template)
    closes = None
    if not why.all:
        life = live(base, template, tmp_path, reward=not why.reward)
        assert life.merged_alike == 4
        closes = life.closes
    if TABLE:
        row = {"architecture": architecture, "template": template, "closes": closes}
        with Path(TABLE).open("a") as file:
            file.write(json.dumps(row | {"refused": why.all, "reward": why.reward}) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["rwkv", "recurrent_gemma"])
def test_what_is_refused_would_not_have_gone_right(architecture: str, tmp_path: Path) -> None:
    template = "qwen2_5"
    tokenizer = chat_templates.tokenizer(chat_templates.source(template))
    base = save_toy(architecture, tmp_path / "base", tokenizer)
    why = refused(base, template)
    assert why.all or why.reward
    with pytest.raises((AlignflowError, ValueError, RuntimeError, TypeError)):
        live(base, template, tmp_path, reward=True)
