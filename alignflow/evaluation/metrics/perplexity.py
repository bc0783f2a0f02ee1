"""Perplexity of a text collection: exp of the mean negative log-likelihood of a token."""

import math

import alignflow.evaluation.about as about
from alignflow.evaluation import module

_BOUNDS = {"better": "lower", "lowest": 1.0, "highest": math.inf}
ABOUT = about.MetricAbout(
    name="perplexity",
    compares_responses=False,
    also=(about.Figure(name="perplexity_general", place=5, **_BOUNDS),),
    **_BOUNDS,
)


class Perplexity(module.NumberMetric):
    """Tokens weigh the same, whichever text they stand in."""

    def _compute(self, predictions, references):
        return {"perplexity": math.exp(sum(predictions) / sum(references))}
