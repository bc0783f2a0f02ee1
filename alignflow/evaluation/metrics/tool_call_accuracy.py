"""Share of responses whose tool calls are those wanted: names and arguments, in any order."""

import json
from collections import Counter

from alignflow.data import made_calls
from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="tool_call_accuracy", is_rate=True, reads_calls=True)


class ToolCallAccuracy(module.TextMetric):
    """1 for a response that makes the calls of its target and no other, else 0.

    A target is a JSON list of calls, `[{"name": ..., "arguments": {...}}]`; an empty list, or text
    that is no JSON, wants a response without any. A response's calls stand between `<tool_call>`
    tags, or are the whole response. Arguments are compared as JSON: the order of names and calls does
    not count. Text beside tagged calls does not count either.
    """

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(tool_call_accuracy=[float(agree(p, r)) for p, r in pairs])


def agree(response, target):
    """Whether two texts make the same calls; what cannot be read agrees with nothing."""
    said, wanted = (made_calls(text) for text in (response, target))
    return said is not None and wanted is not None and counted(said) == counted(wanted)


def counted(calls):
    """Each call as it is compared, and how often it is made."""
    return Counter((call["name"], json.dumps(call["arguments"], sort_keys=True)) for call in calls)
