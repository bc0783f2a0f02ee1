"""Share of responses whose tool calls are those wanted: names and arguments, in any order."""

import json
from collections import Counter

from alignflow.data import call_texts
from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="tool_call_accuracy", is_rate=True, reads_calls=True)
UNREADABLE = ("unreadable",)


class ToolCallAccuracy(module.TextMetric):
    """1 for a response that makes the calls of its target and no other, else 0.

    A target is a JSON list of calls, `[{"name": ..., "arguments": {...}}]`; an empty list, or text
    that is no JSON, wants a response without any. A response's calls stand between `<tool_call>` tags, or are the whole
    response. Arguments are compared as JSON: the order of names and calls does not count. Text beside
    tagged calls does not count either.
    """

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(tool_call_accuracy=[float(calls_in(p) == wanted(r)) for p, r in pairs])


def wanted(reference):
    """The calls of a target, as they are compared."""
    return Counter(_calls(json.loads(reference)) if _begins_json(reference) else ())


def calls_in(text):
    """The calls of a response, as they are compared."""
    return Counter(call for body in call_texts(text) for call in _parsed(body))


def _begins_json(text):
    return text.strip().startswith(("{", "["))


def _parsed(text):
    try:
        return _calls(json.loads(text))
    except (ValueError, RecursionError):
        return [UNREADABLE]


def _calls(value):
    return [_call(entry) for entry in (value if isinstance(value, list) else [value])]


def _call(entry):
    entry = entry.get("function", entry) if isinstance(entry, dict) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return UNREADABLE
    arguments = entry.get("arguments", entry.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return UNREADABLE
    return (entry["name"], json.dumps(arguments, sort_keys=True))
