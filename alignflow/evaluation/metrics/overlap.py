"""Overlap of words with the target: F1 of their longest common subsequence, as in ROUGE-L."""

import re

from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="overlap")
_WORD = re.compile(r"\w+|[^\w\s]")


class Overlap(module.TextMetric):
    """1 for the same words in the same order, 0 for no common word."""

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(overlap=[overlap(words(p), words(r)) for p, r in pairs])


def words(text):
    """Words and punctuation marks, in lower case."""
    return _WORD.findall(text.lower())


def overlap(response, target):
    """F1 of the longest common subsequence of two lists."""
    if not response or not target:
        return float(response == target)
    common = [0] * (len(target) + 1)
    for word in response:
        above_left = 0
        for place, wanted in enumerate(target, 1):
            above = common[place]
            common[place] = above_left + 1 if word == wanted else max(above, common[place - 1])
            above_left = above
    return 2 * common[-1] / (len(response) + len(target))
