"""Every form of a row: what is trained on, token by token, is what Transformers renders of the conversation."""

from __future__ import annotations

import json
from typing import Any

import chat_templates
import pytest
from known_forms import (
    ANNOTATED,
    ANSWER,
    ASKED,
    CALL,
    DEMONSTRATIONS,
    LAST,
    NEXT,
    ONE,
    OTHER,
    PAIRS,
    RATINGS,
    RECORD,
    SYSTEM,
    TOLD,
    TOOL,
    TWO,
    WORSE,
)

from alignflow.data.asked import Asked
from alignflow.data.feedback import Rating, preferences_of, prompt_of, response_of
from alignflow.data.file_rows import RawRow
from alignflow.data.forms import form_names, recognised
from alignflow.data.rejected import BadRow
from alignflow.data.rows import Outcome, Rules, outcome_of
from alignflow.data.template import ChatTemplate
from alignflow.data.tokens import Encoder

pytestmark = pytest.mark.slow  # Transformers is the reference


class Case:
    """Qwen2.5's template, which knows tools, and a tokenizer of its own."""

    def __init__(self) -> None:
        source = chat_templates.source("qwen2_5")
        self.tokenizer = chat_templates.tokenizer(source)
        template = ChatTemplate(source, self.tokenizer.special_tokens_map)
        self.encoder = Encoder(self.tokenizer, template)

    def ids(self, messages: list[Any], has_tools: bool = False, **options: Any) -> list[int]:
        """Transformers' own, up to the end of the last turn."""
        ids = self.tokenizer.apply_chat_template(
            messages,
            tools=[TOOL] if has_tools else None,
            tokenize=True,
            return_dict=False,
            **options,
        )
        return ids if options else ids[: len(ids) - len(self.tokenizer.encode("\n"))]

    def outcome(self, part: str, row: dict[str, Any], form: str | None = None) -> Outcome:
        rules = Rules(self.encoder, {}, 0.0, Asked.of([]), frozenset())
        return outcome_of(part, RawRow("a:1", json.loads(json.dumps(row)), form=form), rules)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize(("form", "row", "messages", "has_tools"), DEMONSTRATIONS)
def test_a_demonstration_of_every_form_has_loss_on_its_responses(
    case: Case, form: str, row: dict[str, Any], messages: list[Any], has_tools: bool
) -> None:
    outcome = case.outcome("sft", row)
    assert (outcome.dropped, outcome.form) == (None, form), outcome.message
    (columns,) = outcome.columns
    assert columns["input_ids"] == case.ids(messages, has_tools)
    mask = []
    for place, turn in enumerate(messages):
        if turn["role"] == "assistant":
            before = case.ids(messages[:place], has_tools, add_generation_prompt=True)
            mask += [0] * (len(before) - len(mask))
            mask += [1] * (len(case.ids(messages[: place + 1], has_tools)) - len(mask))
    assert columns["completion_mask"] == mask


@pytest.mark.parametrize(("form", "row", "messages", "has_tools"), DEMONSTRATIONS)
def test_a_demonstration_of_every_form_asks_its_last_response_in_an_evaluation(
    case: Case, form: str, row: dict[str, Any], messages: list[Any], has_tools: bool
) -> None:
    (columns,) = case.outcome("evaluation", row).columns
    wanted = case.ids(messages[:-1], has_tools, add_generation_prompt=True)
    assert columns["prompt_ids"] == wanted
    calls = messages[-1].get("tool_calls")
    target = json.loads(columns["target"]) if calls else columns["target"]
    assert target == (calls[0]["function"] if calls else messages[-1]["content"])
    (asked,) = case.outcome("prompts", row).columns
    assert asked["prompt_ids"] == wanted


@pytest.mark.parametrize(("form", "row", "prompt", "has_tools"), PAIRS)
def test_a_pair_of_every_form_is_its_prompt_and_two_responses(
    case: Case, form: str, row: dict[str, Any], prompt: list[Any] | None, has_tools: bool
) -> None:
    prompt = [ASKED, ANSWER, NEXT] if prompt is None else prompt
    outcome = case.outcome("preferences", row)
    assert (outcome.dropped, outcome.form) == (None, form), outcome.message
    (columns,) = outcome.columns
    if form == "helpsteer" and len(prompt) > 1:  # the marks of turns leave line breaks
        prompt = [{**turn, "content": turn["content"] + "\n"} for turn in prompt[:-1]] + [NEXT]
    asked = case.ids(prompt, has_tools, add_generation_prompt=True)
    assert columns["prompt_ids"] == asked
    for name, answer in (("chosen_ids", ANSWER), ("rejected_ids", WORSE)):
        assert [*asked, *columns[name]] == case.ids([*prompt, answer], has_tools)


@pytest.mark.parametrize(("form", "row", "prompt", "has_tools"), PAIRS)
def test_the_ledger_takes_a_pair_of_every_form(
    form: str, row: dict[str, Any], prompt: list[Any] | None, has_tools: bool
) -> None:
    said = preferences_of(row)
    assert not isinstance(said, Rating)
    (taken,) = said
    messages, tools = prompt_of(taken.prompt)
    wanted = [ASKED, ANSWER, NEXT] if prompt is None else prompt
    assert messages == [{**turn, "content": turn["content"].strip()} for turn in wanted]
    assert (tools == [TOOL]) if has_tools else tools is None
    assert (taken.chosen, taken.rejected) == ("In Lyon.", "Who knows.")


@pytest.mark.parametrize(("form", "row", "liked"), RATINGS)
def test_a_rating_of_every_form_is_one_response_and_whether_it_was_liked(
    case: Case, form: str, row: dict[str, Any], liked: bool
) -> None:
    outcome = case.outcome("ratings", row)
    assert (outcome.dropped, outcome.form) == (None, form), outcome.message
    (columns,) = outcome.columns
    assert [*columns["prompt_ids"], *columns["completion_ids"]] == case.ids(ONE)
    assert columns["label"] is liked
    said = preferences_of(row)
    assert isinstance(said, Rating) and said.liked is liked and said.completion == "In Lyon."


def test_calls_are_kept_in_pairs_of_files_and_of_the_ledger(case: Case) -> None:
    other = {"role": "assistant", "content": "", "tool_calls": [OTHER]}
    row = {"prompt": [ASKED], "chosen": [CALL], "rejected": [other], "tools": [TOOL]}
    (columns,) = case.outcome("preferences", row).columns
    asked = case.ids([ASKED], True, add_generation_prompt=True)
    assert [*asked, *columns["chosen_ids"]] == case.ids([ASKED, CALL], True)
    assert [*asked, *columns["rejected_ids"]] == case.ids([ASKED, other], True)
    assert json.loads(columns["chosen"]) == TOLD
    said = preferences_of(row)
    assert not isinstance(said, Rating)
    assert response_of(said[0].chosen) == CALL and response_of(said[0].rejected) == other
    assert prompt_of(said[0].prompt) == ([ASKED], [TOOL])


def test_several_ranks_are_several_pairs(case: Case) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    said = [(c["chosen"], c["rejected"]) for c in case.outcome("preferences", row).columns]
    assert said == [("a", "b"), ("a", "c"), ("b", "c")]


def test_a_message_of_weight_0_is_context_without_loss(case: Case) -> None:
    wrong = {"role": "assistant", "content": "WRONG", "weight": 0}
    outcome = case.outcome("sft", {"messages": [ASKED, wrong, NEXT, {**LAST, "weight": 1}]})
    (columns,) = outcome.columns
    pairs = zip(columns["input_ids"], columns["completion_mask"], strict=True)
    assert case.tokenizer.decode([token for token, loss in pairs if loss]) == "In Ulm.<|im_end|>"
    assert "WRONG" in case.tokenizer.decode(columns["input_ids"])
    assert outcome.responses_without_loss == 1
    assert case.outcome("sft", {"messages": [ASKED, wrong]}).dropped == "no_response"


@pytest.mark.parametrize(
    ("part", "row", "reason", "text"),
    [
        ("sft", {"messages": ONE, "images": ["a.jpg"]}, "unsupported:images", "text alone"),
        (
            "sft",
            {"messages": [{**ASKED, "content": "<image>Who?"}, ANSWER]},
            "unsupported:images",
            "",
        ),
        (
            "sft",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
                    ANSWER,
                ]
            },
            "unsupported:image_url",
            "a part that is 'image_url'",
        ),
        (
            "sft",
            {"prompt": "q", "completion": "a", "input": "read me"},
            "unread_column",
            "has input, which the form prompt-completion does not read",
        ),
        (
            "sft",
            {"instruction": "q", "output": "a", "messages": ONE},
            "two_forms",
            "fits the forms messages, alpaca. Say which in the data source (`form: messages`",
        ),
        ("sft", {"messages": [{"role": "robot", "content": "x"}]}, "unknown_role", "'robot'"),
        ("sft", {"messages": [{"from": "bot", "value": "x"}]}, "unknown_role", "'bot'"),
        ("sft", {"prompt": "q", "completion": None}, "missing_columns", "'completion': null"),
        ("sft", {"prompt": "q", "completion": "a", "split": "tset"}, "unknown_split", "'tset'"),
        ("sft", {"messages": [ASKED, {**ANSWER, "weight": 0.5}]}, "weight", "0.5"),
        (
            "sft",
            {
                "message_id": "1",
                "parent_id": None,
                "message_tree_id": "1",
                "text": "x",
                "role": "y",
            },
            "no_tree",
            "file of trees",
        ),
        (
            "preferences",
            {"chosen": [*TWO], "rejected": [ASKED, WORSE, NEXT, LAST]},
            "no_response",
            "chosen goes on for 3 turns after the 1 of the prompt that both share",
        ),
        ("preferences", {"prompt": "q", "response": "a", "helpfulness": 3}, "no_neighbour", ""),
        (
            "preferences",
            {**RECORD, "context": "Trucks.", "p.responses": ["response-2"]},
            "unread_column",
            "has context beside prompt",
        ),
        (
            "preferences",
            {**RECORD, "order.responses": "[array(['response-2', 'response-1'], dtype=object)]"},
            "type:order.responses:str",
            "Export it as JSON",
        ),
        (
            "preferences",
            {"prompt": "q", "good": "a", "bad": "b", "note": "n", "p.responses": ["good"]},
            "missing:responses",
            "'good' is better than which of ['bad', 'good', 'note']",
        ),
        (
            "preferences",
            {"prompt": "q", "mine": "a", "other": "b", "pw": [{"selected": "left"}], **ANNOTATED},
            "missing:responses",
            "which of ['mine', 'other'] is left",
        ),
        ("preferences", {**RECORD, "note": [], **ANNOTATED}, "no_preference", "nobody has said"),
        (
            "preferences",
            {"prompt": "q", "chosen": "a", "rejected": "b", "pw": "chosen", **ANNOTATED},
            "two_forms",
            "form: pairs",
        ),
        (
            "sft",
            {"tools": [{"description": "x"}], "messages": ONE},
            "not_messages",
            "wanted a name",
        ),
        (
            "sft",
            {"system": "Be kind.", "messages": [SYSTEM, *ONE]},
            "two_systems",
            "different things",
        ),
        ("evaluation", {"prompt": "q", "target": "x", "split": "train"}, "training_split", ""),
    ],
)
def test_what_cannot_be_used_is_said(
    case: Case, part: str, row: dict[str, Any], reason: str, text: str
) -> None:
    outcome = case.outcome(part, row)
    assert outcome.dropped == reason and text in outcome.message, outcome


def test_the_recipe_decides_between_two_forms(case: Case) -> None:
    row = {"instruction": "Where is truck 7?", "output": "In Lyon.", "messages": TWO}
    (columns,) = case.outcome("sft", row, "alpaca").columns
    assert columns["input_ids"] == case.ids(ONE)
    assert case.outcome("sft", row, "sharegpt").dropped == "missing_columns"
    assert {"alpaca", "sharegpt", "messages", "openai"} <= {*form_names()}


def test_columns_that_were_not_read_are_known() -> None:
    row = {"instruction": "q", "output": "a", "id": 1, "topic": "x", "score": 3}
    assert recognised(row, "demonstration").unread == ("score", "topic")


@pytest.mark.parametrize(("split", "held_out"), [("train", False), ("validation", True)])
def test_a_row_says_its_split(case: Case, split: str, held_out: bool) -> None:
    row = {"prompt": "q", "completion": "a", "split": split}
    assert case.outcome("sft", row).held_out is held_out


def test_a_template_that_knows_no_tools_is_given_none() -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    template = ChatTemplate(source, {})
    with pytest.raises(BadRow, match="writes no tools"):
        template.render([ASKED], tools=[TOOL])
    with pytest.raises(BadRow, match="writes no tool calls"):
        template.render([ASKED, CALL])
