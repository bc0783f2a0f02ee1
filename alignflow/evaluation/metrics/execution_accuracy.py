"""Share of SQL answers that give the right rows on every database, and how the others fail."""

import alignflow.evaluation.about as about
from alignflow.evaluation import module
from alignflow.evaluation.execution import execution_judge
from alignflow.recipe import ExecutionArguments

ABOUT = about.MetricAbout(
    name="execution_accuracy",
    is_rate=True,
    also=(
        about.Figure(name="unsafe_rate", better="lower", is_rate=True, place=1),
        about.Figure(name="chatter_rate", better="lower", is_rate=True, place=2),
    ),
    arguments=ExecutionArguments,
)


class ExecutionAccuracy(module.TextMetric):
    """Runs each answer; `unsafe_rate` counts answers that would modify the data."""

    def _compute(self, predictions, references, **arguments):
        judge = execution_judge(ExecutionArguments(**arguments))
        verdicts = [judge(p, r) for p, r in zip(predictions, references, strict=True)]
        return module.means(
            execution_accuracy=[float(verdict.correct) for verdict in verdicts],
            unsafe_rate=[float(verdict.category == "unsafe") for verdict in verdicts],
            chatter_rate=[float(verdict.category == "chatter") for verdict in verdicts],
        )
