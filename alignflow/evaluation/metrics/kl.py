"""KL of a model from its reference, in nats per response, on responses the model has sampled."""

import datasets
import evaluate

_FEATURES = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}


class KL(evaluate.Metric):
    """Mean of log p - log q over samples of p: unbiased, so a small one can come out negative."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: log p of each response; references: log q of it",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references):
        values = [p - q for p, q in zip(predictions, references, strict=True)]
        return {"kl": sum(values) / len(values), "per_prompt": {"kl": values}}
