"""What `check` says of rejection sampling and of distillation: of samples, rewards, the teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from check_cases import changed, checked, edit_json, errors, lines, model_copy
from pydantic import ValidationError

from alignflow.builtin import base_model_directory
from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import STAGES, Recipe
from alignflow.services.deploy import with_absolute_paths
from alignflow.stages.artifacts import Artifact, publish, work_directory
from alignflow.stages.spec import StageResult, StageSpec

PROMPTS = {"data__prompts": "builtin:freight-prompts", "data__preferences": None, "dpo": None}
RFT = {"rewards": ["execution"], "max_length": 192, "max_new_tokens": 40}
DISTILL = {"max_length": 192, "max_new_tokens": 40}

pytestmark = pytest.mark.slow  # each check reads all rows of the embedded job


def rft(**section: Any) -> dict[str, Any]:
    return {**PROMPTS, "method": "rft", "rft": {**RFT, **section}}


def distill(teacher: Any = "builtin:freight-base", **section: Any) -> dict[str, Any]:
    return {
        **PROMPTS,
        "method": "distill",
        "distill": {"teacher": str(teacher), **DISTILL, **section},
    }


def finding_lines(folder: Path, fields: dict[str, Any]) -> str:
    return "\n".join(finding.line for finding in errors(checked(folder, **fields)))


def test_one_row_is_too_few_for_kto_whose_kl_compares_rows(tmp_path: Path) -> None:
    for size, refused in ((1, True), (2, False), ("auto", False)):
        fields = {"method": "kto", "kto": {"max_length": 192}, "dpo": None}
        found = finding_lines(tmp_path, {**fields, "compute__micro_batch_size": size})
        assert ("compute.micro_batch_size: is 1; kto compares" in found) == refused


def test_good_recipes_get_no_error_and_no_warning(tmp_path: Path) -> None:
    for fields in (rft(min_reward=0.5), distill(model_copy(tmp_path))):
        found = checked(tmp_path, **fields)
        assert errors(found) == [] and lines(found, "warning") == ""
        assert found.stages == ["prepare", "sft", str(fields["method"]), "evaluate", "merge"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (rft(rewards=["nowhere.py:f"]), "rft.rewards: 'nowhere.py:f' is no function"),
        (rft(max_new_tokens=192), "rft.max_new_tokens: is 192 of max_length 192"),
        (
            rft() | {"data__prompts": None, "data__preferences": "builtin:freight-preferences"},
            "rft.rewards: names execution, which compares with targets",
        ),
        (rft(rewards=["reward_model"]), "rft.rewards names the reward model; add a reward section"),
        (rft(trainer_args={"packing": True}), "rft.trainer_args.packing: is set by"),
        (rft(trainer_args={"pakking": 1}), "rft.trainer_args.pakking: (here 1) is no argument"),
        (distill(max_new_tokens=192), "distill.max_new_tokens: is 192 of max_length 192"),
        (distill("./nowhere"), "distill.teacher: './nowhere' is not a model directory"),
        (distill("builtin:nowhere"), "distill.teacher: "),
        (distill(trainer_args={"betta": 1}), "is no argument of DistillationConfig"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    assert expected in finding_lines(tmp_path, fields)


def test_a_teacher_is_needed() -> None:
    with pytest.raises(ValidationError, match=r"distill.teacher"):
        Recipe.model_validate(changed(**PROMPTS, method="distill", distill={}))


def test_an_adapter_is_no_teacher(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    expected = f"distill.teacher: {str(adapter)!r} is an adapter"
    assert expected in finding_lines(tmp_path, distill(adapter))


def test_a_teacher_of_another_vocabulary_is_refused_though_it_has_as_many_tokens(
    tmp_path: Path,
) -> None:
    teacher = model_copy(tmp_path)
    file = teacher / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    ids = vocabulary["model"]["vocab"]
    first, second = sorted(ids, key=ids.get)[40:42]
    ids[first], ids[second] = ids[second], ids[first]
    file.write_text(json.dumps(vocabulary))
    said = finding_lines(tmp_path, distill(teacher))
    assert "distill.teacher: has another vocabulary than the base model: " in said
    assert f"{first!r} has id" in said or f"{second!r} has id" in said


def test_a_teacher_of_another_size_of_vocabulary_is_refused(tmp_path: Path) -> None:
    teacher = model_copy(tmp_path)
    size = json.loads((teacher / "config.json").read_text())["vocab_size"]
    edit_json(teacher / "config.json", vocab_size=size + 64)
    said = finding_lines(tmp_path, distill(teacher))
    assert f"it has {size + 64} outputs, the base model {size}" in said


def test_a_teacher_that_was_taught_otherwise_is_a_warning(tmp_path: Path) -> None:
    teacher = model_copy(tmp_path)
    config = json.loads((teacher / "tokenizer_config.json").read_text())
    for file in teacher.glob("chat_template.jinja"):
        file.unlink()
    edit_json(teacher / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    found = checked(tmp_path, **distill(teacher))
    assert "distill.teacher: has another chat template" in lines(found, "warning")
    edit_json(teacher / "tokenizer_config.json", eos_token=config.get("pad_token") or "<other>")
    found = checked(tmp_path, **distill(teacher))
    assert "distill.teacher: ends a response with" in lines(found, "warning")
    assert errors(found) == []


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
def test_the_teachers_memory_is_counted(tmp_path: Path, mode: str) -> None:
    fields = {**distill(), "tuning__mode": mode}
    found = checked(tmp_path, **fields)
    without = checked(tmp_path, **rft(), tuning__mode=mode)
    assert found.needs is not None and without.needs is not None
    [ours] = [need for need in found.needs.stages if need.stage == "distill"]
    [plain] = [need for need in without.needs.stages if need.stage == "rft"]
    assert found.base_model is not None
    beside = ours.weights_bytes - plain.weights_bytes
    parameters = found.base_model.parameters
    assert beside == (4 * parameters if mode != "qlora" else plain.weights_bytes)


def test_a_deployment_finds_its_teacher_from_any_directory(tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(base_model_directory("freight-base"), tmp_path / "models" / "a"))
    recipe = Recipe.model_validate(changed(**distill("models/a")))
    moved = with_absolute_paths(recipe, tmp_path).section_of("distill")
    assert moved is not None and moved.models()["teacher"].source == str(teacher)


def finished(home: Path) -> Artifact:
    spec = StageSpec(stage="prepare", home=str(home), params={}, seed=0)
    for name in ("base_model.json", "tokenizer/x", "prompts/x"):
        path = work_directory(home, "prepare", spec.key) / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return publish(spec, StageResult(), 0.0, 1)


def test_what_a_teacher_is_decides_the_key(tmp_path: Path) -> None:
    teacher = model_copy(tmp_path)
    made = Recipe.model_validate(changed(**distill(teacher), sft=None))
    prepared = {"prepare": finished(tmp_path)}
    before = stage_spec(made, "distill", tmp_path, prepared)
    assert before.paths == {"teacher": str(teacher)}
    edit_json(teacher / "generation_config.json", temperature=0.5)
    assert stage_spec(made, "distill", tmp_path, prepared).key != before.key


def test_only_a_stage_that_names_a_model_or_reads_a_source_may_fetch_one() -> None:
    online = {name for name, stage in STAGES.items() if stage.online}
    assert online == {"prepare", "distill", "judge", "index", "questions"}
