"""The command line as a shell sees it: exit codes, streams, speed, help, every wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from check_cases import (
    GOOD,
    changed,
    demonstrations,
    model_copy,
    without_children,
    write_recipe,
    write_rows,
)

from alignflow.commands import cli
from alignflow.errors import DataError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "deployments/recipes").glob("*.yaml"))
COMMANDS = ("init", "run", "check", "show", "evaluate", "generate", "export", "doctor")


def shell(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "alignflow.commands.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=60,
        check=False,
    )


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line in this process, and in no child of it."""
    with without_children():
        code = cli.exit_code_of(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, command, "--help")
    assert code == 0
    assert "Examples:" in out and f"alignflow {command}" in out


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from alignflow.commands import cli; cli.exit_code_of(['--help']);"
        "heavy = ('torch', 'transformers', 'prefect', 'mlflow', 'sqlalchemy', 'pydantic');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert all(f"  {command}" in done.stdout for command in COMMANDS)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.slow
def test_check_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, GOOD)
    code = (
        "import sys; from alignflow.commands import cli;"
        f"code = cli.exit_code_of(['check', {str(path)!r}, '--home', {str(tmp_path)!r}]);"
        "print(code, [m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr


def test_errors_of_the_recipe_come_within_two_seconds_and_all_at_once(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, changed(tuning__rank=0, seeed=1, dpo__beta="big"))
    started = time.monotonic()
    done = shell("check", str(path))
    assert time.monotonic() - started < 2 * float(os.environ.get("ALIGNFLOW_TEST_SLOWNESS", "2"))
    assert done.returncode == 64
    assert "tuning.rank is 0" in done.stderr
    assert "seeed: no such field; did you mean seed?" in done.stderr
    assert "dpo.beta is 'big'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["bogus"], ["run"], ["run", "x.yaml", "--nope"], ["generate", "m", "p", "--seed", "x"]],
    ids=["nothing", "command", "argument", "option", "value"],
)
def test_wrong_usage_is_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, *arguments)
    assert code == 64
    assert "Usage:" in err and "Traceback" not in err


def test_exit_codes_reach_the_shell() -> None:
    assert shell("bogus").returncode == 64
    assert shell("check", "nowhere.yaml").returncode == 64
    assert shell("--version").returncode == 0


@pytest.mark.parametrize(
    ("fields", "code", "expected"),
    [
        ({"tunning": {}}, 64, "tunning: no such field; did you mean tuning?"),
        ({"seed": "many"}, 64, "seed is 'many': input should be a valid integer"),
        ({"tuning__rank": 0}, 64, "tuning.rank is 0"),
        ({"tuning__alpha": -1}, 64, "tuning.alpha is -1"),
        ({"tuning__target_modules": ["w_q"]}, 64, "tuning.target_modules: the model has no linear"),
        ({"base_model": "./nowhere"}, 64, "base_model: './nowhere' is not a model directory"),
        ({"tuning__init_adapter": "./no"}, 64, "tuning.init_adapter: './no' is not an adapter"),
        ({"data__sft": "absent.jsonl"}, 65, "data.sft: absent.jsonl: no such file"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_wrong_input_is_named_with_what_to_do_before_anything_starts(
    command: str,
    fields: dict[str, object],
    code: int,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_recipe(tmp_path, changed(**fields))
    found, out, err = said(capsys, command, str(path), "--home", str(tmp_path / "home"))
    assert found == code
    assert expected in err
    assert "Traceback" not in err + out
    assert not (tmp_path / "home" / "artifacts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_passes_without_a_download(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    code, out, err = said(capsys, "check", str(path), "--json", "--home", str(tmp_path))
    found = json.loads(out)
    assert code == 0 and found["ok"], err
    levels = {finding["level"] for finding in found["recipes"][0]["findings"]}
    assert "error" not in levels
    unasked = [
        finding
        for finding in found["recipes"][0]["findings"]
        if finding["level"] == "advice" and not finding["field"].endswith("revision")
    ]
    assert unasked == []


def test_recipes_of_every_kind_are_shipped() -> None:
    recipes = [yaml.safe_load(path.read_text()) for path in RECIPES]
    sources = [recipe["base_model"] for recipe in recipes]
    assert any("72B" in str(source) for source in sources)
    assert any("json_schema" in recipe.get("evaluation", {}) for recipe in recipes)
    assert {"quickstart", "qwen3-0.6b-dpo", "qwen3-8b-qlora-dpo"} <= {r["name"] for r in recipes}


def test_check_says_what_it_looked_at_and_takes_several_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(
        tmp_path, changed(data__sft=write_rows(tmp_path / "rows.jsonl", demonstrations(1200)))
    )
    code, out, err = said(capsys, "check", str(path), str(tmp_path / "absent.yaml"))
    assert code == 64
    assert "sample of 1,000 of 1,200 rows, about 1,200 kept" in out
    assert "absent.yaml: no such recipe file" in err


def test_an_unexpected_exception_is_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(cli, "app", fails)
    code, _, err = said(capsys, "check")
    assert code == 70
    assert "ZeroDivisionError" in err and "defect of alignflow" in err


@pytest.mark.parametrize(
    ("raised", "code"), [(DataError("rows: bad"), 65), (KeyboardInterrupt(), 130)]
)
def test_an_error_is_one_message_and_its_code(
    raised: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(cli, "app", fails)
    found, out, err = said(capsys, "run", "x")
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1


def test_show_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "show", "--home", str(tmp_path))
    assert code == 64 and "Start one with" in err
    code, _, err = said(capsys, "show", "nope", "--home", str(tmp_path))
    assert code == 64 and "There is no run nope" in err


def test_generate_refuses_what_is_no_model_and_what_could_run_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = said(capsys, "generate", str(tmp_path), "hello")
    assert code == 66 and "holds no model" in err
    model = model_copy(tmp_path)
    (model / "pytorch_model.bin").write_bytes(b"\x80")
    code, _, err = said(capsys, "generate", str(model), "hello")
    assert code == 64 and "can run code" in err


@pytest.mark.slow
def test_generate_answers_with_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_copy(tmp_path)
    code, out, err = said(capsys, "generate", str(model), "list trucks", "--max-new-tokens", "4")
    assert (code, err) == (0, "")
    assert out.strip()


@pytest.mark.slow
def test_evaluate_judges_a_model_that_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = write_rows(
        tmp_path / "judged.jsonl", [{"prompt": f"list {n}", "target": "x"} for n in range(3)]
    )
    recipe = changed(
        data={"sft": "absent.jsonl", "preferences": "absent.jsonl", "evaluation": judged},
        evaluation={"metrics": ["exact_match"], "max_new_tokens": 2},
    )
    path = write_recipe(tmp_path, recipe)
    model = model_copy(tmp_path)
    code, out, err = said(
        capsys, "evaluate", str(model), "--recipe", str(path), "--home", str(tmp_path), "--json"
    )
    assert code == 0, err
    assert json.loads(out)["metrics"]["accuracy"] == 0.0


@pytest.mark.slow
def test_doctor_says_what_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "doctor", "--json", "--home", str(tmp_path))
    facts = {fact["name"]: fact for fact in json.loads(out)["facts"]}
    assert code == 0
    assert facts["torch"]["state"] == "good" and facts["bitsandbytes"]["state"] == "good"
    assert {"python", "cores", "lock", "gpu", "lora", "qlora", "full", "home", "hub"} <= set(facts)


def test_doctor_says_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignflow.services import doctor

    monkeypatch.setattr(doctor, "probe_torch", lambda: {"error": "ImportError: no torch"})
    monkeypatch.setattr(doctor, "LEAST_DISK_BYTES", 2**60)
    code, out, _ = said(capsys, "doctor", "--home", str(tmp_path))
    assert code == 70
    assert "ImportError: no torch" in out and "runs need at least" in out and "2 to repair" in out
