"""Takes pictures of the pages of a promoted, a rejected and an inconclusive retrain of the quickstart.

    python docs/verdict_pictures.py [--browser chromium] [--home DIR] [--out docs]

Real retrains: the quickstart's pairs are promoted; pairs whose labels were swapped are rejected; and
too few prompts to judge on are inconclusive. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from browser import CHROMIUM, Browser

from alignflow.builtin import rows
from alignflow.ledger import add
from alignflow.lineage import history_of_model, retrain, write_history
from alignflow.pipeline import report_file
from alignflow.recipe import load_recipe

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "deployments" / "recipes" / "quickstart-retrain.yaml"
WIDTH = 1080
FIELDS = ("prompt", "chosen", "rejected")


class Case(NamedTuple):
    """A batch of feedback and how it is judged."""

    verdict: str
    pairs: slice
    """Of the quickstart's."""
    fields: Sequence[str]
    """Where prompt, chosen and rejected of a pair go."""
    overrides: Sequence[str] = ()


CASES = (
    Case("promote", slice(0, 400), FIELDS),
    Case("reject", slice(400, 650), ("prompt", "rejected", "chosen")),
    Case("inconclusive", slice(650, 850), FIELDS, ("evaluation.max_examples=40",)),
)


def retrained(home: Path, case: Case) -> Path:
    """The page of a retrain on a batch of its own, taken in as a service's feedback would be.

    Raises:
        SystemExit: It came to another verdict.
    """
    batch = home.parent / f"{case.verdict}.jsonl"
    pairs = rows("freight-preferences")[case.pairs]
    said = ({to: pair[of] for of, to in zip(FIELDS, case.fields, strict=True)} for pair in pairs)
    batch.write_text("".join(f"{json.dumps(pair)}\n" for pair in said))
    add(home, [batch], case.verdict)
    overrides = [
        "retrain.min_new_pairs=1",
        f"retrain.preference_set={case.verdict}",
        f"data.preferences=ledger:{case.verdict}",
        *case.overrides,
    ]
    report: Any = retrain(load_recipe(RECIPE, overrides), home=home)
    sys.stderr.write(f"{report.run_id}: {report.retrain['outcome']}\n")
    if report.retrain["verdict"] != case.verdict:
        raise SystemExit(f"wanted {case.verdict}, got {report.retrain['verdict']}")
    return report_file(home, report.run_id).with_suffix(".html")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--browser", default=CHROMIUM)
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignflow-pictures-") as temporary:
        home = (arguments.home or Path(temporary) / "home").absolute()
        home.mkdir(parents=True, exist_ok=True)
        os.environ["ALIGNFLOW_HOME"] = str(home)  # as who sees the pages has set it
        pages = {f"verdict-{case.verdict}": retrained(home, case) for case in CASES}
        name = load_recipe(RECIPE).registered_model
        pages["history"] = write_history(home, history_of_model(home, name))
        with Browser(arguments.browser) as browser:
            for stem, page in pages.items():
                picture = browser.look(page, width=WIDTH).png
                (arguments.out / f"{stem}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
