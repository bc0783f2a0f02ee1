"""Mean length of responses, in tokens."""

import datasets
import evaluate

_FEATURES = {"predictions": datasets.Value("int64")}


class ResponseLength(evaluate.Metric):
    """The end token is not counted."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: tokens of each response",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions):
        values = [float(length) for length in predictions]
        return {
            "response_length": sum(values) / len(values),
            "per_prompt": {"response_length": values},
        }
