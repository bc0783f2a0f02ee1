"""One decision: what it has measured so far, and the specs of the stages that measure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.deciding.answers import AskParams
from alignflow.deciding.arms import ARMS, BASE
from alignflow.deciding.cost import Work
from alignflow.deciding.page import figures_of, write_decision
from alignflow.deciding.paraphrase import ParaphraseParams
from alignflow.deciding.pose import PROMPTS_FILE, ROWS_FILE, PoseParams
from alignflow.deciding.questions import TEXTS_FILE, QuestionsParams
from alignflow.deciding.recipes import cut, recipe_of
from alignflow.files import atomic_write_bytes, digest_json, sha256_file
from alignflow.machine import named_faults
from alignflow.pipeline import (
    BASE_PARTS,
    Driver,
    PipelineRun,
    judged_by,
    resolve_data_source,
    stage_spec,
)
from alignflow.recipe import (
    ArmName,
    Configuration,
    DataSection,
    DataSource,
    Recipe,
    RetrievalSection,
    require_decide,
    resolve_function,
)
from alignflow.retrieval import DOCUMENTS_FILE, IndexParams, document_files
from alignflow.stages import Artifact, InputRef, Prepared, StageSpec, resolve_dtype

CHOICE, VERDICT, UPDATES = "choice", "verdict", "updates"


class Asked:
    """Artifacts behind the answers of an arm, in one configuration with one seed."""

    def __init__(self, answers: Artifact, posed: Artifact, made: list[Artifact]) -> None:
        self.answers = answers
        self.posed = posed
        self.made = made
        """What had to be prepared: index, paraphrases, what was trained."""

    @property
    def figures(self) -> dict[str, float | None]:
        """Those of the answers."""
        return self.answers.result.metrics

    @property
    def search_seconds(self) -> float:
        """Of a question."""
        return self.posed.result.metrics.get("search_seconds") or 0.0

    @property
    def preparing_seconds(self) -> float:
        """That what was made took when it was made."""
        return sum(artifact.seconds for artifact in self.made)

    @property
    def work(self) -> Work:
        """What it takes, for its cost."""
        figures = self.figures
        return Work(
            seconds_each=(figures["seconds_each"] or 0.0) + self.search_seconds,
            prompt_tokens=figures["prompt_tokens"] or 0.0,
            response_tokens=figures["response_tokens"] or 0.0,
            preparing_seconds=self.preparing_seconds,
        )


class DecideRun(PipelineRun):
    """A pipeline that compares arms; what they said stands in `tried`, `asked` and `updated`."""

    def __init__(self, recipe: Recipe, home: Path, run_id: str, driver: Driver) -> None:
        super().__init__(recipe, home, run_id, driver)
        self.section = require_decide(recipe)
        self.shared: dict[str, Artifact] = {}
        """`index`, `paraphrase`, `questions`, and `changed`: the index after an update."""
        self.tried: dict[ArmName, list[tuple[Configuration, Asked]]] = {}
        """On the choice part."""
        self.chosen: dict[ArmName, Configuration] = {}
        self.asked: dict[ArmName, list[Asked]] = {}
        """On the verdict part, by seed."""
        self.updated: dict[ArmName, Asked] = {}
        """After the documents changed, what was trained as it was."""
        self.decision: dict[str, Any] = {}
        """What `table.table_of` says, once it is settled."""

    # -- what all arms share

    def documents_index(self, role: str = "index") -> Artifact:
        """The index of the documents, or with those of `updates` in force under the role `changed`."""
        changed = self.section.updates.documents if self.section.updates else []
        sources = [*self.section.documents, *(changed if role == "changed" else [])]
        digests, paths = self._resolved(sources)
        of_prompts = ("passages", "instruction")
        usual = {name: RetrievalSection.model_fields[name].default for name in of_prompts}
        params = IndexParams(
            retrieval=self.section.retrieval.model_copy(update=usual),
            documents=self.section.documents,
            changed=changed if role == "changed" else [],
            sources=digests,
        )
        return self._shared(role, self._spec("index", params.as_json(), {}, paths))

    def paraphrased(self) -> Artifact:
        """The documents in other words."""
        tuning = {"tuning": self.recipe.tuning, "dtype": resolve_dtype(self.recipe)}
        params = ParaphraseParams(section=self.section.paraphrases, **tuning)
        inputs = {"index": self.shared["index"].ref((DOCUMENTS_FILE,))}
        if self.section.paraphrases.by == "model":
            inputs["data"] = self._plain().ref(BASE_PARTS)
        return self._shared("paraphrase", self._spec("paraphrase", params.as_json(), inputs))

    def questions(self) -> Artifact:
        """The questions in their parts, those that leaked left out."""
        section = self.section
        updates = section.updates.questions if section.updates else []
        digests, paths = self._resolved([*section.questions, *section.demonstrations, *updates])
        params = QuestionsParams(
            questions=section.questions,
            demonstrations=section.demonstrations,
            updates=updates,
            sources=digests,
            verdict_share=section.verdict_share,
            abstention=section.abstention,
        )
        parts = {"index": DOCUMENTS_FILE, "paraphrase": TEXTS_FILE}
        read = {
            role: self.shared[role].ref((p,)) for role, p in parts.items() if role in self.shared
        }
        return self._shared("questions", self._spec("questions", params.as_json(), read, paths))

    def _shared(self, role: str, spec: StageSpec) -> Artifact:
        if role not in self.shared:
            self.shared[role] = self.aside(spec)
        return self.shared[role]

    def _resolved(self, sources: list[DataSource]) -> tuple[dict[str, str], dict[str, str]]:
        """Digests and, where a stage is told them, paths of sources."""
        digests, paths = {}, {}
        for source in sources:
            if files := document_files(source.source):
                digests[source.source] = digest_json([(n, sha256_file(p)) for n, p in files])
                continue
            resolved = resolve_data_source(source, self.home, self.recipe.seed)
            digests[source.source] = resolved.digest
            if resolved.path:
                paths[source.source] = resolved.path
        return digests, paths

    def _spec(
        self,
        stage: str,
        params: dict[str, Any],
        inputs: dict[str, InputRef],
        paths: Mapping[str, str] | None = None,
    ) -> StageSpec:
        return StageSpec(
            stage=stage,
            home=str(self.home),
            params=params,
            seed=self.recipe.seed,
            inputs=inputs,
            compute=self.recipe.compute,
            paths=dict(paths or {}),
        )

    def close(self, status: str) -> None:
        """Writes what was decided, if it came so far, and hands it to MLflow."""
        self.tracker.drain()
        folder = self.home / "runs" / self.run_id
        if self.decision:
            with named_faults(f"under {self.home}"):
                write_decision(folder, self.decision)
            for arm, row in self.decision["arms"].items():
                chosen = {"configuration": row["configuration"]}
                self.tracker.nested(arm, chosen, figures_of(row))
        told = self.decision.get("sentence", "")
        title = f"{self.recipe.name}: {self.decision.get('recommended') or status}"
        self.tracker.finish(status, {}, folder, title=title, note=told)
        if address := self.tracker.place().get("url"):
            self.driver.link(address, "MLflow run")

    # -- one arm

    def answers(self, arm: ArmName, configuration: Configuration, part: str, seed: int) -> Asked:
        """Has an arm answer a part, trained for it where the arm is trained."""
        row = ARMS[arm]
        models = self._trained(arm, configuration, seed) if row.trained else {}
        posed = self._posed(arm, configuration, part)
        read = self._plain()
        general = (
            part == VERDICT and bool(self.recipe.data.general) and (row.trained or arm == BASE)
        )
        params = AskParams(
            section=self.recipe.evaluation,
            judged_by=judged_by(self.recipe),
            abstention=self.section.abstention,
            timed=part == VERDICT,
            general=general,
            tuning=self.recipe.tuning,
            dtype=resolve_dtype(self.recipe),
        )
        inputs = {
            "data": read.ref((*BASE_PARTS, *(("general",) if general else ()))),
            "prompts": posed.ref((PROMPTS_FILE,)),
        }
        if "sft" in models:
            inputs["sft"] = models["sft"].ref()
        if "pretrain" in models:
            inputs["pretrain"] = _as_base(models["pretrain"])
        answers = self.aside(self._spec("ask", params.as_json(), inputs))
        made = list(models.values())
        if row.context == "retrieved":
            made.append(self.shared["changed" if part == UPDATES else "index"])
        if "paraphrases" in row.pretrained_on:
            made.append(self.shared["paraphrase"])
        return Asked(answers, posed, made)

    def _posed(self, arm: ArmName, configuration: Configuration, part: str) -> Artifact:
        """The prompts of an arm; of part `training` the conversations that it learns from."""
        row, read = ARMS[arm], self._plain()
        context = read.result.params.get("context_length")
        longest = self.section.prompt_tokens
        answer = self.recipe.evaluation.max_new_tokens
        if context:
            longest = min(longest, int(context) - answer)
        if part == "training":
            longest = min(longest, max(self.section.sft.max_length - answer, 16))
        told: dict[str, Any] = {}
        inputs = {"data": read.ref(BASE_PARTS), "questions": self._part_read(row.context, part)}
        if row.context in ("retrieved", "oracle"):
            section = self.section.retrieval
            told["retrieval"] = section
            if ":" in section.by:
                told["retrieved_by"] = sha256_file(resolve_function(section.by))
            inputs["index"] = self.shared["changed" if part == UPDATES else "index"].ref()
        params = PoseParams(
            part=part,  # type: ignore[arg-type]
            context=row.context,
            configuration=_of_prompts(configuration),
            abstention=self.section.abstention,
            prompt_tokens=longest,
            **told,
        )
        return self.aside(self._spec("pose", params.as_json(), inputs))

    def _part_read(self, context: str, part: str) -> InputRef:
        """The questions of a part, and the demonstrations where they are shown."""
        shown = ("training.jsonl",) if context == "few-shot" else ()
        return self.shared["questions"].ref(tuple(dict.fromkeys((f"{part}.jsonl", *shown))))

    def _trained(
        self, arm: ArmName, configuration: Configuration, seed: int
    ) -> dict[str, Artifact]:
        """Stages of a tuned arm by name: one preparation for all seeds, then a model for each."""
        recipe = recipe_of(self.recipe, arm, configuration, self.made(arm, configuration))
        made = {"prepare": self._once(stage_spec(recipe, "prepare", self.home, {}))}
        seeded = recipe.model_copy(update={"seed": seed})
        for stage in ("pretrain", "sft"):
            if seeded.section_of(stage) is not None:
                made[stage] = self._once(stage_spec(seeded, stage, self.home, made))
        return made

    def made(self, arm: ArmName, configuration: Configuration) -> dict[str, str]:
        """Files and folders that an arm is trained on or asked with."""
        row = ARMS[arm]
        made = {"training": self._by_content(self.shared["questions"], "training.jsonl")}
        texts = {"documents": ("index", DOCUMENTS_FILE), "paraphrases": ("paraphrase", TEXTS_FILE)}
        for kind in row.pretrained_on:
            role, name = texts[kind]
            made[kind] = self._by_content(self.shared[role], name)
        if row.context == "retrieved":
            made["index"] = self.shared["index"].path
            if row.trained:
                lessons = self._posed(arm, configuration, "training")
                made["lessons"] = self._by_content(lessons, ROWS_FILE)
        return made

    def _by_content(self, artifact: Artifact, name: str) -> str:
        """Path of a copy named by its content: equal rows are one source, whatever else has changed."""
        path = self.home / "cache" / "rows" / f"{artifact.files[name]['sha256']}.jsonl"
        if not path.is_file():
            atomic_write_bytes(path, (artifact.directory / name).read_bytes())
        return str(path)

    @property
    def base_directory(self) -> str:
        """Where the base model is on this machine."""
        location = Prepared(self._plain().directory).location
        return str(json.loads(location.read_text())["path"])

    def _plain(self) -> Artifact:
        """The base model and its tokenizer, and general text where there is some."""
        data = DataSection(general=self.recipe.data.general)
        return self._once(stage_spec(cut(self.recipe, data=data), "prepare", self.home, {}))

    def _once(self, spec: StageSpec) -> Artifact:
        """A stage that several arms share is looked for once."""
        return self._shared(f"{spec.stage} {spec.key}", spec)

    @property
    def seeds(self) -> list[int]:
        """Of the tuned arms on the verdict part."""
        return [self.recipe.seed + number for number in range(self.section.seeds)]


def _of_prompts(configuration: Configuration) -> Configuration:
    """What of a configuration concerns prompts, so that training in another way asks the same."""
    names = ("learning_rate", "num_train_epochs", "pretrain_epochs")
    of_training: dict[str, Any] = dict.fromkeys(names)
    return configuration.model_copy(update=of_training)


def _as_base(pretrain: Artifact) -> InputRef:
    return pretrain.ref(("base_model.json", "model"))
