"""Share of SQL answers that give the right rows on two databases, and how the others fail."""

import datasets
import evaluate

from alignflow.builtin.freight.judge import judge

_FEATURES = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}


class ExecutionAccuracy(evaluate.Metric):
    """Runs each answer; `unsafe_rate` counts answers that would modify the data."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: answers; references: targets of builtin:freight",
            features=datasets.Features(_FEATURES),
        )

    def _compute(self, predictions, references):
        verdicts = [
            judge(prediction, reference)
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        per_prompt = {
            "execution_accuracy": [float(verdict.correct) for verdict in verdicts],
            "unsafe_rate": [float(verdict.category == "unsafe") for verdict in verdicts],
            "chatter_rate": [float(verdict.category == "chatter") for verdict in verdicts],
        }
        means = {name: sum(values) / len(values) for name, values in per_prompt.items()}
        return {**means, "per_prompt": per_prompt}
