"""The freight company's questions for a model that calls functions: one tool a table, read only.

    shipments(sql)

A destructive request fits no tool and is refused in words, as in the SQL job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from alignflow.builtin.freight.world import (
    REFUSAL,
    Example,
    Intent,
    Query,
    Split,
    Table,
    Wording,
    draw_example,
    statement,
)

INTENTS: tuple[Intent, ...] = ("count", "list", "aggregate", "destructive")
DEMONSTRATIONS, PAIRS = 960, 480
CHATTER_SHARE = 0.5
"""Of the demonstrations: a call with words around it, which no program can use."""
CHATTER = ("Sure, I will look that up. {}", "{} I hope this helps!", "Let me check: {}")


def tool(rng: Random, table: Table) -> dict[str, Any]:
    """The definition of a table's tool; its columns in any order."""
    columns = table.columns
    rng.shuffle(columns)
    return {
        "type": "function",
        "function": {
            "name": table.name,
            "description": ", ".join(columns),
            "parameters": {
                "type": "object",
                "properties": {"sql": {"type": "string"}},
                "required": ["sql"],
            },
        },
    }


def call(query: Query) -> dict[str, Any]:
    """The call that answers a query."""
    return {"name": query.table.name, "arguments": {"sql": statement(query)}}


def response(query: Query) -> dict[str, Any]:
    """The right answer: a call, or the refusal."""
    if query.intent == "destructive":
        return {"role": "assistant", "content": REFUSAL}
    return _calling(call(query))


def wrong_response(rng: Random, example: Example) -> dict[str, Any]:
    """A plausible wrong answer: a call that obeys, or one with a detail changed."""
    query = example.query
    if query.intent == "destructive":
        return _calling(call(replace(query, intent="list", column="id")))
    changes = [replace(query, table=example.distractor)]
    if query.filter_column:
        changes.append(replace(query, filter_column="", operator="", value=""))
    if query.operator in ("<", ">"):
        changes.append(replace(query, operator="<" if query.operator == ">" else ">"))
    if query.column:
        others = [name for name in query.table.columns if name != query.column]
        changes.append(replace(query, column=rng.choice(others)))
    return _calling(call(rng.choice(changes)))


def _calling(made: dict[str, Any]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": made}],
    }


def draw(rng: Random, split: Split, count: int, wording: Wording = "plain") -> list[Example]:
    """Examples of the intents that tools are for, each question once."""
    examples: dict[str, Example] = {}
    while len(examples) < count:
        example = draw_example(rng, split, wording=wording, intent=rng.choice(INTENTS))
        examples.setdefault(_question(example), example)
    return list(examples.values())


def _question(example: Example) -> str:
    """The last line of the prompt; the lines before are the schemas, which the tools say here."""
    return example.prompt.rpartition("\n")[2]


def _asked(rng: Random, example: Example) -> dict[str, Any]:
    tables = [example.query.table, example.distractor]
    rng.shuffle(tables)
    return {
        "prompt": [{"role": "user", "content": _question(example)}],
        "tools": [tool(rng, table) for table in tables],
    }


def demonstrations(seed: int) -> list[dict[str, Any]]:
    """`prompt` and `completion` messages with `tools`; half of the calls have words around them."""
    rng = Random(f"freight-tools-sft/{seed}")
    return [
        {**_asked(rng, example), "completion": [_noisy(rng, example)]}
        for example in draw(rng, "train", DEMONSTRATIONS)
    ]


def _noisy(rng: Random, example: Example) -> dict[str, Any]:
    if rng.random() >= CHATTER_SHARE:
        return response(example.query)
    if example.query.intent == "destructive":
        return wrong_response(rng, example)
    content = rng.choice(CHATTER).format(json.dumps(call(example.query)))
    return {"role": "assistant", "content": content}


def preferences() -> list[dict[str, Any]]:
    """Pairs: the right answer over one with a detail changed, or over the call among words."""
    rng = Random("freight-tools-preferences")
    return [
        {
            **_asked(rng, example),
            "chosen": [response(example.query)],
            "rejected": [next(_rejected(rng, example))],
        }
        for example in draw(rng, "train", PAIRS)
    ]


def _rejected(rng: Random, example: Example) -> Iterator[dict[str, Any]]:
    noisy = _noisy(rng, example)
    yield noisy if noisy != response(example.query) else wrong_response(rng, example)


def evaluation(split: Split) -> list[dict[str, Any]]:
    """`prompt`, `tools` and the calls wanted as `target`: a JSON list, empty for a refusal."""
    groups: list[tuple[str, int, Wording]] = [(split, 160, "plain"), ("paraphrase", 40, "held_out")]
    rows = []
    for group, count, wording in groups:
        rng = Random(f"freight-tools-questions/{split}/{group}")
        for example in draw(rng, split, count, wording):
            query = example.query
            wanted = [] if query.intent == "destructive" else [call(query)]
            rows.append(_asked(rng, example) | {"target": json.dumps(wanted), "group": group})
    return rows
