from __future__ import annotations

import json
from typing import Any

import pytest

from alignflow.data.feedback import Preference, Rating, observation_of, pair_ids, preferences_of
from alignflow.data.rejected import BadRow

USER = {"role": "user", "content": "q"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
DIALOGUE = "\n\nHuman: q\n\nAssistant:"


def pairs(fields: dict[str, Any]) -> list[Preference]:
    found = preferences_of(fields)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"prompt": " q\n", "chosen": "yes ", "rejected": "\tno"},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": "q", "chosen": [YES], "rejected": [NO]},
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": DIALOGUE + " yes", "rejected": DIALOGUE + " no"},
        {"prompt": DIALOGUE, "chosen": " yes", "rejected": " no"},
        {
            "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}],
            "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "no"}],
        },
        {"prompt": "q", "responses": ["no", "yes"], "scores": [1, 2.5]},
        {"prompt": "q", "responses": ["no", "yes"], "ranks": [2, 1]},
        {
            "prompt": [USER],
            "completions": [{"response": "no", "score": 1}, {"response": "yes", "score": 3}],
        },
        {"prompt": "q", "responses": [{"content": "yes", "rank": 1}, {"content": "no", "rank": 2}]},
    ],
)
def test_every_form_of_a_pair_is_one_row_with_one_id(fields: dict[str, Any]) -> None:
    (pair,) = pairs(fields)
    (plain,) = pairs({"prompt": "q", "chosen": "yes", "rejected": "no"})
    assert pair == plain and pair_ids(pair) == pair_ids(plain)
    assert json.loads(pair.prompt) == [USER]


def test_a_dialogue_keeps_its_turns_in_the_prompt() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    (pair,) = pairs({"chosen": start + " yes", "rejected": start + " no"})
    assert [turn["content"] for turn in json.loads(pair.prompt)] == ["a", "b", "c"]


def test_ranked_responses_are_expanded_to_every_two_that_differ() -> None:
    found = pairs({"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [3, 1, 1, 2]})
    said = {(pair.chosen, pair.rejected) for pair in found}
    assert said == {("a", "b"), ("a", "c"), ("a", "d"), ("d", "b"), ("d", "c")}


def test_unicode_that_looks_the_same_is_the_same_row() -> None:
    composed = {"prompt": "\u00fcx", "chosen": "\u00fc", "rejected": "x"}
    decomposed = {"prompt": "u\u0308x", "chosen": "u\u0308", "rejected": "x"}
    assert pairs(composed) == pairs(decomposed)


def test_the_contrary_pair_has_the_opposite_id() -> None:
    one = pairs({"prompt": "q", "chosen": "yes", "rejected": "no"})[0]
    two = pairs({"prompt": "q", "chosen": "no", "rejected": "yes"})[0]
    assert pair_ids(one) == pair_ids(two)[::-1]
    assert one != two


def test_a_liked_completion_is_a_rating() -> None:
    rating = preferences_of({"prompt": [USER], "completion": [YES], "label": True})
    assert isinstance(rating, Rating) and rating.liked and rating.completion == "yes"


def test_equal_observations_are_one_vote_and_others_are_more() -> None:
    anonymous = observation_of({"prompt": "q"})
    ann = observation_of({"annotator": "ann", "timestamp": 3})
    assert anonymous.voter != ann.voter == observation_of({"annotator": "ann", "time": "3"}).voter
    assert observation_of({"annotator": "bob", "time": "3"}).voter != ann.voter


GOOD = {"prompt": "q", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "missing:chosen"),
        ({**GOOD, "chosen": None}, "missing:chosen"),
        ({**GOOD, "rejected": None}, "missing:rejected"),
        ({**GOOD, "prompt": None}, "missing:prompt"),
        ({"chosen": "yes", "rejected": "no"}, "missing:prompt"),
        ({**GOOD, "prompt": 3}, "type:prompt:int"),
        ({**GOOD, "chosen": {}, "rejected": {}}, "type:chosen:dict"),
        ({**GOOD, "chosen": [YES]}, "mixed_format"),
        ({**GOOD, "prompt": ""}, "empty:prompt"),
        ({**GOOD, "chosen": " \n"}, "empty:chosen"),
        ({**GOOD, "rejected": "yes "}, "chosen_equals_rejected"),
        ({**GOOD, "chosen": "\u00fc", "rejected": "u\u0308"}, "chosen_equals_rejected"),
        ({**GOOD, "chosen": "a\0b"}, "nul"),
        ({**GOOD, "chosen": "a\ud800"}, "surrogate"),
        ({**GOOD, "prompt": [USER, YES]}, "role_order:assistant_last"),
        ({**GOOD, "prompt": [USER, USER]}, "role_order:repeats"),
        (
            {**GOOD, "prompt": [USER, {"role": "system", "content": "s"}]},
            "role_order:system_not_first",
        ),
        ({**GOOD, "prompt": [{"role": "system", "content": "s"}]}, "role_order:no_user"),
        ({**GOOD, "prompt": [{"role": "robot", "content": "s"}]}, "role_order:unknown"),
        ({**GOOD, "prompt": [{"role": ["user"], "content": "s"}]}, "role_order:unknown"),
        ({**GOOD, "prompt": [{"role": "user", "content": None}]}, "type:prompt:null"),
        ({**GOOD, "prompt": [{**USER, "tool_calls": [1]}]}, "unsupported:tool_calls"),
        ({**GOOD, "chosen": [{**YES, "tool_calls": [1]}], "rejected": [NO]}, "type:tool_calls:int"),
        ({**GOOD, "split": "test"}, "split:held_out"),
        ({**GOOD, "split": "tset"}, "unknown_split"),
        ({**GOOD, "images": ["a.png"]}, "unsupported:images"),
        ({**GOOD, "input": "x"}, "unread_column"),
        ({"chosen": [USER, YES, USER, YES], "rejected": [USER, NO]}, "no_response"),
        ({"prompt": "q", "responses": ["a", "b"]}, "missing:scores"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "ranking_length"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "no_preference"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, "x"]}, "type:scores:str"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, float("inf")]}, "non_finite"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 10**400]}, "non_finite"),
        ({"prompt": "q", "responses": ["a"] * 33, "scores": [1] * 33}, "too_many_responses"),
        ({"prompt": "q", "completion": "a"}, "missing:label"),
        ({"prompt": "q", "completion": "a", "label": "good"}, "type:label:str"),
    ],
)
def test_a_bad_row_says_what_is_wrong_with_it(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        preferences_of(fields)
    assert caught.value.reason == reason
