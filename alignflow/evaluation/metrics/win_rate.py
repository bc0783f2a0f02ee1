"""Share of prompts where one model's response scores above the other's; a tie is half a win."""

from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(name="win_rate", is_rate=True, compares_responses=False, place=3)


class WinRate(module.NumberMetric):
    """Compares scores of two responses to the same prompt."""

    def _compute(self, predictions, references):
        pairs = zip(predictions, references, strict=True)
        return module.means(win_rate=[0.5 if o == t else float(o > t) for o, t in pairs])
