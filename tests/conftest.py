"""A real Prefect server for the session, homes with a real MLflow store, and fake stages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from fake_runs import new_home, use_fakes

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
# A shell starts what it puts in the background with Ctrl-C ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
QUICK = ("unit", "tests")
SERVERS = {"prefect_server", "mlflow_store"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file that is slow as a whole is not even imported where no slow test is wanted."""
    if collection_path.suffix != ".py" or "not slow" not in config.option.markexpr:
        return None
    return True if "\npytestmark = pytest.mark.slow" in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What trains or asks for a server is slow, whether or not it is marked so."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.path.parent.name not in QUICK or fixtures & SERVERS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Address of a real, temporary Prefect server."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database whose tables are made: the migrations take seconds and are MLflow's."""
    from alignflow.tracking.connection import Connection

    folder = tmp_path_factory.mktemp("mlflow")
    _ = Connection(f"sqlite:///{folder / 'mlflow.db'}", "template", folder / "mlartifacts").client
    return folder / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, mlflow_store: Path) -> Path:
    """A home without artifacts."""
    return new_home(tmp_path / "home", mlflow_store)


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every stage is a fake; a file named after a stage in this folder says what it does."""
    folder = tmp_path / "orders"
    folder.mkdir()
    use_fakes(monkeypatch, folder)
    return folder


@pytest.fixture(scope="module")
def one_forkserver() -> Iterator[None]:
    """Flows of a module on real stages share it: seven seconds of imports each."""
    from alignflow.stages import forkserver

    with forkserver.ended_after(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "ended_after", nullcontext)
        yield
