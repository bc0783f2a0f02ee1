"""Overlap of words with the target: F1 of their longest common subsequence, as in ROUGE-L."""

import re

import datasets
import evaluate

_FEATURES = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
_WORD = re.compile(r"\w+|[^\w\s]")


class Overlap(evaluate.Metric):
    """1 for the same words in the same order, 0 for no common word."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: responses; references: targets",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references):
        values = [
            overlap(words(prediction), words(reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {"overlap": sum(values) / len(values), "per_prompt": {"overlap": values}}


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
