"""The chat template: rendered here and nowhere else, in Jinja's sandbox. No torch, no transformers."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignflow.data.rejected import BadRow
from alignflow.data.turns import Message
from alignflow.errors import DataError
from alignflow.files import digest_json
from alignflow.recipe import ModelSource

NOT_THE_BEGINNING = "the prompt with its generation prompt is not the beginning of the conversation"
TEMPLATE_DATE = ModelSource.model_fields["template_date"].default
"""What a template that asks for today's date is told: one that does not change with the day."""


PROBED_TOOL = {
    "type": "function",
    "function": {
        "name": "delta",
        "description": "Zeta.",
        "parameters": {"type": "object", "properties": {"epsilon": {"type": "string"}}},
    },
}
PROBED_CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "delta", "arguments": {"epsilon": "Kappa"}},
}
_RESULT = "Lambda"
_USER: Message = {"role": "user", "content": "Alpha?"}
_ANOTHER = "Name one that does in base_model.chat_template, or leave such rows out"


class Calling(NamedTuple):
    """How a template takes the turn of a call that says nothing beside it."""

    as_text: bool
    """Whether arguments are the text of their JSON; Transformers' convention is an object."""
    content: str | None
    has_content: bool


class Rendered(NamedTuple):
    """A conversation's text, and where its responses stand in it."""

    text: str
    last: int
    """Place among the messages of the turn that it ends with."""
    responses: list[tuple[int, int]]
    """From and to of each, in characters, with what closes it; the last ends the text."""


_DATE_FORM = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


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
    """A compiled chat template and the tokenizer's special tokens.

    A template that asks for the date is told TEMPLATE_DATE, where `in_force` has not given it one.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
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

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Text of a conversation.

        Raises:
            TemplateRejects: The template refuses it; the text says why.
        """
        if tools and not self.writes_tools:
            raise TemplateRejects(
                f"the chat template writes no tools, and the row has some. {_ANOTHER}"
            )
        calls = [message for message in messages if message.get("tool_calls")]
        if calls and self.calling is None:
            raise TemplateRejects(
                f"the chat template writes no tool calls, and the row has some. {_ANOTHER}"
            )
        if not self.writes_results and any(message["role"] == "tool" for message in messages):
            raise TemplateRejects(
                f"the chat template writes no results of tools, and the row has some. {_ANOTHER}"
            )
        return self._render(
            [self._prepared(message, self.calling if calls else None) for message in messages],
            tools,
            add_generation_prompt,
        )

    def _prepared(self, message: Message, calling: Calling | None = None) -> Message:
        """A message as this template takes it."""
        told = {name: value for name, value in message.items() if name != "weight"}
        if calling is not None and message.get("tool_calls"):
            told = _calling_turn(told, calling)
        return _in_parts(told) if self.wants_parts else told

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes the definitions of tools."""
        return "delta" in self._tried([self._prepared(_USER)], [PROBED_TOOL])

    @cached_property
    def calling(self) -> Calling | None:
        """How the template takes calls; None where it writes none."""
        for as_text in (False, True):
            for content, has_content in (("", True), (None, True), (None, False)):
                calling = Calling(as_text, content, has_content)
                text = self._with_call(calling)
                if "epsilon" in text.rpartition("Alpha?")[2] and "Kappa" in text:
                    return calling
        return None

    def _with_call(self, calling: Calling, *further: Message) -> str:
        """Text of a question and a call; nothing where it is rejected."""
        turns = [_USER, {"role": "assistant", "content": "", "tool_calls": [PROBED_CALL]}, *further]
        return self._tried([self._prepared(turn, calling) for turn in turns], [PROBED_TOOL])

    @cached_property
    def writes_results(self) -> bool:
        """Whether the template writes what a tool answered."""
        result: Message = {"role": "tool", "content": _RESULT, "name": "delta"}
        result["tool_call_id"] = PROBED_CALL["id"]
        calling = self.calling
        if calling is not None:
            return _RESULT in self._with_call(calling, result)
        answer: Message = {"role": "assistant", "content": "Beta."}
        return _RESULT in self._tried([self._prepared(turn) for turn in (_USER, answer, result)])

    @cached_property
    def wants_parts(self) -> bool:
        """Whether the template, one of a model that sees images, takes contents as lists of parts."""
        word = "Alpha"
        message = {"role": "user", "content": word}
        return word not in self._tried([message]) and word in self._tried([_in_parts(message)])

    def _tried(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """Text of a probe; nothing where it is rejected."""
        try:
            return self._render(messages, tools)
        except TemplateRejects:
            return ""

    def _render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                documents=None,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateRejects(str(error)) from error

    def rendered(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        turns: Literal["all", "last"] = "all",
        special: Sequence[str] = (),
    ) -> list[Rendered]:
        """Texts in which each assistant turn stands once as it is answered, after its own prompt.

        A turn whose `weight` is 0 is context: it stands in the text, and is no response.

        One text is enough where the template renders a turn the same whatever follows it. Where it
        does not, such as one that drops the reasoning of earlier turns, there are several, each of
        the conversation up to another turn.

        A response ends with the first run of the tokenizer's `special` tokens after it; what a
        template writes behind them, white space or the end of the whole, is no part of it.

        Raises:
            TemplateRejects: An assistant turn does not continue its prompt.
        """
        asked = [
            place
            for place, turn in enumerate(messages)
            if turn["role"] == "assistant" and turn.get("weight") != 0
        ]
        if turns == "last":
            asked = asked[-1:]
        prompts = {
            place: self.render(messages[:place], tools=tools, add_generation_prompt=True)
            for place in asked
        }
        ending = ending_of(special)
        wholes = {
            place: ending.sub(r"\1", self.render(messages[: place + 1], tools=tools))
            for place in asked
        }
        texts: list[Rendered] = []
        while asked:
            last = asked[-1]
            text = wholes[last]
            spans = {
                place: (len(prompts[place]), len(wholes[place]))
                for place in asked
                if text.startswith(prompts[place])
                and text.startswith(wholes[place])
                and len(wholes[place]) > len(prompts[place])
            }
            if last not in spans:
                raise TemplateRejects(NOT_THE_BEGINNING)
            texts.insert(0, Rendered(text, last, list(spans.values())))
            asked = [place for place in asked if place not in spans]
        return texts


def ending_of(special: Sequence[str]) -> re.Pattern[str]:
    """The end of a rendered text: its first group is the special tokens that close a response."""
    anyone = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    return re.compile(rf"((?:{anyone})+)(?:\s|{anyone})*\Z" if anyone else r"(\Z)")


def _calling_turn(message: Message, calling: Calling) -> Message:
    """The turn of a call, its arguments and its empty content as the template takes them."""
    told = dict(message)
    if calling.as_text:
        told["tool_calls"] = [_as_text(call) for call in message["tool_calls"]]
    if not message["content"]:
        told["content"] = calling.content
        if not calling.has_content:
            del told["content"]
    return told


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def in_force(source: str, arguments: Mapping[str, Any], date: datetime.date) -> str:
    """A template's source with its arguments and the date written into it.

    So it says the same to whoever renders it: training, generation, and a server that knows neither.
    An argument that a caller gives still counts.
    """
    heads = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in sorted(arguments.items())
    ]
    if "strftime_now" in source and "macro strftime_now" not in source:
        heads.append(_date_macro(source, date))
    return "".join([*heads, source])


def with_end_token(source: str, token: str | None) -> str:
    """A template's source for a tokenizer that has another end token: it writes the one it wrote."""
    if token is None or "eos_token" not in source:
        return source
    return f"{{%- set eos_token = {_literal(token)} %}}{source}"


def _date_macro(source: str, date: datetime.date) -> str:
    """`strftime_now` as a macro that knows the formats which the source names."""
    forms = dict.fromkeys(form for _, form in _DATE_FORM.findall(source))
    known = ", ".join(f"{_literal(form)}: {_literal(date.strftime(form))}" for form in forms)
    other = _literal(date.isoformat())
    get = f"{{{{- {{{known}}}.get(form, {other}) -}}}}"
    return f"{{%- macro strftime_now(form) -%}}{get}{{%- endmacro %}}"


def _literal(value: Any) -> str:
    """A value as Jinja writes it."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


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


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)
