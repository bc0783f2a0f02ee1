"""Mean length of responses, in tokens."""

from alignflow.evaluation import module
from alignflow.evaluation.about import MetricAbout

ABOUT = MetricAbout(
    name="response_length", better=None, highest=float("inf"), compares_responses=False, place=6
)


class ResponseLength(module.NumberMetric):
    """The end token is not counted."""

    inputs = {"predictions": "int64"}  # noqa: RUF012 (a constant)

    def _compute(self, predictions):
        return module.means(response_length=[float(length) for length in predictions])
