"""KL of a model from its reference, in nats per response, on responses the model has sampled."""

import alignflow.evaluation.about as about
from alignflow.evaluation import module

_BOUNDS = {"better": "lower", "lowest": float("-inf"), "highest": float("inf")}
ABOUT = about.MetricAbout(
    name="kl",
    compares_responses=False,
    also=(about.Figure(name="kl_to_sft", place=4, **_BOUNDS),),
    **_BOUNDS,
)


class KL(module.NumberMetric):
    """Mean of log p - log q over samples of p: unbiased, so a small one can come out negative."""

    def _compute(self, predictions, references):
        return module.means(kl=[p - q for p, q in zip(predictions, references, strict=True)])
