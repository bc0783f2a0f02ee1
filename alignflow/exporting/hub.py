"""A model's folder for the Hub, and its upload in one commit."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.errors import RecipeError, StageError
from alignflow.exporting.origin import shown
from alignflow.machine import writing_to_hub
from alignflow.merging import Certificate

NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
ATTEMPTS, WAIT_SECONDS = 3, 5.0
Content = Path | bytes
"""A file, or what is written into one."""


def demand_name(repo: str) -> None:
    """Refuses what cannot be a model's name on the Hub.

    Raises:
        RecipeError: It is not OWNER/NAME.
    """
    if not NAME.fullmatch(repo):
        raise RecipeError(f"--repo {repo}: write OWNER/NAME, as in ada/support-qwen3.")


def published_certificate(certificate: Certificate) -> bytes:
    """The certificate without paths of this machine."""
    told = certificate.model_dump(mode="json", exclude={"serve"})
    told["base"]["source"] = shown(str(told["base"]["source"]), str(told["base"]["digest"]))[0]
    for adapter in told["adapters"]:
        adapter["path"] = Path(adapter["path"]).name
    return (json.dumps(told, indent=2) + "\n").encode()


def published_adapter_config(adapter: Path, base: str) -> bytes:
    """PEFT's config with the base model as strangers may read it."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    return (json.dumps(config, indent=2) + "\n").encode()


def write_folder(contents: Mapping[str, Content], folder: Path) -> None:
    """Writes the folder as it would be on the Hub."""
    folder.mkdir(parents=True)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)


def push(contents: Mapping[str, Content], repo: str, *, public: bool, message: str) -> str:
    """Makes the repository where there is none, and uploads all files in one commit; its address.

    What was uploaded before a failure is not sent again by the next attempt.

    Raises:
        RecipeError: The token may not, or the repository is public and `public` is not said.
        StageError: The Hub cannot be reached or has no time.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi()
    with writing_to_hub(repo):
        known = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo).private:
            raise RecipeError(
                f"{repo} is public on the Hub already. --public agrees to that; else name another "
                "--repo."
            )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _commit(api, contents, known.repo_id, message)
        except StageError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(WAIT_SECONDS * attempt)
    raise AssertionError("the last attempt returns or raises")


def _commit(api: Any, contents: Mapping[str, Content], repo: str, message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in contents.items()
    ]
    with writing_to_hub(repo):
        commit = api.create_commit(repo, operations, commit_message=message)
    return str(commit.commit_url)
