"""Whether the notification block that a recipe names is there, where a Prefect server is configured."""

from __future__ import annotations

import base64
import json
import os
from http import HTTPStatus
from typing import Any

from alignflow.checking.findings import Finding, note, warning
from alignflow.machine import first_line
from alignflow.recipe import Recipe
from alignflow.settings import Settings, without_password

SECONDS = 5.0
BAD_RIGHTS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def notification_findings(recipe: Recipe) -> list[Finding]:
    """What stands against the recipe's `notify`; nothing where no server is configured."""
    address = Settings().prefect_api_url
    if recipe.notify is None or address is None:
        return []
    import urllib.error

    kind, _, name = recipe.notify.partition("/")
    shown = without_password(address)
    try:
        block = _get(f"{address.rstrip('/')}/block_types/slug/{kind}/block_documents/name/{name}")
    except urllib.error.HTTPError as error:
        if error.code in BAD_RIGHTS:
            return [note("notify", f"{shown} refuses to say whether {recipe.notify} is saved.")]
        text = f"{shown} has no block {recipe.notify}, so nobody would be notified. Save one there"
        return [warning("notify", f"{text} (Blocks in Prefect's UI), or correct the slug.")]
    except (OSError, ValueError) as error:
        return [note("notify", f"not looked at: {shown} does not answer ({first_line(error)}).")]
    if "notify" not in block.get("block_schema", {}).get("capabilities", []):
        return [warning("notify", f"{recipe.notify} is a block that cannot notify; name another.")]
    return []


def _get(address: str) -> dict[str, Any]:
    import urllib.request

    headers: dict[str, str] = {}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)
