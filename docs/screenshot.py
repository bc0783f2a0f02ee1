"""Takes the picture of a retrain run's page in the Prefect UI, from a file of feedback to the page.

    python docs/screenshot.py [--browser chromium] [--home DIR] [--out docs/retrain-run.png]

Starts `alignflow up` on ports that are free, drops the quickstart's preference pairs into the inbox,
and gives no further command: the retrain on the page was started by the automation. Takes a few
minutes.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from alignflow.builtin import rows

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 1800
FIELDS = ("prompt", "chosen", "rejected")


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def start_up(home: Path, ports: tuple[int, int]) -> subprocess.Popen[str]:
    """`alignflow up`, once it says that everything has started."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "alignflow.commands.cli", "up", "--home", str(home)),
            *("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            return process
    raise SystemExit(f"alignflow up ended with {process.wait()}")


def drop_feedback(home: Path) -> None:
    """Puts the quickstart's pairs into the inbox, whole at once, as a service would."""
    inbox = home / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({field: pair[field] for field in FIELDS}) for pair in rows("freight-preferences")
    ]
    unfinished = inbox / ".feedback.jsonl"
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.rename(inbox / "feedback.jsonl")


def finished_retrain(api: str) -> dict[str, Any]:
    """The retrain run that new preferences started, when it has ended.

    Raises:
        SystemExit: It failed, or took too long.
    """
    query = json.dumps({"flows": {"name": {"any_": ["retrain"]}}}).encode()
    request = urllib.request.Request(
        f"{api}/flow_runs/filter", query, {"Content-Type": "application/json"}
    )
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        with urllib.request.urlopen(request, timeout=60) as answer:
            for run in json.load(answer):
                if run["state_type"] in ("FAILED", "CRASHED", "CANCELLED"):
                    raise SystemExit(f"{run['name']}: {run['state']['message']}")
                if (
                    run["state_type"] == "COMPLETED"
                    and run["parameters"]["reason"] == "preferences"
                ):
                    return run
        time.sleep(2)
    raise SystemExit(f"no retrain run was Completed in {LIMIT_SECONDS} seconds")


def take_picture(browser: str, address: str, out: Path) -> None:
    """Draws a page with a browser that has no window.

    Raises:
        SystemExit: The browser is not there, or made no picture.
    """
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1440,1500",
        "--virtual-time-budget=30000",
        f"--screenshot={out}",
        address,
    ]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise SystemExit(f"{browser} is not on the PATH; name a Chromium by --browser") from None
    if not out.is_file():
        raise SystemExit(f"{browser} made no picture: {finished.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "retrain-run.png")
    arguments = parser.parse_args()
    ports = free_port(), free_port()
    address = f"http://127.0.0.1:{ports[0]}"
    with tempfile.TemporaryDirectory(prefix="alignflow-screenshot-") as temporary:
        home = (arguments.home or Path(temporary) / "home").absolute()
        process = start_up(home, ports)
        try:
            drop_feedback(home)
            run = finished_retrain(f"{address}/api")
            sys.stderr.write(f"{run['name']}: {run['state']['message']}\n")
            take_picture(arguments.browser, f"{address}/runs/flow-run/{run['id']}", arguments.out)
        finally:
            process.terminate()
            process.wait(timeout=120)


if __name__ == "__main__":
    main()
