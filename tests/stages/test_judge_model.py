"""Stage `judge` on a real model: its own replies, read as any judge's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import fake_recipe
from stage_runs import run_and_publish
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignflow.data.base import spoken
from alignflow.errors import EvaluationError, RecipeError
from alignflow.gate.judge import (
    JudgementCache,
    judge_name,
    judge_of,
    judge_spec,
    parse,
    question,
)
from alignflow.gate.judge_model import token_ids
from alignflow.recipe import JudgeSection, ModelSource, Recipe
from alignflow.stages.layout import JUDGEMENTS_FILE

ASKED = [("Why?", "because", "so"), ("Why?", "so", "because"), ("Is it a tie?", "A", "no")]


def recipe(model: Path) -> Recipe:
    return fake_recipe(retrain={"judge": {"model": str(model), "instruction": "Better?"}})


def section(model: Path) -> JudgeSection:
    retrain = recipe(model).retrain
    assert retrain is not None and retrain.judge is not None
    return retrain.judge


def test_each_answer_is_what_the_model_replies_when_asked_alone(
    tiny_base: Path, tmp_path: Path
) -> None:
    artifact = run_and_publish(judge_spec(recipe(tiny_base), tmp_path, ASKED))
    cache = JudgementCache(artifact.directory / JUDGEMENTS_FILE)
    name, judge = judge_name(section(tiny_base)), judge_of(section(tiny_base))
    said = spoken(tiny_base, ModelSource(source=str(tiny_base)))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tiny_base))
    model: Any = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype="float32")
    for asked in ASKED:
        ids = token_ids(said, question("Better?", *asked))
        reply = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=8, do_sample=False)[
            0, len(ids) :
        ]
        expected = parse(tokenizer.decode(reply, skip_special_tokens=True))
        assert cache.ask(name, judge, *asked) == expected
    assert artifact.result.metrics["questions"] == 3.0
    with pytest.raises(EvaluationError, match="no answer about 'Who"):
        cache.ask(name, judge, "Who?", "he", "she")


def test_a_question_is_put_by_the_chat_template_or_as_plain_text(tiny_base: Path) -> None:
    said = spoken(tiny_base, ModelSource(source=str(tiny_base)))
    decode = said.tokenizer.decode
    assert decode(token_ids(said, "Which?")).endswith("<|assistant|>")
    plain = said._replace(template=None)
    assert decode(token_ids(plain, "Which?")).endswith("Which?\n\nAnswer:")


def test_the_same_questions_to_another_model_or_instruction_are_other_work(
    tiny_base: Path, tmp_path: Path
) -> None:
    first = judge_spec(recipe(tiny_base), tmp_path, ASKED)
    assert judge_spec(recipe(tiny_base), tmp_path, ASKED).key == first.key
    assert judge_spec(recipe(tiny_base), tmp_path, ASKED[:2]).key != first.key
    builtin = fake_recipe(retrain={"judge": {"model": "builtin:freight-base"}})
    assert judge_spec(builtin, tmp_path, ASKED).key != first.key
    with pytest.raises(RecipeError, match=r"retrain\.judge\.model: '/nowhere'"):
        judge_spec(recipe(Path("/nowhere")), tmp_path, ASKED)


def test_a_recipe_names_one_judge() -> None:
    with pytest.raises(ValueError, match="exactly one of function, model and endpoint"):
        JudgeSection(function="a:b", model="builtin:freight-base")  # pyright: ignore[reportArgumentType]
