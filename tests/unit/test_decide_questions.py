"""Questions: read, split by their prompts, leaks taken out, posed, and their answers judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import alignflow.deciding.questions as questions
import alignflow.retrieval.index as index
from alignflow.data import RawRow
from alignflow.deciding.arms import ARMS, configurations_of
from alignflow.deciding.cost import Cost, Work, break_even, cost_of
from alignflow.deciding.paraphrase import by_templates
from alignflow.deciding.picture import matrix
from alignflow.deciding.pose import Sources
from alignflow.deciding.questions import (
    Question,
    leaks,
    question_of,
    read_questions,
    split,
    without_leaks,
)
from alignflow.deciding.scoring import abstains, scores_of
from alignflow.errors import DataError
from alignflow.evaluation import load_metrics
from alignflow.files import digest_directory
from alignflow.recipe import DecideSection, EvaluationSection, Recipe
from alignflow.retrieval import Chunk, Document
from alignflow.stages import EventWriter, InputRef, StageSpec

ABSTENTION = "I don't know."


def raw(**fields: Any) -> RawRow:
    return RawRow("here", fields)


def question(text: str, *targets: str, **fields: Any) -> Question:
    return question_of(raw(prompt=text, target=list(targets), **fields))


def many(count: int) -> list[Question]:
    return [
        question(f"What is the number of house {n} in the long street?", str(n))
        for n in range(count)
    ]


def section(**fields: Any) -> DecideSection:
    return DecideSection.model_validate({"questions": "q.jsonl", "documents": "docs", **fields})


def test_a_row_is_a_question_with_one_or_several_accepted_answers() -> None:
    read = question("Why?", "a", "b", group="facts", sources="h.md")
    assert (read.targets, read.group, read.sources) == (["a", "b"], "facts", ["h.md"])
    assert question_of(raw(prompt="Why?", target="a")).targets == ["a"]
    without = question_of(raw(prompt="Who?", answerable=False))
    assert not without.answerable and without.targets == []
    questions, dropped = read_questions(
        [raw(prompt="A?", target="a"), raw(prompt=" a? ", target="b"), raw(x=1)]
    )
    assert len(questions) == 1 and dropped == {"asked_twice": 1, "missing_columns": 1}


def test_no_prompt_is_in_two_parts_and_a_further_question_moves_no_other() -> None:
    fewer, more = (
        split(many(300), 0.5, demonstrated=False),
        split(many(400), 0.5, demonstrated=False),
    )
    names = [{q.name for q in part} for part in more]
    assert sum(len(part) for part in names) == 400 and not names[0] & names[1] | names[1] & names[2]
    for before, after in zip(fewer, more, strict=True):
        assert {q.name for q in before} <= {q.name for q in after}
    assert 0.4 < len(more.verdict) / 400 < 0.6 and 0.15 < len(more.training) / 400 < 0.35
    shown = split(many(400), 0.5, demonstrated=True)
    assert shown.training == [] and shown.verdict == more.verdict


def test_a_question_that_stands_in_a_document_leaves_the_verdict_and_over_a_fifth_refuses() -> None:
    verdict = many(10)
    text = f"FAQ\n\nQ: {verdict[3].text.upper()}\nIt is 3."
    leaked = leaks(verdict, ["Nothing here.", text])
    assert leaked == [verdict[3].name]
    assert (
        verdict[3] not in without_leaks(verdict, leaked)
        and len(without_leaks(verdict, leaked)) == 9
    )
    everywhere = leaks(verdict, [q.text for q in verdict[:3]])
    with pytest.raises(DataError, match="3 of 10 questions of the verdict stand in the documents"):
        without_leaks(verdict, everywhere)


def test_the_best_of_several_accepted_answers_counts_and_a_longer_answer_never_more() -> None:
    questions = [
        question("a?", "four", "4"),
        question("b?", "blue"),
        question_of(raw(prompt="c?", answerable=False)),
    ]
    for name in ("exact_match", "token_f1", "overlap"):
        [metric] = load_metrics(EvaluationSection(metrics=[name]))
        short = scores_of(metric, ["4", "blue", "I don't know"], questions, ABSTENTION)
        assert short == [1.0, 1.0, 1.0]
        padding = " and let me tell you much more about that, in many words"
        longer = scores_of(
            metric,
            [f"4{padding}", f"blue{padding}", f"I don't know{padding}"],
            questions,
            ABSTENTION,
        )
        assert all(long < 0.5 for long in longer)


def test_abstention_is_recognised_whatever_its_capitals_and_marks() -> None:
    assert abstains(" i DON'T know", ABSTENTION) and abstains('"I don\'t know!"', ABSTENTION)
    assert not abstains("I don't know, perhaps blue.", ABSTENTION)


def chunk(number: int, text: str, document: str = "d") -> Chunk:
    return Chunk(id=f"{document}#{number}", document=document, heading="", text=text)


def test_where_an_answer_stands_is_found_by_whole_words_or_taken_from_labels() -> None:
    sources = Sources.of(
        [chunk(1, "The code is 412."), chunk(2, "It is 41 or blue."), chunk(1, "Blue.", "e")]
    )
    found = lambda q: [c.id for c in sources.of_question(q)]  # noqa: E731
    assert found(question("?", "412")) == ["d#1"]
    assert found(question("?", "41")) == []  # two letters tell nothing
    assert found(question("?", "41", sources=["d"])) == ["d#2"]
    assert found(question("?", "blue")) == ["d#2", "e#1"]
    assert found(question("?", "absent", sources=["e"])) == ["e#1"]
    assert found(question_of(raw(prompt="x?", answerable=False))) == []


def test_every_arm_tries_the_same_number_of_configurations_its_default_first() -> None:
    for count in (1, 2, 3):
        for arm in ARMS:
            tries = configurations_of(arm, section(configurations=count))
            assert len(tries) == count and tries[0].model_dump(exclude_defaults=True) == {}
            assert len({each.model_dump_json() for each in tries}) == count
    with pytest.raises(ValueError, match="every arm gets the same number of tries"):
        section(tries={"rag": [{"passages": 5}]})


def test_arms_that_read_need_documents() -> None:
    assert section(documents=[]).compared == ["base", "few-shot", "sft"]
    with pytest.raises(ValueError, match="rag but documents is empty"):
        section(documents=[], arms=["rag"])


def test_paraphrases_hold_every_sentence_and_are_made_without_questions() -> None:
    document = Document("h", "# Leave\n\nEmployees get 25 days. Five may be carried over.")
    texts = by_templates([document], 4, 0)
    assert len(set(texts)) == 4 and texts == by_templates([document], 4, 0)
    assert all("Employees get 25 days." in t and "Five may be carried over." in t for t in texts)
    assert any("Leave" in text for text in texts)


def test_costs_worked_by_hand() -> None:
    priced = section(
        prices={"hour": 3.6, "million_prompt_tokens": 2.0, "million_response_tokens": 10.0},
        questions_per_month=1000,
        updates_per_month=2,
    )
    work = Work(seconds_each=0.5, prompt_tokens=500, response_tokens=20, preparing_seconds=1000)
    cost = cost_of(work, 0.5, priced)
    assert cost.answering_per_1000 == pytest.approx(1.0 + 0.2)
    assert cost.preparing == pytest.approx(1.0)
    assert cost.per_1000 == pytest.approx(1.2 + 2.0) and cost.per_correct == pytest.approx(
        3.2 / 500
    )
    by_hour = cost_of(work, 0.0, section(prices={"hour": 3.6}))
    assert by_hour.answering_per_1000 == pytest.approx(0.5) and by_hour.per_correct is None
    trained, prompted = Cost(1.0, 10.0, 0, None), Cost(3.0, 0.0, 0, None)
    assert break_even(trained, prompted, 1.0) == pytest.approx(5000)
    assert break_even(Cost(4.0, 10.0, 0, None), prompted, 1.0) is None


def test_the_picture_has_a_dot_and_an_interval_for_each_arm() -> None:
    row = {"accuracy": 0.5, "interval": [0.4, 0.6], "excluded_from_verdict": False}
    arms = {
        name: {**row, "cost_per_1000": cost}
        for name, cost in (("base", 0.0), ("rag", 2.0), ("<sft>", 90.0))
    }
    picture = matrix(arms, "rag", "$")
    assert picture.count("<circle") == 3 and picture.count('class="whisker"') == 3
    assert "&lt;sft&gt;" in picture and 'class="chosen"' in picture and "logarithmic" in picture


def test_a_recipe_may_decide_and_train_nothing(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "d", "base_model": "builtin:freight-base", "decide": {"questions": "q.jsonl"}}
    )
    assert recipe.training_sections == {} and recipe.decide is not None
    kept = Recipe.model_validate(json.loads(recipe.model_dump_json()))
    assert kept == recipe


def stage(name: str, home: Path, params: dict[str, Any], **inputs: Path) -> tuple[Path, Any]:
    """Runs a stage that needs no model, in this process; returns its folder and its result."""
    refs = {
        role: InputRef(stage=role, key=role, path=str(path), digest=digest_directory(path))
        for role, path in inputs.items()
    }
    spec = StageSpec(stage=name, home=str(home), params=params, seed=0, inputs=refs)
    work = home / spec.key
    events = EventWriter(work / "events.jsonl", 1)
    result = {"index": index.run, "questions": questions.run}[name](spec, work, events)
    events.close()
    return work / "output", result


def asked_of(
    home: Path, documents: str, asked: list[dict[str, Any]], **params: Any
) -> tuple[Path, Any]:
    """The stages `index` and `questions` on one document."""
    home.mkdir()
    (home / "page.md").write_text(documents)
    (home / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    told = {"retrieval": {}, "documents": [{"source": f"{home}/page.md"}], "sources": {}}
    indexed, _ = stage("index", home, told)
    source = [{"source": f"{home}/q.jsonl"}]
    given = {"questions": source, "demonstrations": [], "sources": {}, "abstention": ABSTENTION}
    return stage("questions", home, {**given, "verdict_share": 0.5, **params}, index=indexed)


ROWS = [
    {"prompt": f"What does room {n} of the old house hold?", "target": f"thing {n}"}
    for n in range(60)
]


def test_a_document_that_holds_a_question_costs_the_verdict_that_question_and_is_counted(
    tmp_path: Path,
) -> None:
    clean, before = asked_of(tmp_path / "clean", "The house has many rooms.", ROWS)
    verdict = [json.loads(line) for line in (clean / "verdict.jsonl").read_text().splitlines()]
    text = f"# FAQ\n\nQuestion: {verdict[0]['messages'][0]['content']}\nThing."
    leaky, after = asked_of(tmp_path / "leaky", text, ROWS)
    assert after.metrics["leaked"] == 1 and before.metrics["leaked"] == 0
    assert after.rows.balanced and after.rows.dropped == {"leaked": 1}
    assert after.metrics["verdict"] == before.metrics["verdict"] - 1
    for part in ("training", "choice"):  # nothing else moves, so nothing else runs again
        assert (clean / f"{part}.jsonl").read_bytes() == (leaky / f"{part}.jsonl").read_bytes()


def test_a_demonstration_that_asks_what_is_judged_is_not_trained_on(tmp_path: Path) -> None:
    shown = tmp_path / "shown.jsonl"
    turns = [
        {"prompt": ROWS[0]["prompt"], "completion": "thing 0"},
        {"prompt": "Hello?", "completion": "Yes."},
    ]
    shown.write_text("".join(json.dumps(row) + "\n" for row in turns))
    parts, result = asked_of(
        tmp_path / "home", "A house.", ROWS, demonstrations=[{"source": str(shown)}]
    )
    training = [json.loads(line) for line in (parts / "training.jsonl").read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in training] == ["Hello?"]
    assert result.details["dropped_demonstrations"] == {"judged": 1}
    assert result.metrics["choice"] + result.metrics["verdict"] == 60


def test_too_few_questions_say_which_part_has_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave none for the"):
        asked_of(tmp_path / "home", "A house.", ROWS[:1])
