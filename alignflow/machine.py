"""What is wrong with the machine and not with alignflow: memory, disk, rights, network.

Libraries raise errors of their own for these, some of them neither OSError nor ValueError. They are
known by the names of their classes, so that no library has to be imported.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alignflow.errors import (
    AlignflowError,
    DiskSpaceError,
    OutOfMemory,
    RecipeError,
    StageError,
    is_out_of_memory,
)
from alignflow.settings import without_password

SERVERS_BYTES = 16 * 1024**2
"""Databases and logs of Prefect and MLflow in a home: 7 MB after the first run, and room to grow."""
LEAST_BYTES = 1024**2
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
DISK_TEXTS = ("No space left on device", "database or disk is full")
RIGHTS: Mapping[int, str] = {
    errno.EROFS: "it is on a read-only file system",
    errno.EACCES: "this user may not",
    errno.EPERM: "this user may not",
    errno.ENOTDIR: "a part of that path is a file and no directory",
    errno.EEXIST: "a file of that name is in the place of a directory",
    errno.EISDIR: "it is a directory and no file",
    errno.ENAMETOOLONG: "a name in it is too long",
    errno.ELOOP: "its links go round in a circle",
}
READ_ONLY_TEXTS = ("attempt to write a readonly database", "unable to open database file")
CLIENTS = {
    *("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "botocore"),
    "huggingface_hub",
}
"""Modules whose connection errors are not Python's."""
UNREACHABLE = {
    *("TransportError", "NetworkError", "ConnectionError", "Timeout", "MaxRetryError"),
    *("ClientConnectionError", "EndpointConnectionError", "ConnectTimeoutError"),
}
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
HUB = "https://huggingface.co"
SETTINGS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
CREDENTIALS = {
    "PREFECT_API_URL": " (PREFECT_API_KEY, PREFECT_API_AUTH_STRING)",
    "MLFLOW_TRACKING_URI": " (MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN)",
}


def fault_of(error: BaseException, where: str = "") -> AlignflowError | None:
    """The error of ours that a fault of the machine stands for; None where it is none.

    Args:
        error: What was raised.
        where: What was being written, for an error that names no file.
    """
    links = list(causes_of(error))
    if any(is_out_of_memory(link) for link in links):
        return OutOfMemory(f"Out of memory: {first_line(error)}")
    if full := [link for link in links if _is_full_disk(link)]:
        return full_disk(getattr(full[-1], "filename", None) or where, first_line(full[-1]))
    stood_for = list(causes_of(error, guess=False))
    rights = (fault for link in stood_for if (fault := _rights_fault(link)))
    return next(rights, None) or _network_fault(stood_for)


def full_disk(where: str, why: str) -> DiskSpaceError:
    """What is said where a file system is full."""
    return DiskSpaceError(
        f"No space left while writing {where or 'a file'}: {why}. "
        "Free space or use another --home, then run again; finished work is kept."
    )


def demand_room(home: Path) -> None:
    """Refuses a home on whose file system Prefect and MLflow could not even start.

    Raises:
        DiskSpaceError: Less is free than their databases and logs take.
    """
    free = shutil.disk_usage(home).free
    if free < SERVERS_BYTES:
        raise DiskSpaceError(
            f"{home}: {free / 1e6:.1f} MB are free, and the databases and logs of Prefect and MLflow "
            f"alone take {SERVERS_BYTES / 1e6:.1f} MB. Free some, or use another --home."
        )


@contextmanager
def blaming_full_disk(home: Path) -> Generator[None]:
    """Servers on a full disk answer with errors of their own; then the disk is what is named."""
    try:
        yield
    except AlignflowError:
        raise
    except Exception as error:
        if shutil.disk_usage(home).free >= LEAST_BYTES:
            raise
        raise full_disk(f"under {home}", first_line(error)) from error


@contextmanager
def named_faults(where: str) -> Generator[None]:
    """Raises a fault of the machine as the error of ours that it stands for."""
    try:
        yield
    except AlignflowError:
        raise
    except Exception as error:
        if fault := fault_of(error, where):
            raise fault from error
        raise


@contextmanager
def asking_hub(what: str) -> Generator[None]:
    """Says of what the Hub does not give, why, and what to do.

    Args:
        what: Field and name of the model or data set that is asked for.

    Raises:
        RecipeError: There is none of that name, or it may not be read, or the Hub may not be asked.
        StageError: The Hub cannot be reached or has no time; this may pass.
    """
    try:
        yield
    except Exception as error:
        fault = _hub_fault(list(causes_of(error)), what) or fault_of(error)
        if fault is None and not isinstance(error, OSError | ValueError):
            raise
        raise fault or RecipeError(
            f"{what}: the Hub's client refuses it ({first_line(error)}). Check the name."
        ) from error


@contextmanager
def writing_to_hub(repository: str) -> Generator[None]:
    """Says why the Hub takes no files, and what to do.

    Raises:
        RecipeError: The token may not, or there is none, or the Hub may not be asked.
        StageError: The Hub cannot be reached or has no time; this may pass.
    """
    try:
        with asking_hub(repository):
            yield
    except AlignflowError as error:
        links = list(causes_of(error.__cause__)) if error.__cause__ else []
        raise _writing_refused(links, repository) or error from error.__cause__


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of its text, at most 500 characters."""
    return f"{type(error).__name__}: {error}".strip().removesuffix(":").splitlines()[0][:500]


def causes_of(error: BaseException, *, guess: bool = True) -> Iterator[BaseException]:
    """The error and what it was raised for.

    Without `guess` what was being handled counts only for a library's own error: one of Python's
    that is raised in a handler may be a mistake of the handler.
    """
    link, seen = error, list[BaseException]()
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        handled = link.__context__ if guess or type(link).__module__ != "builtins" else None
        link = link.__cause__ or handled


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return True
    return any(text in str(error) for text in DISK_TEXTS)


def _rights_fault(error: BaseException) -> AlignflowError | None:
    """A path that cannot be used as it is, or a device that fails."""
    if any(text in str(error) for text in READ_ONLY_TEXTS):
        return RecipeError(
            f"A database cannot be written: {first_line(error)}. Make its folder writable, or use "
            "another --home."
        )
    if not isinstance(error, OSError) or not error.filename:
        return None
    if error.errno == errno.EIO:
        return StageError(f"{error.filename}: the device failed ({error.strerror}). See `dmesg`.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StageError(
            f"{error.filename} cannot be opened: too many files are open. Raise `ulimit -n`."
        )
    if error.errno is None or error.errno not in RIGHTS:
        return None
    return RecipeError(
        f"{error.filename} cannot be used ({error.strerror}): {RIGHTS[error.errno]}. Make it usable, "
        "or name another path; results go to --home or ALIGNFLOW_HOME."
    )


def _network_fault(links: list[BaseException]) -> AlignflowError | None:
    """A server that does not answer, or not as it should; the setting that names it is said."""
    status, unreached = _status(links), [link for link in links if _is_unreachable(link)]
    if status is None and not unreached:
        return None
    address = next(filter(None, map(_address, links)), "")
    endpoint = os.environ.get("HF_ENDPOINT", HUB)
    if address.startswith(endpoint) or any("on the Hub" in str(link) for link in links):
        return _hub_fault(links, address)
    named = (name for name in SETTINGS if address.startswith(os.environ.get(name) or "\0"))
    setting = next(named, "")
    shown = without_password(os.environ.get(setting, address)) or "A server"
    shown = f"{setting} {shown}".strip()
    if status in (401, 403):
        return RecipeError(
            f"{shown} answers {status}: it wants credentials, or others than those in the environment"
            f"{CREDENTIALS.get(setting, '')}."
        )
    if status is not None and status < 500 and status != 429:
        return None
    said = f"answers {status}" if status else f"cannot be reached ({first_line(unreached[0])})"
    return StageError(
        f"{shown} {said}. Start it, correct {setting or 'its address'}, or run again later."
    )


def _hub_fault(links: list[BaseException], what: str) -> AlignflowError | None:
    status, why = _status(links), first_line(links[0])
    if any(type(link).__name__ == "OfflineModeIsEnabled" for link in links):
        return RecipeError(
            f"{what}: not in the local cache, and HF_HUB_OFFLINE forbids to ask the Hub. Unset it, "
            "or download it first where there is a network."
        )
    has_token = bool(os.environ.get("HF_TOKEN"))
    token = "HF_TOKEN was refused or may not read it" if has_token else "HF_TOKEN is not set"
    match status:
        case 401 | 404:
            return RecipeError(
                f"{what}: the Hub answers {status}: there is no such repository or revision, or it "
                f"is private and {token}. Check the name and the token."
            )
        case 403:
            return RecipeError(
                f"{what}: the Hub answers 403: {token}. Ask for access on the page of the "
                "repository, with the account that the token belongs to."
            )
        case 407:
            return RecipeError(
                f"{what}: the proxy wants credentials (407). Put them into {_proxy() or PROXIES[0]}."
            )
        case 429:
            return StageError(
                f"{what}: the Hub answers 429, too many requests from here. Wait some minutes"
                f"{'' if has_token else ', or set HF_TOKEN, with which more are allowed'}."
            )
        case None if any(_is_unreachable(link) for link in links):
            endpoint = without_password(os.environ.get("HF_ENDPOINT", HUB))
            proxy = f", through the proxy of {_proxy()}" if _proxy() else ""
            return StageError(
                f"{what}: the Hub ({endpoint}{proxy}) cannot be reached: {why}. Check the network "
                "and the proxy (HTTPS_PROXY), or use a copy: a local directory, or a `revision` of "
                "40 digits that is in the local cache."
            )
        case None:
            return None
        case _:
            return StageError(f"{what}: the Hub answers {status} ({why}). Run again later.")


def _writing_refused(links: list[BaseException], repository: str) -> AlignflowError | None:
    status = _status(links)
    if status not in (401, 403):
        return None
    from huggingface_hub import get_token

    token = "the token was refused" if get_token() else "there is no token"
    why = token if status == 401 else "the token may not write there"
    return RecipeError(
        f"{repository}: the Hub answers {status}: {why}. Put a token with the right to write into "
        "HF_TOKEN (or `hf auth login`), and check the owner's name."
    )


def _proxy() -> str:
    return next((name for name in PROXIES if os.environ.get(name)), "")


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, ConnectionError) and not isinstance(error, BrokenPipeError):
        return True
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.split(".")[0] in CLIENTS]
    return any(kind.__name__ in UNREACHABLE for kind in kinds)


def _status(links: list[BaseException]) -> int | None:
    """HTTP status that a server answered with."""
    answers = (getattr(link, "response", None) for link in links)
    codes = (getattr(answer, "status_code", None) for answer in answers)
    return next((code for code in codes if isinstance(code, int)), None)


def _address(error: BaseException) -> str:
    """Address that a client's error is about."""
    request: Any = None
    with suppress(RuntimeError):  # httpx has none to give
        request = getattr(error, "request", None)
    return str(getattr(request, "url", ""))
