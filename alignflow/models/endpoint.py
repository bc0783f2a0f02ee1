"""What an OpenAI-compatible server says."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping
from typing import Any

KEY_VARIABLE = "ALIGNFLOW_JUDGE_KEY"


def ask_endpoint(address: str, body: Mapping[str, Any], timeout_seconds: float) -> Any:
    """The reply to a request, as JSON.

    Raises:
        OSError: Nothing answers, or it refuses.
        ValueError: The reply is no JSON.
    """
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
        return json.loads(response.read())


def chat_reply(endpoint: str, body: Mapping[str, Any], timeout_seconds: float) -> str:
    """What the model says, `endpoint` being the address up to `/v1`.

    Raises:
        OSError: Nothing answers, or it refuses.
        ValueError: The reply is not one of a chat.
    """
    reply = ask_endpoint(f"{endpoint.rstrip('/')}/chat/completions", body, timeout_seconds)
    try:
        return str(reply["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
