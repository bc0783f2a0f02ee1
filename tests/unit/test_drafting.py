"""What a draft chooses, and why."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from check_cases import demonstrations, write_rows
from fake_hub import hub_at
from test_hub_faults import COMMIT

from alignflow.builtin import base_model_directory
from alignflow.commands import cli
from alignflow.drafting import Asked, Interview, Question, choices, draft
from alignflow.drafting.interview import MOST_QUESTIONS
from alignflow.drafting.looking import Seen
from alignflow.drafting.targets import kind_of
from alignflow.errors import DataError
from alignflow.recipe import DataSource, ModelSource

CALL = json.dumps({"name": "find", "arguments": {"id": 7}})
SENTENCE = "The parcel is late because the truck broke down near Lyon."


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        (["SELECT a FROM b", "select 1 from c", "sorry"], "sql"),
        ([json.dumps({"answer": "SELECT a FROM b", "ordered": True})], "sql"),
        ([CALL, f"[{CALL}, {CALL}]", "No tool helps."], "calls"),
        (['{"a": 1}', "[1]", "no"], "json"),
        ([CALL, '{"a": 1}'], "json"),
        (["late", "lost", "other parcel"], "label"),
        ([SENTENCE, SENTENCE, "yes"], "text"),
        (["Select one of the trucks that are near you now."], "text"),
    ],
)
def test_answers_are_told_apart(targets: list[str], kind: str) -> None:
    assert kind_of(targets) == kind


def seen(**fields: Any) -> Seen:
    usual: dict[str, Any] = {
        "source": DataSource(source="rows.jsonl"),
        "part": "sft",
        "rows": 2000,
        "sampled": 1000,
        "prompts": 1000,
        "kind": "text",
        "lengths": [*range(100, 200)],
    }
    return Seen(**usual | fields)


@pytest.mark.parametrize(
    ("one", "weight"),
    [
        (seen(), 0.1),
        (seen(rows=100_000), 0.003),
        (seen(rows=100, sampled=100, prompts=100), 0.2),
        (seen(prompts=500), 0.05),
        (seen(rows=4000, prompts=40), 0.002),
        (seen(prompts=19), None),
        (seen(kind=None), None),
    ],
    ids=[
        "a tenth",
        "many rows",
        "few rows",
        "prompts twice",
        "few prompts",
        "too few prompts",
        "no targets",
    ],
)
def test_a_share_of_the_prompts_is_held_out(one: Seen, weight: float | None) -> None:
    chosen = choices.evaluation_choice([one]).value
    assert (chosen["weight"] if chosen else None) == weight


def test_rows_that_say_their_split_are_asked_by_it() -> None:
    assert choices.evaluation_choice([seen(judging=50)]).value == "rows.jsonl"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"learning_rate": 2e-4, "num_train_epochs": 2, "max_length": 224}),
        ({"full": True}, {"learning_rate": 2e-5}),
        ({"small": True}, {"learning_rate": 2e-3}),
        ({"context": 128}, {"max_length": 128}),
        ({"seen": [seen(rows=60)]}, {"num_train_epochs": 3, "batch_size": 4}),
        ({"seen": [seen(rows=20_000)]}, {"num_train_epochs": 1}),
        ({"seen": [seen(lengths=[50] * 200 + [5000])]}, {"max_length": 64}),
    ],
)
def test_a_stage_is_set_by_the_fields_rules(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    usual = {"seen": [seen()], "full": False, "small": False, "context": 4096}
    section = choices.training_section("sft", **usual | fields)
    values = {name: choice.value for name, choice in section.items()}
    assert values | expected == values
    assert all(choice.why for choice in section.values())


def asked(folder: Path, *names: str, **fields: Any) -> Asked:
    usual: dict[str, Any] = {
        "model": ModelSource(source="builtin:freight-base"),
        "sources": [DataSource(source=name) for name in names],
        "databases": [],
        "path": folder / "recipe.yaml",
        "home": folder,
    }
    return Asked(**usual | fields)


def drafted(made: Asked, interview: Interview | None = None) -> dict[str, Any]:
    return yaml.safe_load(draft(made, interview or Interview(), ["head"]).text)


@pytest.mark.slow  # reads rows in a child
def test_a_person_is_asked_five_things_at_most_and_is_obeyed(tmp_path: Path) -> None:
    told = [{"a": f"x{n}", "b": f"y{n}", "c": f"z{n}"} for n in range(40)]
    questions: list[Question] = []

    def last(question: Question) -> str:
        questions.append(question)
        return question.choices[-1]

    rows = write_rows(tmp_path / "rows.jsonl", told)
    recipe = drafted(asked(tmp_path, rows), Interview(last))
    assert recipe["data"]["sft"]["columns"] == {"prompt": "c", "completion": "b"}
    assert recipe["tuning"] == {"mode": "full"}
    assert recipe["evaluation"]["metrics"] == ["overlap"]
    assert len(questions) == MOST_QUESTIONS
    with pytest.raises(DataError, match="--column OURS=THEIRS"):
        drafted(asked(tmp_path, rows))


@pytest.mark.slow  # reads rows in a child
def test_a_model_too_large_for_adapters_is_quantized_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("alignflow.checking.needs.memory_available", lambda: 12 * 2**30)
    monkeypatch.setattr("alignflow.checking.needs.has_gpu", lambda: True)
    rows = write_rows(tmp_path / "rows.jsonl", demonstrations(300))
    made = draft(
        asked(tmp_path, rows, model=ModelSource(source="nobody/small-7B")), Interview(), []
    )
    recipe = yaml.safe_load(made.text)
    assert recipe["tuning"]["mode"] == "qlora"
    assert "12.0 GiB are free here" in made.text
    assert recipe["compute"]["micro_batch_size"] < 16


@pytest.mark.slow  # reads rows in a child
def test_a_file_named_for_tests_is_asked_and_sql_is_run_on_the_database_given(
    tmp_path: Path,
) -> None:
    told = [{"prompt": f"q{n}", "completion": "SELECT a FROM b"} for n in range(30)]
    train, test = (write_rows(tmp_path / f"{name}.jsonl", told) for name in ("train", "test"))
    recipe = drafted(asked(tmp_path, train, test, databases=["company.sqlite"]))
    assert recipe["data"] == {"sft": train, "evaluation": test}
    assert recipe["evaluation"]["metrics"] == [
        {"execution_accuracy": {"database": "company.sqlite"}}
    ]


@pytest.mark.slow  # reads rows in a child
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": f"q{n}"} for n in range(9)], "prompts and no answers"),
        ([{"prompt": f"q{n}", "target": "a"} for n in range(9)], "Give rows to train on too"),
        ([{"x": n} for n in range(9)], "lacks the columns"),
    ],
)
def test_what_cannot_be_trained_on_is_said(
    rows: list[dict[str, Any]], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=expected):
        drafted(asked(tmp_path, write_rows(tmp_path / "rows.jsonl", rows)))


@pytest.mark.slow  # reads rows in a child
def test_a_template_without_place_for_tools_is_not_replaced_by_one_in_foreign_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}]
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": turns, "tools": tools}] * 3)
    module = sys.modules["alignflow.drafting.draft"]  # whose name the function has
    monkeypatch.setattr(module, "CHATML", ("<|not there|>",))
    with pytest.raises(DataError, match="the chat template writes no tools"):
        drafted(asked(tmp_path, rows))


def test_a_recipe_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.yaml").write_text("mine")
    assert cli.exit_code_of(["init", "builtin:freight-base", "rows.csv"]) == 64
    assert "rows.yaml exists already" in capsys.readouterr().err
    assert (tmp_path / "rows.yaml").read_text() == "mine"


class Hub(BaseHTTPRequestHandler):
    """Gives the embedded model as `nobody/small-7B`, and notes which of its files are fetched."""

    model = base_model_directory("freight-base")
    fetched: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        file = self.model / name
        files = [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}
            for path in self.model.iterdir()
        ]
        told = files if "/tree/" in self.path else {"id": "nobody/small-7B", "sha": COMMIT}
        body = json.dumps(told).encode()
        if "/resolve/" in self.path:
            body = file.read_bytes()
            self.fetched.add(name)
        self.send_response(200)
        for header, value in (("ETag", f'"{name}"'), ("X-Repo-Commit", COMMIT)):
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.mark.slow  # reads rows in a child
def test_of_a_hub_model_only_what_rows_are_measured_with_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    hub_at(monkeypatch, address)
    place = "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE"
    monkeypatch.setattr(place, f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    rows = write_rows(tmp_path / "rows.jsonl", demonstrations(30))
    made = asked(tmp_path, rows, model=ModelSource(source="nobody/small-7B"))
    text = draft(made, Interview(), []).text
    server.shutdown()
    server.server_close()
    assert "context 512 tokens" in text and "tokens; rows have" in text
    assert "tokenizer.json" in Hub.fetched and "model.safetensors" not in Hub.fetched
