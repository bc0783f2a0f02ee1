"""What a command needs before it runs a flow in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from alignflow.machine import demand_room
from alignflow.services import start_temporary_server
from alignflow.stages import prefect_environment
from alignflow.tracking import import_mlflow


def servers_coming_up(home: Path) -> Callable[[], None]:
    """Starts Prefect's server unless one is configured; returns what waits until a flow may run.

    Import the flow between the two: the server comes up during its imports, which must not come
    before, since Prefect reads its environment when it is imported.
    """
    os.environ.update(prefect_environment(home))
    demand_room(home)
    wait_for_server = start_temporary_server(home)

    def wait() -> None:
        from tasks.driver import demand_server

        import_mlflow()
        wait_for_server()
        demand_server()

    return wait
