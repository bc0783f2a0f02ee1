"""`alignflow up`: everything that retrains unattended, on one machine, for a person to look at."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from alignflow.commands.options import Home
from alignflow.errors import AlignflowError, RecipeError
from alignflow.files import held
from alignflow.ledger import inbox_at, news, printable, seen_now
from alignflow.pipeline import plain_console
from alignflow.services import WORK_POOL, Service, check_recipe, demand_free, ended_together
from alignflow.settings import resolve_home
from alignflow.stages import NO_TELEMETRY, prefect_environment
from alignflow.tracking import local_store

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "deployments" / "recipes" / "quickstart-retrain.yaml"
AUTH = (
    *("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD"),
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)
LOOK_SECONDS = 1.0
WORKER_STARTS = 5


def up(
    recipe: Annotated[Path, typer.Option("--recipe", help="What `retrain` trains.")] = RECIPE,
    home: Home = None,
    inbox: Annotated[
        str | None,
        typer.Option("--inbox", help="Folder or address that is watched. Default: HOME/inbox."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    prefect_port: Annotated[int, typer.Option("--prefect-port", help="Prefect's port.")] = 4200,
    mlflow_port: Annotated[int, typer.Option("--mlflow-port", help="MLflow's port.")] = 5000,
) -> None:
    """Starts Prefect, a worker and MLflow here, with ingest, retrain and finetune deployed.

    Put files of preferences into the inbox; enough new ones start a retrain, a gate decides about
    its model. Follow it in Prefect's UI. Ctrl-C ends everything; the next `up` continues.

    \b
    Examples:
      alignflow up
      alignflow up --recipe my.yaml --home /data/alignflow
    """  # noqa: D301 (click's mark)
    demand_auth(host, os.environ)
    place = resolve_home(home)
    named = f"[{host}]" if ":" in host else host
    api = f"http://{named}:{prefect_port}/api"
    environment = up_environment(place, recipe, inbox, api, host)
    watched = _checked(recipe, environment)
    environment.setdefault("ALIGNFLOW_MLFLOW_UI_URL", f"http://{named}:{mlflow_port}")
    demand_free(host, prefect_port, "--prefect-port")
    demand_free(host, mlflow_port, "--mlflow-port")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with (
        held(place / "up" / "up.lock", lambda: _refuse_second(place)),
        ended_together() as services,
    ):

        def start(name: str, command: list[str], more: Mapping[str, str] | None = None) -> Service:
            log = place / "up" / f"{name}.log"
            service = Service(name, command, {**environment, **(more or {})}, log)
            services.append(service)
            return service

        tell_news = _teller(place)
        typer.echo("Starting Prefect and MLflow ...")
        server = start("prefect", prefect_command(host, prefect_port))
        tracking = start(
            "mlflow", mlflow_command(host, mlflow_port, place), mlflow_environment(host, place)
        )
        server.wait_until_healthy(f"{api}/health")
        start("deploy", deploy_command()).wait_until_done()
        start("worker", worker_command())
        tracking.wait_until_healthy(f"http://{named}:{mlflow_port}/health")
        typer.echo(
            f"Prefect   http://{named}:{prefect_port}\n"
            f"MLflow    http://{named}:{mlflow_port}\n"
            f"Inbox     {watched}\n"
            f"Home      {place} (logs in {place / 'up'})\n"
            "Ctrl-C ends everything."
        )
        try:
            _watch(services, lambda: start("worker", worker_command()), tell_news)
        except KeyboardInterrupt:
            typer.echo("Ending; the next `alignflow up` continues.")


def _refuse_second(home: Path) -> None:
    raise RecipeError(
        f"Another `alignflow up` serves {home}: two would start each retrain twice. End it first, or "
        "give this one a --home of its own."
    )


def _teller(home: Path) -> Callable[[], None]:
    """What prints the ledger's news since the last call; a fault that lasts is said once."""
    console, seen, fault = plain_console(), seen_now(home), ""

    def tell() -> None:
        nonlocal seen, fault
        try:
            lines, seen = news(home, seen)
        except AlignflowError as error:
            lines = [] if error.message == fault else [error.message]
            fault = error.message
        for line in lines:
            console.print(f"{time.strftime('%H:%M:%S')}  {printable(line.encode())}")

    return tell


def _watch(
    services: list[Service], start_worker: Callable[[], Service], tell_news: Callable[[], None]
) -> None:
    """Returns never: says what happens, starts a worker that died again, gives up on a server.

    Raises:
        StageError: A server ended, or the worker too often.
    """
    starts = 1
    while True:
        time.sleep(LOOK_SECONDS)
        tell_news()
        for service in list(services):
            if service.exit_code is None or service.name == "deploy":
                continue
            if service.name != "worker" or starts >= WORKER_STARTS:
                raise service.failure()
            starts += 1
            services.remove(service)
            typer.echo(f"The worker ended with {service.exit_code}; starting it again.", err=True)
            start_worker()


def demand_auth(host: str, environment: Mapping[str, str]) -> None:
    """Refuses to listen beyond this machine without a password on both servers.

    Raises:
        RecipeError: One is missing.
    """
    if is_loopback(host):
        return
    missing = [name for name in AUTH if not environment.get(name)]
    if missing:
        raise RecipeError(
            f"--host {host} would let other machines run code here and read every preference: "
            f"{', '.join(missing)} must be set first. Without --host only this machine can connect."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to what listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def up_environment(
    home: Path, recipe: Path, inbox: str | None, api: str, host: str
) -> dict[str, str]:
    """Environment of all processes; what this one has wins where it does not contradict."""
    auth = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    watched = str(Path(inbox).absolute()) if inbox and "://" not in inbox else inbox
    return {
        **os.environ,
        **prefect_environment(home),
        **NO_TELEMETRY,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api if is_loopback(host) else "/api",
        **({"PREFECT_API_AUTH_STRING": auth} if auth else {}),
        "ALIGNFLOW_HOME": str(home),
        "ALIGNFLOW_RECIPE": str(recipe.absolute()),
        **({"ALIGNFLOW_INBOX": watched} if watched else {}),
    }


def _checked(recipe: Path, environment: Mapping[str, str]) -> str:
    """The inbox, after what `prefect deploy` will check: here it is said at once and in full."""
    if not (ROOT / "prefect.yaml").is_file():
        raise RecipeError(
            f"{ROOT / 'prefect.yaml'} is not there: `alignflow up` needs a checkout of alignflow, "
            "installed with `pip install --editable .`"
        )
    ours = (name for name in environment if name.startswith("ALIGNFLOW_"))
    os.environ.update({name: environment[name] for name in ours})
    checked = check_recipe(str(recipe))
    inbox_at(checked["inbox"], Path(checked["home"]))
    return checked["inbox"]


def prefect_command(host: str, port: int) -> list[str]:
    """Prefect's server with its UI and its services, in one process."""
    return [
        *(sys.executable, "-m", "uvicorn", "prefect.server.api.server:create_app", "--factory"),
        *("--host", host, "--port", str(port), "--log-level", "warning"),
    ]


def mlflow_command(host: str, port: int, home: Path) -> list[str]:
    """MLflow's server on the store of the home."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)),
        *("--backend-store-uri", local_store(home), "--workers", "1"),
        *("--default-artifact-root", str(home / "mlartifacts")),
        *([] if is_loopback(host) else ["--app-name", "basic-auth"]),
    ]


def mlflow_environment(host: str, home: Path) -> dict[str, str]:
    """No job runners, five processes that nothing here uses; and what it needs to ask for passwords.

    Its users stand in the home; the first is `admin`.
    """
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if is_loopback(host):
        return environment
    config = home / "up" / "mlflow_auth.ini"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(
        "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
        f"database_uri = sqlite:///{home / 'up' / 'mlflow_auth.db'}\n"
    )
    return {
        **environment,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
    }


def deploy_command() -> list[str]:
    """Applies work pool, automations and deployments; a recipe's relative paths start here."""
    automations, deployments = ROOT / "deployments" / "automations.yaml", ROOT / "prefect.yaml"
    return [sys.executable, "-m", "tasks.provision", str(automations), str(deployments)]


def worker_command() -> list[str]:
    """A worker that starts flow runs as processes of this machine."""
    start = ("-m", "prefect", "worker", "start", "--type", "process")
    return [sys.executable, *start, "--pool", WORK_POOL]
