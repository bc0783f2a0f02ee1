"""Perplexity of a text collection: exp of the mean negative log-likelihood of a token."""

import math

from alignflow.evaluation import module
from alignflow.evaluation.about import Figure, MetricAbout

_BOUNDS = {"better": "lower", "lowest": 1.0, "highest": math.inf}
ABOUT = MetricAbout(
    name="perplexity",
    compares_responses=False,
    also=(Figure(name="perplexity_general", place=5, **_BOUNDS),),
    **_BOUNDS,
)


class Perplexity(module.NumberMetric):
    """Tokens weigh the same, whichever text they stand in."""

    def _compute(self, predictions, references):
        return {"perplexity": math.exp(sum(predictions) / sum(references))}
