"""Words in common with the target, in any order: F1 as for SQuAD."""

import re
from collections import Counter

from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="token_f1")
_WORD = re.compile(r"\w+")


class TokenF1(module.TextMetric):
    """1 for the same words, 0 for no common word; articles and case are left aside."""

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(token_f1=[token_f1(p, r) for p, r in pairs])


def token_f1(response, target):
    """F1 of the words of two texts."""
    ours, theirs = (Counter(_words(text)) for text in (response, target))
    common = sum((ours & theirs).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (sum(ours.values()) + sum(theirs.values()))


def _words(text):
    return [word for word in _WORD.findall(text.lower()) if word not in ("a", "an", "the")]
