"""What `alignflow preview` shows is what `prepare` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stage_runs import write_lines

from alignflow.commands.cli import exit_code_of
from alignflow.data.stored import StoredRows
from alignflow.errors import RecipeError
from alignflow.pipeline import preview
from alignflow.recipe import Recipe
from alignflow.stages import Artifact, Prepared

PAIR = {"prompt_ids": "prompt", "chosen_ids": "chosen", "rejected_ids": "rejected"}


def recipe(base: Path, rows: dict[str, Path], **data: Any) -> Recipe:
    section = {"max_length": 64}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "base_model": str(base),
            "data": {part: str(path) for part, path in rows.items()} | data,
            "sft": section,
            "dpo": section,
            "method": "dpo",
            "evaluation": {"metrics": ["exact_match"]},
        }
    )


def test_every_row_has_the_ids_and_the_loss_that_prepare_writes(
    prepared: Artifact, tiny_base: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    shown = list(preview(recipe(tiny_base, tiny_rows), rows=100, home=tmp_path))
    files = Prepared(prepared.directory)
    sft = StoredRows.of(files.rows("sft"))
    assert [row.texts["row"].ids for row in shown if row.part == "sft"] == [
        row["input_ids"] for row in sft
    ]
    assert [row.texts["row"].loss for row in shown if row.part == "sft"] == [
        row["completion_mask"] for row in sft
    ]
    for held_out, name in ((False, "train"), (True, "held_out")):
        written = StoredRows.of(files.rows("preferences", name))
        pairs = [r for r in shown if r.part == "preferences" and r.held_out is held_out]
        assert [
            {column: row.texts[text].ids for column, text in PAIR.items()} for row in pairs
        ] == [{column: row[column] for column in PAIR} for row in written]
    tokens = next(row for row in shown if row.part == "sft").texts["row"].tokens
    assert "".join(tokens) == "<s><|user|>what colour is thing 0?<|assistant|>it is red.</s>"


def test_rows_are_json_lines_and_a_dropped_row_says_why(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "a?", "completion": "b."}
    rows = write_lines(tmp_path / "rows.jsonl", [good, good, {"prompt": "a?", "completion": ""}])
    file = tmp_path / "recipe.yaml"
    asked = write_lines(tmp_path / "asked.jsonl", [{"prompt": "c?", "target": "d."}])
    wanted = recipe(tiny_base, {"sft": rows, "preferences": rows, "evaluation": asked})
    file.write_text(wanted.model_dump_json(exclude_unset=True))
    command = [
        "preview",
        str(file),
        "--part",
        "sft",
        "--rows",
        "1",
        "--home",
        str(tmp_path / "home"),
    ]
    assert exit_code_of([*command, "--json"]) == 0
    first, dropped = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["part"], first["row"]) == ("sft", 1)
    assert len(first["ids"]) == len(first["tokens"]) == len(first["loss"])
    said = "".join(t for t, m in zip(first["tokens"], first["loss"], strict=True) if m)
    assert said == "b.</s>"
    assert (dropped["row"], dropped["dropped"]) == (3, "empty")
    assert f"{rows}:3" in dropped["message"]
    assert exit_code_of(command) == 0
    assert "«b.</s>»" in capsys.readouterr().out


def test_a_part_that_the_recipe_has_not_is_named(
    tiny_base: Path, tiny_rows: dict[str, Path]
) -> None:
    with pytest.raises(RecipeError, match=r"data.ratings: the recipe has none"):
        list(preview(recipe(tiny_base, tiny_rows), parts=["ratings"]))


def test_a_row_beyond_the_models_context_is_dropped_by_whatever_name_its_config_has(
    tiny_base: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    config["n_positions"] = config.pop("max_position_embeddings") // 16
    (base / "config.json").write_text(json.dumps(config))
    shown = list(preview(recipe(base, tiny_rows), parts=["sft"], rows=1, home=tmp_path / "home"))
    assert [row.dropped for row in shown] == ["too_long"]
