"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Directory of all results. Default: ALIGNFLOW_HOME or .alignflow."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, all else on stderr.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. --set dpo.beta=0.2."),
]
