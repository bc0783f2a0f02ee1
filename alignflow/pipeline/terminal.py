"""The one way to print: text is text, whatever brackets and colons it has.

Names and messages are the user's: `[draft]` is no style and `:label:` no picture. Styles are given
beside the text, never inside it.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import TextColumn


def plain_console(*, stderr: bool = False) -> Console:
    """The console of a command."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def text_column(template: str) -> TextColumn:
    """A column of a progress bar."""
    return TextColumn(template, markup=False)


def redraws(console: Console) -> bool:
    """Whether a line can be drawn over: on a terminal that is not dumb."""
    return console.is_terminal and not console.is_dumb_terminal
