"""Writes what became of each architecture into docs/models.md; `make models` runs it.

python benchmarks/models_table.py OUTCOMES.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGINS, ENDS = "<!-- table: make models -->", "<!-- end of table -->"


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    lines = ["| Architecture | Chat template | Outcome |", "|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["architecture"]):
        ends = f"supported; `{row['closes']}` ends an answer"
        ends += f"; no reward model ({row['reward']})" if row["reward"] else ""
        told = f"refused: {row['refused']}" if row["refused"] else ends
        cell = told.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row['architecture']} | {row['template']} | {cell} |")
    before, _, rest = PAGE.read_text().partition(BEGINS)
    after = rest.partition(ENDS)[2]
    PAGE.write_text("\n".join([f"{before}{BEGINS}", "", *lines, "", f"{ENDS}{after}"]))
    supported = sum(not row["refused"] for row in rows)
    print(f"{len(rows)} pairs: {supported} supported, {len(rows) - supported} refused; see {PAGE}")


if __name__ == "__main__":
    main()
