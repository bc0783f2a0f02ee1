"""Share of responses that are the target, blanks at the ends left aside."""

from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="exact_match", is_rate=True)


class ExactMatch(module.TextMetric):
    """1 for a response that equals its target, else 0."""

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(exact_match=[float(p.strip() == r.strip()) for p, r in pairs])
