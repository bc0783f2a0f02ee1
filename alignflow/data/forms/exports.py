"""What annotation and tracing tools export: Argilla, Label Studio, Langfuse, LangSmith.

The versions of their packages that wrote these shapes are in docs/data.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeGuard

from alignflow.data.calls import from_json
from alignflow.data.forms.form import Form, Row, context_of
from alignflow.data.rejected import BadRow, kind
from alignflow.data.turns import Message, is_messages

_ASKED = ("prompt", "instruction", "question", "query", "input", "messages", "chat")
_BESIDE = ("context", "history")
_ANSWERED = ("output", "answer", "response", "completion", "text", "content", "result")
_LIKED = {
    **dict.fromkeys(("yes", "true", "good", "like", "thumbs_up", "positive"), True),
    **dict.fromkeys(("no", "false", "bad", "dislike", "thumbs_down", "negative"), False),
}
_SIDES = {"left": 0, "right": 1}
_SERIAL = re.compile(r"(\d+|left|right|(?<=[-_. ])[A-Za-z]|(?<=[a-z])[A-Z])$")
"""What numbers a response at the end of a field's name: response-1, answer2, model_a, textB."""
_RECORD = ("id", "status", "_server_id", "score")
_ANNOTATION = (
    *("id", "annotator", "annotation_id", "created_at", "updated_at"),
    *("lead_time", "agreement", "history"),
)
"""Columns that the exporters write beside those of the user."""
_CELL = re.compile(r"\[(?:(?:'[^']*'|\"[^\"]*\"|-?\d+(?:\.\d*)?|None)[\s,]*)*\]")
_CELL_ENTRY = re.compile(r"'([^']*)'|\"([^\"]*)\"|(-?\d+(?:\.\d*)?)|None")
_CLASSES = {
    "HumanMessage": "user",
    "AIMessage": "assistant",
    "SystemMessage": "system",
    "ToolMessage": "tool",
}


def _object(row: Row, name: str) -> dict[str, Any]:
    value = from_json(row[name])
    if not isinstance(value, dict):
        raise BadRow(f"type:{name}:{kind(value)}", f"{name} is {kind(value)}, not an object")
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _question_of(fields: dict[str, Any]) -> Any:
    """The prompt among the fields of an annotated record."""
    name = next((name for name in _ASKED if fields.get(name)), None)
    if name is None:
        raise BadRow("missing:prompt", f"no field is the prompt: has {sorted(map(str, fields))}")
    others = [other for other in (*_ASKED, *_BESIDE) if other != name and fields.get(other)]
    if others:
        raise BadRow(
            "unread_column",
            f"has {', '.join(others)} beside {name}; a record has one field that is the prompt. Put "
            "all that is asked into it",
        )
    return fields[name]


def _answers_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The responses among the fields of an annotated record, by name."""
    answers = {
        name: value
        for name, value in fields.items()
        if name not in (*_ASKED, *_BESIDE, "system", "tools")
        and (isinstance(value, str) or is_messages(value))
    }
    if not answers:
        raise BadRow("missing:responses", "no field is a response")
    return answers


def _judged(fields: dict[str, Any], verdicts: list[dict[str, float]]) -> list[Row]:
    """Rows of what annotators said, each as a number of every response: higher is better."""
    prompt, answers = _question_of(fields), _answers_of(fields)
    told = []
    for verdict in verdicts:
        known = {name: value for name, value in verdict.items() if name in answers}
        if len(known) > 1:
            texts = [answers[name] for name in known]
            told.append({"prompt": prompt, "responses": texts, "scores": [*known.values()]})
    if not told:
        raise BadRow("no_preference", "nobody has said which response is better")
    return [{**row, **context_of(fields)} for row in told]


def _better(answers: dict[str, Any], name: str) -> dict[str, float]:
    """That one response is better than those that it was shown with.

    Raises:
        BadRow: These cannot be told from other texts of the record.
    """
    shown = [other for other in answers if _stem(other) == _stem(name)]
    if len(shown) < 2 and len(answers) > 2:
        raise BadRow(
            "missing:responses",
            f"{name!r:.60} is better than which of {sorted(answers)[:12]}? Give the responses names "
            "of one kind, such as response-1 and response-2",
        )
    shown = shown if len(shown) > 1 else [*answers]
    return {other: float(other == name) for other in shown}


def _stem(name: str) -> str:
    """A field's name without what numbers it."""
    return _SERIAL.sub("", name)


def _sides_of(answers: dict[str, Any]) -> list[str]:
    """The left and the right response, by the numbers of their names.

    Raises:
        BadRow: Their names do not say.
    """
    stems = [_stem(name) for name in answers if _stem(name) != name]
    twice = {stem for stem in stems if stems.count(stem) == 2}
    if len(twice) != 1:
        raise BadRow(
            "missing:responses",
            f"which of {sorted(answers)[:12]} is left, which right? Give them names that end in 1 and "
            "2, a and b or left and right, or in the export as JSON the names of their tags",
        )
    sides = [name for name in answers if _stem(name) in twice and _stem(name) != name]
    return sorted(sides, key=lambda name: (len(name), name))


def _rated_by(question: str, answers: dict[str, Any]) -> str | None:
    """The response that a question or control rates: it has its name in its own."""
    return max((name for name in answers if name in question), key=len, default=None)


def _argilla(row: Row) -> list[Row]:
    return _recorded(_object(row, "fields"), _object(row, "responses"))


def _recorded(fields: dict[str, Any], responses: dict[str, Any]) -> list[Row]:
    """A label that names a response, a ranking of responses, or a rating of each."""
    answers = _answers_of(fields)
    verdicts: list[dict[str, float]] = []
    rated: dict[Any, dict[str, float]] = {}
    for question, entries in responses.items():
        for entry in _objects(entries):
            value = entry.get("value")
            if isinstance(value, str) and value in answers:
                verdicts.append(_better(answers, value))
            elif isinstance(value, list):
                verdicts.append(_ranked(value))
            elif _is_number(value):
                name = _rated_by(question, answers)
                if name is not None:
                    rated.setdefault(str(entry.get("user_id")), {})[name] = float(value)
    return _judged(fields, [*verdicts, *rated.values()])


def _ranked(value: list[Any]) -> dict[str, float]:
    """A ranking: names, the best first, or each with its rank."""
    told = {name: -float(place) for place, name in enumerate(value) if isinstance(name, str)}
    for entry in _objects(value):
        if isinstance(entry.get("value"), str) and _is_number(entry.get("rank")):
            told[entry["value"]] = -float(entry["rank"])
    return told


def _flat_argilla(row: Row) -> list[Row]:
    """Fields and metadata as columns, and of every question its responses, users and states."""
    fields = {
        name: _untabled(name, value)
        for name, value in row.items()
        if isinstance(name, str) and name not in _RECORD and not _IS_ASIDE.search(name)
    }
    questions = [name for name in row if isinstance(name, str) and name.endswith(".responses")]
    return _recorded(
        fields, {name.removesuffix(".responses"): [*_given(row, name)] for name in questions}
    )


_IS_ASIDE = re.compile(r"\.(responses|responses\.users|responses\.status|suggestion(\.\w+)?)$")


def _given(row: Row, question: str) -> Iterator[dict[str, Any]]:
    """Responses to a question that somebody gave and did not discard."""
    values = _cells(question, row[question])
    users, states = (_cells(question, row.get(f"{question}.{of}")) for of in ("users", "status"))
    for place, value in enumerate(values):
        if states[place : place + 1] in ([], [None], ["submitted"]):
            yield {"value": value, "user_id": "".join(map(str, users[place : place + 1]))}


def _cells(name: str, value: Any) -> list[Any]:
    """A list, also as a table has it: as JSON, or as Python or NumPy prints one."""
    value = from_json(value)
    if isinstance(value, str) and _CELL.fullmatch(value):
        parts = (match.groups() for match in _CELL_ENTRY.finditer(value))
        return [float(number) if number else one or two or None for one, two, number in parts]
    _untabled(name, value)
    return value if isinstance(value, list) else []


def _untabled(name: str, value: Any) -> Any:
    """The value, unless a table has made a text of what is none.

    Raises:
        BadRow: It has; what it was cannot be known from that.
    """
    if isinstance(value, str) and value.startswith(("[array(", "[[", "[{'")):
        raise BadRow(
            f"type:{name}:str",
            f"{name} is {value[:60]!r}, which a table cannot hold. Export it as JSON: "
            "`records.to_json`, or `to_datasets().to_json`",
        )
    return value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _label_studio(row: Row) -> list[Row]:
    """`pairwise` (left or right), a choice that names a response, or a rating of each."""
    fields = _object(row, "data")
    answers = _answers_of(fields)
    verdicts = []
    for annotation in _objects(row["annotations"]):
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        rated: dict[str, float] = {}
        for result in _objects(annotation.get("result")):
            name = _selected(result, answers)
            if name is not None:
                verdicts.append(_better(answers, name))
            elif result.get("type") == "rating" and result.get("to_name") in answers:
                rating = _value(result).get("rating")
                if _is_number(rating):
                    rated[result["to_name"]] = float(rating)
        verdicts.append(rated)
    return _judged(fields, verdicts)


def _value(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _selected(result: dict[str, Any], answers: dict[str, Any]) -> str | None:
    """The response that a result of Label Studio says is better."""
    value = _value(result)
    if result.get("type") == "pairwise":
        named = [name.strip() for name in str(result.get("to_name")).split(",")]
        sides = named if len(named) == 2 and {*named} <= {*answers} else None
        return _side(value.get("selected"), sides, answers)
    choices = value.get("choices")
    if result.get("type") == "choices" and isinstance(choices, list) and len(choices) == 1:
        return choices[0] if choices[0] in list(answers) else None
    return None


def _side(side: Any, sides: list[str] | None, answers: dict[str, Any]) -> str | None:
    if not isinstance(side, str) or side not in _SIDES:
        return None
    return (sides or _sides_of(answers))[_SIDES[side]]


def _flat_label_studio(row: Row) -> list[Row]:
    """The task's data as columns, and every control as one: a choice, or a list of results."""
    told = {
        name: value
        for name, value in row.items()
        if isinstance(name, str) and name not in _ANNOTATION
    }
    texts = _answers_of(told)
    answers = {
        name: value
        for name, value in texts.items()
        if not (isinstance(value, str) and (value in texts or _is_results(value)))
    }
    verdicts: list[dict[str, float]] = []
    rated: dict[str, float] = {}
    for control, value in told.items():
        if isinstance(value, str) and value in answers:
            verdicts.append(_better(answers, value))
        for result in _objects(from_json(value)):
            side = _side(result.get("selected"), None, answers)
            name = _rated_by(control, answers)
            if side is not None:
                verdicts.append(_better(answers, side))
            elif name is not None and _is_number(result.get("rating")):
                rated[name] = float(result["rating"])
    return _judged({**told, **answers}, [*verdicts, rated])


def _is_results(text: str) -> bool:
    """Whether a cell of a table holds what a control gave."""
    return any("selected" in entry or "rating" in entry for entry in _objects(from_json(text)))


def _messages(value: Any, names: tuple[str, ...], role: str) -> list[Message]:
    """Messages that a trace was given, or has given: as text, as messages, or in an object."""
    value = from_json(value)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value and all(isinstance(entry, list) for entry in value):
        value = list(chain.from_iterable(value))
    if isinstance(value, list):
        return [_message(entry, role) for entry in value]
    if not isinstance(value, dict):
        raise BadRow(f"type:{names[0]}:{kind(value)}", f"it is {kind(value)}, not text or messages")
    if "role" in value or value.get("lc"):
        return [_message(value, role)]
    for name in ("messages", "message", "choices", "generations"):
        if value.get(name):
            return _messages(value[name], names, role)
    found = [value[name] for name in names if isinstance(value.get(name), str)]
    found = found or [text for text in value.values() if isinstance(text, str)]
    if len(found) != 1:
        raise BadRow(
            f"missing:{role}", f"has {sorted(map(str, value))[:12]}; which of it is the text?"
        )
    return [{"role": role, "content": found[0]}]


def _message(entry: Any, role: str) -> Message:
    """A message of OpenAI or LangChain, also within a choice or a generation."""
    if isinstance(entry, dict) and isinstance(entry.get("message"), dict):
        entry = entry["message"]
    if isinstance(entry, dict) and isinstance(entry.get("kwargs"), dict):
        named = entry.get("id")
        name = named[-1] if isinstance(named, list) and named else None
        known = _CLASSES.get(name) if isinstance(name, str) else None
        return {"role": known or entry["kwargs"].get("type"), **_told(entry["kwargs"])}
    if isinstance(entry, dict) and isinstance(entry.get("text"), str) and "role" not in entry:
        return {"role": role, "content": entry["text"]}
    return entry


def _told(kwargs: dict[str, Any]) -> Message:
    calls = [
        {"id": call.get("id"), "name": call.get("name"), "arguments": call.get("args", {})}
        for call in _objects(kwargs.get("tool_calls"))
    ]
    told: Message = {"content": kwargs.get("content")}
    if kwargs.get("tool_call_id"):
        told["tool_call_id"] = kwargs["tool_call_id"]
    return {**told, "tool_calls": calls} if calls else told


def _asked(value: Any) -> tuple[list[Message], Any]:
    """Messages of an input, and its tools where it has some."""
    value = from_json(value)
    tools = value.get("tools") if isinstance(value, dict) else None
    return _messages(value, _ASKED, "user"), tools


def _shown(asked: str, answered: str) -> Any:
    """Conversion of an example: an input and its expected output."""

    def convert(row: Row) -> list[Row]:
        name = next(name for name in answered.split("|") if row.get(name) is not None)
        prompt, tools = _asked(row[asked])
        answer = _messages(row[name], _ANSWERED, "assistant")
        return [{"messages": [*prompt, answer[-1]], "tools": tools}]

    return convert


def _rated(asked: str, answered: str, label: Any) -> Any:
    """Conversion of a trace and what was said of it."""

    def convert(row: Row) -> list[Row]:
        prompt, tools = _asked(row[asked])
        answer = _messages(row[answered], _ANSWERED, "assistant")[-1:]
        return [{"prompt": prompt, "completion": answer, "label": label(row), "tools": tools}]

    return convert


def _score(row: Row) -> bool:
    """Whether the one score of a Langfuse trace that is yes or no says yes."""
    said = {_liked(score) for score in _objects(from_json(row["scores"]))} - {None}
    return _one(said, "scores")


def _liked(score: dict[str, Any]) -> bool | None:
    value = score.get("value")
    if score.get("dataType", score.get("data_type")) == "NUMERIC" and value not in (0, 1):
        return None
    if _is_number(value) and value in (0, 1):
        return bool(value)
    named = score.get("stringValue", score.get("string_value", value))
    return _LIKED.get(str(named).lower())


def _feedback(row: Row) -> bool:
    """Whether the feedback on a LangSmith run is all good, or all bad."""
    said = set()
    for stats in _object(row, "feedback_stats").values():
        average = stats.get("avg") if isinstance(stats, dict) else None
        if average in (0, 1):
            said.add(bool(average))
    return _one(said, "feedback_stats")


def _one(said: set[Any], name: str) -> bool:
    if len(said) != 1:
        raise BadRow("no_preference", f"{name} say not clearly whether the response is good")
    return next(iter(said))


EXPORTED_PAIRS = (
    Form(
        "argilla",
        ("fields", "responses"),
        ("metadata", "suggestions", "vectors", "status", "_server_id"),
        _argilla,
    ),
    Form("argilla", ("*.responses",), ("*",), _flat_argilla),
    Form("label-studio", ("data", "annotations"), ("predictions", "meta"), _label_studio),
    Form("label-studio", ("annotation_id", "annotator"), ("*",), _flat_label_studio),
)
EXPORTED_DEMONSTRATIONS = (
    Form(
        "langfuse",
        ("input", "expectedOutput|expected_output"),
        ("metadata",),
        _shown("input", "expectedOutput|expected_output"),
    ),
    Form("langsmith", ("inputs", "outputs"), ("metadata",), _shown("inputs", "outputs")),
)
EXPORTED_RATINGS = (
    Form(
        "langfuse",
        ("input", "output", "scores"),
        ("metadata",),
        _rated("input", "output", _score),
    ),
    Form(
        "langsmith",
        ("inputs", "outputs", "feedback_stats"),
        ("metadata",),
        _rated("inputs", "outputs", _feedback),
    ),
)
