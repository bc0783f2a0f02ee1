"""KL of a model from its reference, in nats per response, on responses the model has sampled."""

from alignflow.evaluation import module
from alignflow.evaluation.about import Figure, MetricAbout

_BOUNDS = {"better": "lower", "lowest": float("-inf"), "highest": float("inf")}
ABOUT = MetricAbout(
    name="kl",
    compares_responses=False,
    also=(Figure(name="kl_to_sft", place=4, **_BOUNDS),),
    **_BOUNDS,
)


class KL(module.NumberMetric):
    """Mean of log p - log q over samples of p: unbiased, so a small one can come out negative."""

    def _compute(self, predictions, references):
        return module.means(kl=[p - q for p, q in zip(predictions, references, strict=True)])
