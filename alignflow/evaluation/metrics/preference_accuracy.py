"""Share of pairs whose chosen response scores above the rejected one; a tie is half."""

import datasets
import evaluate

_FEATURES = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}


class PreferenceAccuracy(evaluate.Metric):
    """How often a score agrees with the people who labelled the pairs."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: scores of chosen; references: of rejected responses",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references):
        values = [
            0.5 if chosen == rejected else float(chosen > rejected)
            for chosen, rejected in zip(predictions, references, strict=True)
        ]
        return {
            "preference_accuracy": sum(values) / len(values),
            "per_prompt": {"preference_accuracy": values},
        }
