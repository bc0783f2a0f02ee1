"""A notification block of Prefect, saved on the server in force, and the HTTP server that it calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

SLUG = "custom-webhook/team"


@contextmanager
def saved_webhook(status: int = 200) -> Iterator[list[dict[str, str]]]:
    """What the block `custom-webhook/team` has sent so far: subject and body of each call."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    heard: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing on stderr."""

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        block = CustomWebhookNotificationBlock(
            name="hook",
            url=f"http://127.0.0.1:{server.server_port}",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        )
        block.save("team", overwrite=True)
        yield heard
        server.shutdown()
