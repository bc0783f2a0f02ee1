"""Share of responses that are the target, blanks at the ends left aside."""

import datasets
import evaluate

_FEATURES = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}


class ExactMatch(evaluate.Metric):
    """1 for a response that equals its target, else 0."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: responses; references: targets",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references):
        values = [
            float(prediction.strip() == reference.strip())
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {"exact_match": sum(values) / len(values), "per_prompt": {"exact_match": values}}
