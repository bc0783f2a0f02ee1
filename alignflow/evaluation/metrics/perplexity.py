"""Perplexity of a text collection: exp of the mean negative log-likelihood of a token."""

import math

import datasets
import evaluate

_FEATURES = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}


class Perplexity(evaluate.Metric):
    """Tokens weigh the same, whichever text they stand in."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: summed -log p of each text; references: its tokens",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references):
        return {"perplexity": math.exp(sum(predictions) / sum(references))}
