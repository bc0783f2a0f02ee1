"""The steps of a decision, in the order in which a flow takes them."""

from __future__ import annotations

from alignflow.deciding.arms import ARMS, configurations_of
from alignflow.deciding.questions import PARTS
from alignflow.deciding.run import CHOICE, UPDATES, VERDICT, DecideRun
from alignflow.deciding.table import table_of
from alignflow.deciding.terminal import as_markdown
from alignflow.recipe import ArmName


def gather(run: DecideRun) -> list[ArmName]:
    """Documents, their paraphrases and the questions; returns the arms to compare."""
    arms = run.section.compared
    if run.section.documents:
        run.documents_index()
    if any("paraphrases" in ARMS[arm].pretrained_on for arm in arms):
        run.paraphrased()
    counts = run.questions().result.metrics
    told = ", ".join(f"{counts[part] or 0:.0f} {part}" for part in PARTS if counts.get(part))
    run.driver.log().info("questions: %s", told)
    return arms


def choose(run: DecideRun, arm: ArmName) -> None:
    """Tries an arm's configurations on the choice part, and takes the best; of equal ones the first."""
    tries = configurations_of(arm, run.section)
    run.tried[arm] = [(each, run.answers(arm, each, CHOICE, run.recipe.seed)) for each in tries]
    accuracies = [asked.figures["accuracy"] or 0.0 for _, asked in run.tried[arm]]
    run.chosen[arm] = tries[accuracies.index(max(accuracies))]


def judge(run: DecideRun, arm: ArmName) -> None:
    """Has an arm answer the verdict part as chosen: with each seed, if it is trained."""
    seeds = run.seeds if ARMS[arm].trained else run.seeds[:1]
    run.asked[arm] = [run.answers(arm, run.chosen[arm], VERDICT, seed) for seed in seeds]


def update(run: DecideRun, arm: ArmName) -> None:
    """Asks an arm what has changed, on the new index and with the old weights."""
    if run.section.updates is None:
        return
    run.documents_index("changed")
    run.updated[arm] = run.answers(arm, run.chosen[arm], UPDATES, run.recipe.seed)


def settle(run: DecideRun) -> None:
    """Compares the arms, and shows what came out."""
    run.decision = table_of(run)
    run.driver.log().info("%s", run.decision["sentence"])
    run.driver.show(as_markdown(run.decision), "decision", run.decision["sentence"])
