"""Puts on a Prefect server what we run there: work pool, GPU limit, automations, deployments.

    python -m tasks.provision deployments/automations.yaml prefect.yaml

Repeating it brings automations and deployments to what the files say, and changes nothing else. What
already lies in the inbox is taken in at once.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from prefect.cli import app
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments import run_deployment
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists

from alignflow.services import WORK_POOL
from tasks.policy import GPU_LIMIT

GPUS = 1


def provision(automations: Path) -> None:
    """Makes what is missing."""
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, GPUS)
        for automation in read_automations(automations):
            known = client.read_automations_by_name(automation.name)
            if known:
                client.update_automation(known[0].id, automation)
            else:
                client.create_automation(automation)


def read_automations(path: Path) -> list[AutomationCore]:
    """Automations of a file."""
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text())["automations"]
    return [AutomationCore.model_validate(entry) for entry in entries]


def deploy(prefect_yaml: Path) -> None:
    """`prefect deploy --all` of a file.

    Raises:
        SystemExit: It failed, and has said why.
    """
    options = ["--no-prompt", "deploy", "--all", "--prefect-file"]
    sys.argv = ["prefect", *options, str(prefect_yaml)]
    try:
        app()
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    provision(Path(sys.argv[1]))
    deploy(Path(sys.argv[2]))
    # A run of `ingest` now: its schedule begins one interval later.
    run_deployment("ingest/ingest", timeout=0, as_subflow=False)
