"""One run of a retrain: it starts from the champion's artifacts, on one snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignflow.gate import Decision, Power, Verdict, number_of_prompts, power_of
from alignflow.ledger import mark_dropped, newest_generation, set_state
from alignflow.lineage.look import Assignment
from alignflow.lineage.retraining import lineage_artifacts
from alignflow.pipeline import Driver, PipelineRun, decision, new_run_id
from alignflow.recipe import METHODS, require_retrain
from alignflow.stages import Prepared, StageSpec, verify


class RetrainNotes(BaseModel):
    """What the report says of a retrain, as far as it has come."""

    reason: str
    model: str
    preference_set: str
    snapshot: str
    rows: int
    replayed: int
    continues: int | None
    """Generation that the policy continues; None from scratch."""
    dropped: int = 0
    """Rows of the snapshot that could not be used."""
    power: Power | None = None
    candidate_version: str | None = None
    champion: int | None = None
    """Generation that the candidate was gated against last."""
    verdict: Decision | None = None
    gate: Verdict | None = None
    outcome: str = ""
    """What became of the candidate."""
    generation: int | None = None
    """That it became; None where it was not promoted."""


class RetrainRun(PipelineRun):
    """A pipeline that continues a lineage; what is decided about its candidate stands in `notes`."""

    def __init__(self, work: Assignment, home: Path, reason: str, driver: Driver) -> None:
        generation = (newest_generation(home, work.model) or 0) + 1  # after 0, which is founded
        title = f"{work.model} gen {generation} candidate"
        super().__init__(work.recipe, home, new_run_id(work.recipe.name), driver, title)
        self.work = work
        self.artifacts |= {
            role: verify(path) for role, path in lineage_artifacts(work.recipe, work.start).items()
        }
        self.notes = RetrainNotes(
            reason=reason,
            model=work.model,
            preference_set=work.preference_set,
            snapshot=work.snapshot,
            rows=work.rows,
            replayed=work.replayed,
            continues=work.start.generation if work.start else None,
        )

    def additions(self) -> dict[str, Any]:
        """What has been noted so far, and the champion's evaluation, whose answers are shown."""
        retrain = self.notes.model_dump(mode="json", include=self.notes.model_fields_set)
        if theirs := self.judged_beside.get("champion"):
            retrain["champion_evaluation"] = theirs.path
        return {"retrain": retrain}

    def close(self, status: str) -> None:
        """See PipelineRun; a run with its verdict has it in its title."""
        decided = decision(self.notes.model_dump())
        if self.notes.generation is not None:
            self.title = f"{self.work.model} gen {self.notes.generation}"
        elif decided is not None:
            self.title = f"{self.title}, {decided.lower()}"
        super().close(status)

    def spec_of(self, stage: str) -> StageSpec:
        """See PipelineRun; the stage that continues the champion's policy reads it as `init`."""
        spec, policy = super().spec_of(stage), self.artifacts.get("init")
        if stage not in METHODS or policy is None:
            return spec
        return spec.model_copy(update={"inputs": {**spec.inputs, "init": policy.ref()}})

    def complete(self, stage: str) -> None:
        """See PipelineRun; after `prepare` it is said what the gate will be able to find."""
        super().complete(stage)
        if stage == "prepare":
            self._account()

    def _account(self) -> None:
        """Records the rows that `prepare` dropped, and says what the hold-out can show."""
        prepare, work = self.artifacts["prepare"], self.work
        dropped = json.loads(Prepared(prepare.directory).dropped.read_text())
        if dropped:
            mark_dropped(self.home, work.preference_set, dropped)
        state = set_state(self.home, work.preference_set, work.model)
        prompts = number_of_prompts(prepare, self.recipe)
        power = power_of(prompts, require_retrain(self.recipe).gate, state.looks + 1)
        self.notes.dropped, self.notes.power = len(dropped), power
        self.driver.log().info("%s", power.text)
        self.driver.show(
            power.text, "gate-power", "What the evaluation set can show, before training."
        )
