"""The chat template: rendered here and nowhere else, in Jinja's sandbox. No torch, no transformers."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignflow.data.forms import BadRow, Message
from alignflow.errors import DataError
from alignflow.files import digest_json

NOT_THE_BEGINNING = "the prompt with its generation prompt is not the beginning of the conversation"


class TemplateRejects(BadRow):
    """The template raised an error on a conversation."""

    def __init__(self, message: str) -> None:
        super().__init__("template_rejects", message)


class _Generation(Extension):
    """Renders what stands between `{% generation %}` and `{% endgeneration %}` as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own protocol)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class ChatTemplate:
    """A compiled chat template and the tokenizer's special tokens."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self.source = source
        self.digest = digest_json(source)
        self._special_tokens = special_tokens
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise DataError(
                f"The chat template does not parse: {error}. Name a good one in "
                "base_model.chat_template."
            ) from error

    def render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        """Text of a conversation.

        Raises:
            TemplateRejects: The template refuses it; the text says why.
        """
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateRejects(str(error)) from error

    def turns(self, messages: list[Message]) -> list[tuple[str, bool]]:
        """Pieces of a conversation's text; True marks a response, on which there is loss.

        Every assistant turn is a response where the template renders turns the same with and
        without those that follow; where it does not, only the last one is.
        """
        whole = self.render(messages)
        spans: list[tuple[int, int]] = []
        last = len(messages) - 1
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self.render(messages[:position], add_generation_prompt=True)
            end = whole if position == last else self.render(messages[: position + 1])
            if whole.startswith(start) and whole.startswith(end) and len(end) > len(start):
                spans.append((len(start), len(end)))
            elif position == last:
                raise TemplateRejects(NOT_THE_BEGINNING)
        return _pieces(whole, spans)


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    pieces, done = [], 0
    for start, end in spans:
        pieces += [(text[done:start], False), (text[start:end], True)]
        done = end
    return [piece for piece in [*pieces, (text[done:], False)] if piece[0]]


def load_template(tokenizer_directory: Path, override: Path | None = None) -> ChatTemplate | None:
    """The template in force for a tokenizer's files; None where there is none.

    Raises:
        DataError: The override is not there.
    """
    config = tokenizer_config(tokenizer_directory)
    if override is not None:
        try:
            source = override.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"base_model.chat_template: {override} cannot be read ({error.strerror})."
            ) from error
    else:
        source = _own_template(tokenizer_directory, config)
    return ChatTemplate(source, special_tokens(config)) if source else None


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and its like from `tokenizer_config.json`."""
    tokens = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def tokenizer_config(directory: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says; nothing where there is none."""
    path = directory / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _own_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default")
    return value


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)
