"""Stdin, stdout and stderr of the commands, which survive any encoding and a reader that has gone."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alignflow.errors import RecipeError

PLAINER = {
    "«": "<<",
    "»": ">>",
    "→": "->",
    "✓": "ok",
    "✗": "x",
    "·": "-",
    "…": "...",
    "\N{MULTIPLICATION SIGN}": "x",
    "—": "-",
    "━": "-",
}
"""What stands for our own characters where the terminal's encoding lacks them."""
SPINNER = range(0x2800, 0x2900)


class _ForWhoListens(io.FileIO):
    """A file whose reader may go (`| head`) and whose disk may fill: the work goes on, unheard."""

    lost: OSError | None = None
    """Why something was not written, but for a reader that had heard enough."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content) or 0
        except BrokenPipeError:
            pass
        except OSError as error:
            self.lost = self.lost or error
        return memoryview(content).nbytes


def make_patient() -> None:
    """Gives this process streams that no text and no reader can break."""
    codecs.register_error("plainer", _plainer)
    for number in range(3):  # a closed one would be the number of the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = patient(1, sys.stdout), patient(2, sys.stderr)


def unwritten() -> OSError | None:
    """Why stdout lacks something of what was printed; None where it has all, or nobody reads it."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _ForWhoListens) else None


def read_stdin() -> str:
    """All of stdin as text.

    Raises:
        RecipeError: It is closed, or not text in the encoding that stdin has.
    """
    if sys.stdin is None:
        raise RecipeError("- reads stdin, which is closed. Give the text itself, or pipe it in.")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"stdin is not {error.encoding} text: byte {error.start} is 0x{error.object[error.start]:02x} "
            f"({error.reason}). Convert it (iconv), or set PYTHONIOENCODING to its encoding."
        ) from error


def as_argument(text: str) -> str:
    """PROMPT of the command line, as it was given.

    Raises:
        RecipeError: Its bytes are not text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"PROMPT is not text in this terminal's encoding: character {error.start} is "
            f"{text[error.start]!a}. Give UTF-8, or set LC_ALL to the encoding it has."
        ) from error
    return text


def patient(descriptor: int, like: Any = None) -> io.TextIOWrapper:
    """A text stream to a descriptor, in the encoding of another stream; else UTF-8."""
    raw = _ForWhoListens(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="plainer",
        line_buffering=descriptor == 2 or raw.isatty(),
    )


@contextmanager
def stdout_kept(kept: bool) -> Iterator[Any]:
    """Stdout for the report alone: what anything else writes there, even C code, goes to stderr."""
    if not kept:
        yield sys.stdout
        return
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        with patient(descriptor) as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(descriptor, 1)
        os.close(descriptor)


def _plainer(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler of codecs: our own characters in ASCII, any other by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(map(_in_ascii, lacking)), error.end


def _in_ascii(character: str) -> str:
    if character in PLAINER:
        return PLAINER[character]
    if ord(character) in SPINNER:
        return "*"
    return character.encode("ascii", "backslashreplace").decode()
