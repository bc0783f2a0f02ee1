"""What is judged is never trained on: not as a later turn, and not within a text."""

from __future__ import annotations

import hashlib

import pytest

from alignflow.data.asked import Asked
from alignflow.data.file_rows import RawRow
from alignflow.data.rows import Rules, outcome_of
from alignflow.data.turns import same_question

LONG, SHORT = "Which trucks stood in Lyon on Monday, and why?", "List truck 3"
BY_DIGEST = hashlib.sha256(same_question("How many crates are red?").encode()).hexdigest()
ASKED = Asked.of([LONG, SHORT], [BY_DIGEST])


def user(*turns: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": turn} for turn in turns]


TALK = [*user("Hi."), {"role": "assistant", "content": "Hi."}, *user(LONG)]


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        (("Hello.", "list  TRUCK 3"), True),
        (("how many crates are red?",), True),
        (("Hello.", "Thanks.", LONG), True),
        (("List truck 33", "list"), False),
    ],
)
def test_any_user_turn_counts_and_no_part_of_one(turns: tuple[str, ...], found: bool) -> None:
    assert ASKED.among(user(*turns)) == found
    assert not ASKED.among([{"role": "assistant", "content": turn} for turn in turns])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"He said: {LONG} Nobody knew.", True),
        ("which TRUCKS stood in Lyon\non Monday - and why", True),
        ("Which trucks stood in Lyon on Mondays, and why?", False),
        ("Which trucks stood in Lyon on Monday?", False),
        ("Q: List truck 3\nA: It is red.", True),
        ("### Instruction:\nlist truck 3\n\n### Response:\nred", True),
        ("list truck 3", True),
        ("The command list truck 3 is often used.", False),  # too short to mean a question there
        ("Human: How many crates are red?\n\nAssistant: 3", True),
        ("How many crates are red? Three.", False),  # a digest is of a whole passage
        ("", False),
    ],
)
def test_a_text_is_searched_for_the_words_of_a_prompt_in_their_order(
    text: str, found: bool
) -> None:
    assert ASKED.within(text) == found


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("sft", {"text": f"Q: {LONG}\nA: No."}),
        ("pretrain", {"text": f"Q: {LONG}\nA: No."}),
        ("sft", {"messages": [*TALK, {"role": "assistant", "content": "No."}]}),
        ("preferences", {"prompt": TALK, "chosen": "a", "rejected": "b"}),
        ("prompts", {"prompt": TALK}),
    ],
)
def test_such_a_row_is_dropped_as_an_evaluation_prompt(
    part: str, fields: dict[str, object]
) -> None:
    rules = Rules(None, {}, 0.0, ASKED, frozenset())
    assert outcome_of(part, RawRow("a:1", fields), rules).dropped == "evaluation_prompt"
    rules = rules._replace(judged=Asked.of([]))
    assert outcome_of(part, RawRow("a:1", fields), rules).dropped is None
