"""Share of pairs whose chosen response scores above the rejected one; a tie is half."""

from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="preference_accuracy", is_rate=True, compares_responses=False)


class PreferenceAccuracy(module.NumberMetric):
    """How often a score agrees with the people who labelled the pairs."""

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(preference_accuracy=[0.5 if c == r else float(c > r) for c, r in pairs])
