"""Published chat templates in Go's language: rendered, they are what the template itself writes."""

from __future__ import annotations

import re
from typing import Any

import chat_templates
import pytest
from jinja2 import Environment

from alignflow.data import ChatTemplate, TemplateRejects, contract_of_tokenizer
from alignflow.exporting.ollama import go_template
from alignflow.exporting.turns import Turns, turns_of

USER = {"role": "user", "content": "Who is {{there}}?"}
ANSWER = {"role": "assistant", "content": 'Ada, "the first".'}
SYSTEM = {"role": "system", "content": "Be brief."}
IN_JINJA = {
    "range $i, $_ := .Messages": "{% for message in messages %}{% set i = loop.index0 %}",
    "$last := eq (len (slice $.Messages $i)) 1": "{% set last = loop.last %}",
    "if eq $i 0": "{% if i == 0 %}",
    "if not $last": "{% if not last %}",
    ".Content": "{{ message.content }}",
    '"{{"': "{{ '{{' }}",
    'if or (ne $i 1) (ne (index $.Messages 0).Role "system")': (
        "{% if i != 1 or messages[0].role != 'system' %}"
    ),
    'if and (eq $i 0) (ne .Role "system")': "{% if i == 0 and message.role != 'system' %}",
    'if and $last (ne .Role "assistant")': "{% if last and message.role != 'assistant' %}",
}
"""What stands in Go's braces, in Jinja. All of it was run by Go's text/template once, with these
templates and conversations."""
ROLE = re.compile(r'(else )?if eq \.Role "(\w+)"')
REFUSED = {
    "cohere2": "closes an answer within a conversation by",
    "glm4moe": "closes an answer within a conversation by",
    "gptoss": "closes an answer within a conversation by",
}


def by_go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of it."""
    text, ends = "", []
    for part in re.split(r'(\{\{ (?:"\{\{"|.*?) \}\})', template):
        inside = part[3:-3]
        if not part.startswith("{{ "):
            text += f"{{% raw %}}{part}{{% endraw %}}" if part else ""
        elif inside == "end":
            text += ends.pop()
        elif role := ROLE.fullmatch(inside):
            text += f"{{% {'elif' if role[1] else 'if'} message.role == '{role[2]}' %}}"
            ends += [] if role[1] else ["{% endif %}"]
        else:
            text += IN_JINJA[inside]
            opened = {"r": ["{% endfor %}"], "i": ["{% endif %}"]}
            ends += opened.get(inside[0], [])
    return Environment(keep_trailing_newline=True).from_string(text).render(messages=messages)


def taken_apart(name: str) -> tuple[ChatTemplate, Turns | str]:
    source = chat_templates.source(name)
    special = {"bos_token": "<bos>", "eos_token": chat_templates.END}
    template = ChatTemplate(source, special)
    contract = contract_of_tokenizer(template, chat_templates.tokenizer(source))
    return template, turns_of(template, contract.closes)


@pytest.mark.slow  # Transformers makes the tokenizers
@pytest.mark.parametrize("name", chat_templates.names())
def test_a_published_template_is_the_same_in_go_or_refused_with_the_reason(name: str) -> None:
    template, turns = taken_apart(name)
    if isinstance(turns, str):
        assert REFUSED[name] in turns
        return
    assert name not in REFUSED
    text = go_template(turns)
    conversations: list[list[Any]] = [[USER], [USER, ANSWER, USER]]
    if turns.takes_system:
        conversations += [[SYSTEM, *messages] for messages in conversations]
    else:
        with pytest.raises((TemplateRejects, AssertionError)):
            assert SYSTEM["content"] in template.render([SYSTEM, USER])
    for messages in conversations:
        expected = template.render(messages, add_generation_prompt=True)
        assert by_go(text, messages) == expected
    begun = by_go(text, [USER, ANSWER])
    assert begun.endswith(ANSWER["content"]), "a conversation that ends so is to be continued"


@pytest.mark.slow
def test_the_token_that_the_tokenizer_adds_is_not_written_twice() -> None:
    _, turns = taken_apart("llama3_1")
    assert isinstance(turns, Turns) and turns.written([USER]).startswith("<bos>")
    for messages in ([USER], [SYSTEM, USER]):
        assert turns.without("<bos>").written(messages) == turns.written(messages)[len("<bos>") :]
