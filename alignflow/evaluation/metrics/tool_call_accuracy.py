"""Share of responses whose tool calls are those wanted: names and arguments, in any order."""

import json
from collections import Counter

from alignflow.data import BadRow, call_texts, calls_of
from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="tool_call_accuracy", is_rate=True, reads_calls=True)
UNREADABLE, UNREADABLE_TARGET = ("unreadable",), ("unreadable target",)


class ToolCallAccuracy(module.TextMetric):
    """1 for a response that makes the calls of its target and no other, else 0.

    A target is a JSON list of calls, `[{"name": ..., "arguments": {...}}]`; an empty list, or text
    that is no JSON, wants a response without any. A response's calls stand between `<tool_call>`
    tags, or are the whole response. Arguments are compared as JSON: the order of names and calls does
    not count. Text beside tagged calls does not count either.
    """

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(tool_call_accuracy=[float(calls_in(p) == wanted(r)) for p, r in pairs])


def wanted(reference):
    """The calls of a target, as they are compared."""
    if not _begins_json(reference):
        return Counter()
    return Counter(_calls(json.loads(reference), UNREADABLE_TARGET))


def calls_in(text):
    """The calls of a response, as they are compared."""
    return Counter(call for body in call_texts(text) for call in _parsed(body))


def _begins_json(text):
    return text.strip().startswith(("{", "["))


def _parsed(text):
    try:
        return _calls(json.loads(text), UNREADABLE)
    except (ValueError, RecursionError):
        return [UNREADABLE]


def _calls(value, otherwise):
    """Calls as training rows have them; `otherwise` where there is one that is none."""
    try:
        called = calls_of(value, "calls") if value != [] else []
    except BadRow:
        return [otherwise]
    functions = [call["function"] for call in called]
    return [(made["name"], json.dumps(made["arguments"], sort_keys=True)) for made in functions]
