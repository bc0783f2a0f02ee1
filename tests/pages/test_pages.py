"""What `show`, `history` and the pages say of a rejected, an inconclusive and a promoted retrain.

The pages are looked at in a Chromium too, where there is one.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from browser import CHROMIUM, Browser
from fake_runs import new_home, use_fakes
from retrain_cases import MODEL, QUICK_GATE, drop, retrain_recipe

from alignflow.commands.cli import exit_code_of
from alignflow.lineage import promote_by_hand, retrain, roll_back_by_hand
from alignflow.pipeline import Report, report_file

pytestmark = pytest.mark.timeout(400)  # three retrains before the first test
WIDTHS = (390, 1280)
LOOK = """(() => {
  const page = document.documentElement, said = document.querySelector('.verdict strong');
  const box = said ? said.getBoundingClientRect() : null;
  return {
    overflow: page.scrollWidth - innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    seen: box && box.width > 0 && box.top >= 0 && box.bottom <= innerHeight && said.textContent,
  };
})()"""


class Told(NamedTuple):
    """Retrains of one home, and who they are about."""

    home: Path
    rejected: Report
    inconclusive: Report
    promoted: Report


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[Told]:
    """Three retrains on fake stages, then a rollback and a promotion by hand."""
    folder = tmp_path_factory.mktemp("told")
    home, orders = new_home(folder / "home", mlflow_store), folder / "orders"
    orders.mkdir()
    (orders / "answers").touch()
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, orders)
        cases: list[tuple[float, dict[str, Any]]] = [
            (0.5, {}),  # no better than the SFT model
            (0.8, {"gate": {**QUICK_GATE, "min_prompts": 300}}),
            (0.8, {}),
        ]
        reports: list[Any] = []
        for number, (quality, section) in enumerate(cases):
            drop(home, 40 * number, 40 * (number + 1))
            (orders / "quality").write_text(str(quality))
            reports.append(retrain(retrain_recipe(**section), home=home, progress=False))
        roll_back_by_hand(home, MODEL, None, "answers got rude")
        promote_by_hand(home, reports[-1].run_id, None, "they did not")
        yield Told(home, *reports)


def run(capsys: pytest.CaptureFixture[str], home: Path, *command: str) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert exit_code_of([*command, "--home", str(home)]) == 0
    return capsys.readouterr().out


def page_of(told: Told, report: Report) -> Path:
    return report_file(told.home, report.run_id).with_suffix(".html")


@pytest.mark.parametrize(
    ("case", "verdict", "who", "command", "flips"),
    [
        ("rejected", "Rejected: not better by", f"{MODEL} stays generation 0.", "promote", 0),
        ("inconclusive", "Inconclusive: 200 prompts", "stays generation 0.", "promote", 5),
        ("promoted", "Promoted: better than the", f"{MODEL} is generation 1 now.", "rollback", 5),
    ],
)
def test_a_verdict_is_said_first_with_its_reason_and_the_command_that_undoes_it(
    told: Told,
    case: str,
    verdict: str,
    who: str,
    command: str,
    flips: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report: Report = getattr(told, case)
    shown = run(capsys, told.home, "show", report.run_id)
    page = html.unescape(page_of(told, report).read_text())
    for text in (shown, page):
        assert verdict in text and who in text and "champion" in text and "candidate" in text
        assert f"alignflow {command} " in text and f"--home {told.home}" in text
        assert text.count("fixed") >= flips and (flips or "flipped" not in text)
    assert page.index("<strong>") < page.index(f"alignflow {command} ") < page.index("<h1>")
    assert "<th>champion<br><small>generation 0</small></th>" in page
    quality = {"rejected": "50.0 %"}.get(case, "80.0 %")
    assert f"accuracy                {quality} (" in shown and "50.0 % (45.0 to 55.0)" in shown
    assert "one-sided" in page and (case == "inconclusive" or "exact McNemar, one-sided" in shown)
    assert report["evaluation"]["champion"] == {"accuracy": 0.5}
    assert all(len(line) <= 80 for line in shown.partition(verdict)[0].splitlines())


def test_databases_get_places_of_answers_and_no_texts(told: Told) -> None:
    from alignflow.tracking import registry_client, tracking_uri

    assert told.promoted.retrain is not None
    flips = told.promoted.retrain["gate"]["flips"]
    assert len(flips) == 5 and set(flips[0]) == {"prompt_index", "before", "after"}
    written = json.dumps(told.promoted)
    assert "right: 1.0" not in written and "Is p" not in written
    assert "right: 1.0" in page_of(told, told.promoted).read_text()
    client, run_id = registry_client(tracking_uri(told.home)), str(told.promoted.mlflow["run_id"])
    stored = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in stored.iterdir()} == {"report.json", "report.html"}
    texts = "".join(path.read_text() for path in stored.iterdir())
    assert "Promoted: better" in texts and "right: 1.0" not in texts and "Is p" not in texts


def test_the_history_tells_all_that_happened_with_figures(
    told: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = json.loads(run(capsys, told.home, "history", MODEL, "--json"))
    assert (found["champion"], found["metric"]) == (2, "accuracy")
    happened = [(e["happened"], e["generation"], e["figure"]) for e in found["entries"]]
    assert happened == [
        ("founded", 0, 0.5),
        ("rejected", None, 0.5),
        ("inconclusive", None, 0.8),
        ("promoted", 1, 0.8),
        ("rollback", 0, 0.5),
        ("by hand", 2, 0.8),
    ]
    assert [e["undone"] for e in found["entries"]] == [False, False, False, True, False, False]
    assert found["entries"][1]["run"] == told.rejected.run_id
    shown = run(capsys, told.home, "history", MODEL)
    assert f"{MODEL} is generation 2 now." in shown and "rollback 0: answers got rude" in shown
    title, _, head, *table = shown.splitlines()[:9]
    assert title == f"{MODEL}: accuracy over time" and head.split() == [
        "gen",
        "when",
        "what",
        "figure",
    ]
    assert all(len(line) <= 80 for line in table) and table[2].count("█") == 16
    page = (told.home / "runs" / "histories" / f"{MODEL}.html").read_text()
    assert page.count('class="mark ') == 6 and "they did not" in page
    capsys.readouterr()
    assert exit_code_of(["history", "other", "--home", str(told.home)]) == 64
    assert f"Models with one: {MODEL}." in capsys.readouterr().err


def test_runs_are_compared_by_settings_figures_curves_and_answers(
    told: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = (told.rejected.run_id, told.promoted.run_id)
    shown = run(capsys, told.home, "show", *names)
    assert all(len(line) <= 80 for line in shown.splitlines() if "page" not in line)
    settings, figures, curves, flips = shown.split("\n\n")[1:5]
    assert "prepare.data.pre" in settings and "stage sft" in settings and "rank" not in settings
    assert "50.0 % (45.0 to 55.0)  80.0 % (75.0 to 85.0)" in figures
    assert "dpo loss     B  █▃▁  1 → 0.333" in curves
    assert flips.count("fixed") == 5 and "A, wrong" in flips and "B, right" in flips
    page = Path(shown.rsplit(maxsplit=1)[1]).read_text()
    assert page.count('<polyline class="line0"') == 3 == page.count('<polyline class="line1"') + 1
    found = json.loads(run(capsys, told.home, "show", *names, "--json"))
    assert [one["accuracy"] for one in found["evaluation"]] == [0.5, 0.8]
    assert found["flips"] == {"A, B": ["fixed"] * 5} and "Is p" not in json.dumps(found)
    assert exit_code_of(["show", names[0], names[0], "--home", str(told.home)]) == 64


@pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason=f"there is no {CHROMIUM} on the PATH")
def test_pages_fit_a_phone_and_a_desk_in_both_themes(
    told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, told.home, "history", MODEL)
    run(capsys, told.home, "show", told.rejected.run_id, told.promoted.run_id)
    reports = [page_of(told, report) for report in told[1:]]
    others = [*told.home.glob("runs/histories/*"), *told.home.glob("runs/comparisons/*")]
    assert len(others) == 2
    with Browser() as browser:
        for page in [*reports, *others]:
            grounds = set()
            for width in WIDTHS:
                for dark in (False, True):
                    look = browser.look(page, width=width, dark=dark, script=LOOK, draw=False)
                    assert look.errors == [] and look.facts["overflow"] <= 0, (page, width)
                    assert look.facts["ground"] != look.facts["ink"]
                    grounds.add(look.facts["ground"])
                    seen = look.facts["seen"] or ""
                    assert page not in reports or "generation" in seen, "the verdict is in sight"
            assert len(grounds) == 2, "light and dark differ"
