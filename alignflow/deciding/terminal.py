"""A decision in a terminal of 80 columns, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Decision = Mapping[str, Any]
COLUMNS = ("arm", "right", "95 %", "over base", "per 1,000", "per right", "p50", "forgot")


def print_decision(decision: Decision, console: Console) -> None:
    """The sentence, a row for each arm, and what was left out."""
    console.print(decision["sentence"], soft_wrap=False)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows(decision):
        table.add_row(*row)
    console.print(table, soft_wrap=False)
    for line in notes(decision):
        console.print(line, soft_wrap=False)


def rows(decision: Decision) -> Iterator[list[str]]:
    """A row of `COLUMNS` for each arm."""
    money = decision["currency"]
    for arm, row in decision["arms"].items():
        low, high = row["interval"]
        yield [
            f"{arm}{_mark(arm, decision)}",
            _percent(row["accuracy"]),
            f"{100 * low:.0f}-{100 * high:.0f}",
            _lead(arm, decision),
            _money(money, row["cost_per_1000"]),
            _money(money, row["cost_per_correct"]),
            _seconds(row["latency_p50_seconds"]),
            "-" if row["forgetting_nats"] is None else f"{row['forgetting_nats']:+.2f}",
        ]


def _mark(arm: str, decision: Decision) -> str:
    return " *" if arm == decision["recommended"] else ""


def _lead(arm: str, decision: Decision) -> str:
    """Points over base; in brackets where they are not shown."""
    tests = decision["verdict"]["tests"]
    found = next((t for t in tests if (t["first"], t["second"]) == (arm, "base")), None)
    if found is None:
        return "-"
    points = f"{100 * found['difference']:+.0f}"
    return points if found["shown"] else f"({points})"


def notes(decision: Decision) -> Iterator[str]:
    """What the table does not say, a line each."""
    verdict, counts = decision["verdict"], decision["questions"]
    yield ""
    if decision["recommended"]:
        yield "* recommended. In brackets: not shown at this level."
    else:
        yield "In brackets: not shown at this level."
    yield (
        f"{verdict['questions']} questions in the verdict, {counts['choice']:.0f} to choose by, "
        f"{counts['training']:.0f} to train on; {100 * decision['alpha']:.0f} % is the chance of any "
        "false 'A beats B'."
    )
    if decision["leaked"]:
        yield f"{len(decision['leaked'])} questions stand in the documents and left the verdict."
    if "oracle" in decision["arms"]:
        yield "oracle is given the passage with the answer: what reading can do at best."
    for arm, row in decision["arms"].items():
        if row["recall"] is not None and arm != "oracle":
            yield (
                f"{arm}: the answer was among the passages for {_percent(row['recall'])} of questions, "
                f"and then {_percent(row['accuracy_given_hit'])} were right."
            )
        if row["update"] and arm != "oracle":
            yield _update(arm, row["update"], decision["currency"])
    chosen = decision["recommended"]
    for arm, row in decision["arms"].items():
        if chosen and (volume := row["break_even_questions_per_month"]):
            yield f"{arm} and {chosen} cost the same at {volume:,.0f} questions a month."


def _update(arm: str, row: Mapping[str, Any], money: str) -> str:
    told = f"{arm} after the update: {_percent(row['accuracy'])} right"
    told += f", {_percent(row['stale'])} stale" if row["stale"] is not None else ""
    if row["seconds_to_be_right"] is None:
        return f"{told}; nothing of it can be updated."
    price = _money(money, row["cost_to_be_right"])
    return f"{told}; {row['seconds_to_be_right']:.1f} s ({price}) to bring it up to date."


def as_markdown(decision: Decision) -> str:
    """The table for Prefect."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(row) for row in rows(decision)]
    table = "\n".join(f"| {line} |" for line in lines)
    return f"{decision['sentence']}\n\n{table}\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _money(currency: str, value: float | None) -> str:
    return "-" if value is None else f"{currency}{value:.2g}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
