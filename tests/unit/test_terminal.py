"""What is printed: user's text as it is, in any encoding, whoever reads it."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignflow.commands import cli
from alignflow.errors import DataError
from alignflow.pipeline import plain_console, print_report, shown_on, tell
from alignflow.stages import StageOutcome

ROOT = Path(__file__).parents[2]
NAME = "[draft] type:label:str [/] [bold]"
PRINTS = (
    "from alignflow.commands import cli; import sys, typer; "
    "cli.app = lambda **_: {body}; sys.argv = ['alignflow']; cli.main()"
)


def test_consoles_and_columns_of_text_are_made_in_one_place() -> None:
    makers = []
    for folder in ("alignflow", "flows", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Name) and called.id in ("Console", "TextColumn"):
                    makers.append((path.name, called.id))
                marked = isinstance(node, ast.ImportFrom) and node.module == "rich.markup"
                assert not marked, f"{path}: styles stand beside the text, in rich.text.Text"
    assert makers == [("terminal.py", "Console"), ("terminal.py", "TextColumn")]


def captured(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def a_console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("COLUMNS", "200")
    console = plain_console()
    console.file = io.StringIO()
    return console


def test_brackets_and_colons_of_a_name_are_printed_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report: dict[str, Any] = {
        "run_id": NAME,
        "status": "failed",
        "seconds": 1.0,
        "evaluation": {},
        "stages": [
            {"stage": "sft", "state": "failed", "seconds": 1.0, "error": NAME, "artifact": None}
            | {"metrics": {}}
        ],
        "merged_model": None,
        "adapter": NAME,
        "mlflow": {"tracking_uri": NAME, "problem": "nothing is recorded (away)"},
    }
    console = a_console(monkeypatch)
    print_report(report, console)
    with shown_on(console):
        ended = StageOutcome(stage="sft", state="failed", error=NAME)
        tell(lambda observer: observer.stage_ended(ended))
    assert captured(console).count(NAME) == 5
    assert f"MLflow        nothing is recorded (away): {NAME}" in captured(console)


def test_a_bar_shows_a_file_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress

    from alignflow.pipeline import text_column

    console = a_console(monkeypatch)
    with Progress(text_column("{task.description}"), console=console) as progress:
        progress.add_task(NAME)
    assert NAME in captured(console)


def run(body: str, tail: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command that prints, in a process of its own whose output a shell redirects."""
    command = f'"$PY" -c "$CODE" {tail}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "PY": sys.executable, "CODE": PRINTS.format(body=body), **environment},
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "arrow", "name"), [("ascii", b"->", rb"\xe9"), ("latin-1", b"->", b"\xe9")]
)
def test_what_an_encoding_lacks_is_printed_plainer(
    encoding: str, arrow: bytes, name: bytes
) -> None:
    done = run(
        r"print('sft \u2192 dpo \u00e9 \u4e2d \udcff')", PYTHONIOENCODING=encoding, TERM="dumb"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"sft " + arrow + b" dpo " + name + rb" \u4e2d \udcff" + b"\n"


def test_a_reader_that_goes_ends_nothing() -> None:
    done = run("[typer.echo('x' * 9999) for _ in range(99)] and 65", "| head -c 1")
    assert (done.returncode, done.stdout, done.stderr) == (65, b"x", b"")


def test_a_closed_stdout_ends_nothing() -> None:
    done = run("typer.echo('x') or typer.echo('y', err=True)", ">&-")
    assert (done.returncode, done.stderr) == (0, b"y\n")


def test_a_full_disk_below_stdout_is_said() -> None:
    done = run("typer.echo('x')", "> /dev/full")
    assert done.returncode == 71
    assert b"stdout could not be written in full" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with shown_on(console):
        done = StageOutcome(stage="sft", state="completed", seconds=2.0)
        tell(lambda observer: observer.stage_ended(done))
    assert captured(console).startswith("sft        completed     2.0 s")


def test_a_prompt_that_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from check_cases import model_copy

    model = model_copy(tmp_path)
    stdin = io.TextIOWrapper(io.BytesIO(b"abc\xe9"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.exit_code_of(["generate", str(model), "-"]) == 64
    assert "stdin is not utf-8 text: byte 3 is 0xe9" in capsys.readouterr().err
    assert cli.exit_code_of(["generate", str(model), "abc\udce9"]) == 64
    assert "PROMPT is not text" in capsys.readouterr().err


def test_a_refused_file_fails_the_command_and_the_others_are_taken_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "[draft].jsonl"
    good.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    bad.write_bytes(b"\xff\xfe{\n")
    added = ["prefs", "add", str(bad), str(good), "--home", str(tmp_path / "home")]
    assert cli.exit_code_of(added) == DataError.exit_code == 65
    out = capsys.readouterr().out
    assert "1 accepted" in out and f"refused (not_the_data): {bad}" in out
