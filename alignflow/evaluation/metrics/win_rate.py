"""Share of prompts where one model's response scores above the other's; a tie is half a win."""

import datasets
import evaluate

_FEATURES = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}


class WinRate(evaluate.Metric):
    """Compares scores of two responses to the same prompt."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: scores of the model; references: of its opponent",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references):
        values = [
            0.5 if ours == theirs else float(ours > theirs)
            for ours, theirs in zip(predictions, references, strict=True)
        ]
        return {"win_rate": sum(values) / len(values), "per_prompt": {"win_rate": values}}
