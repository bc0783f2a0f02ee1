"""Public preference data sets in the columns that they are published with.

How each one's ratings become pairs follows its card; docs/data.md has a line on each.
"""

from __future__ import annotations

from typing import Any

from alignflow.data.forms.form import Form, Row, listed, text_of
from alignflow.data.rejected import BadRow, kind
from alignflow.data.turns import Message

_STEER_TURN = "<extra_id_1>"
_STEER_ROLES = {"User": "user", "Assistant": "assistant"}


def _ultra_feedback(row: Row) -> list[Row]:
    """Every two completions whose overall scores differ."""
    return [{"prompt": row["instruction"], "responses": listed(row, "completions")}]


def _steer_prompt(text: str) -> list[Message]:
    """A prompt of HelpSteer2: the turns after the first begin with a mark and who speaks."""
    first, *later = text.split(_STEER_TURN)
    messages: list[Message] = [{"role": "user", "content": first}]
    for part in later:
        speaker, _, said = part.partition("\n")
        role = _STEER_ROLES.get(speaker.strip())
        if role is None:
            raise BadRow("role_order:unknown", f"role {speaker!r:.60} is unknown in the prompt")
        messages.append({"role": role, "content": said})
    return messages


def _help_steer(row: Row) -> list[Row]:
    """The two rows of a prompt, which `neighbours` has put together: the more helpful one is chosen."""
    answers, scores = listed(row, "response"), listed(row, "helpfulness")
    prompt = _steer_prompt(text_of(row, "prompt"))
    return [{"prompt": prompt, "responses": answers, "scores": scores}]


def _one_help_steer(row: Row) -> list[Row]:
    if isinstance(row["response"], list):
        return _help_steer(row)
    raise BadRow(
        "no_neighbour",
        "a row of HelpSteer2 needs the one beside it, with the same prompt and another response. Give "
        "both, one after the other, or the data set's preferences (response_1, response_2)",
    )


def _help_steer_preference(row: Row) -> list[Row]:
    """`preference_strength` is below 0 where the first response is better, above where the second."""
    strength = row["preference_strength"]
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise BadRow(
            f"type:preference_strength:{kind(strength)}",
            f"preference_strength is {strength!r:.60}, wanted a number",
        )
    if strength == 0:
        raise BadRow("no_preference", "preference_strength is 0: neither response is better")
    better, worse = ("response_1", "response_2") if strength < 0 else ("response_2", "response_1")
    prompt = _steer_prompt(text_of(row, "prompt"))
    return [{"prompt": prompt, "chosen": row[better], "rejected": row[worse]}]


def _shp(row: Row) -> list[Row]:
    """`labels` is 1 where the first reply is preferred, 0 where the second."""
    label = row["labels"]
    if isinstance(label, bool) or label not in (0, 1):
        raise BadRow(f"type:labels:{kind(label)}", f"labels is {label!r:.60}, wanted 0 or 1")
    better, worse = ("human_ref_A", "human_ref_B") if label else ("human_ref_B", "human_ref_A")
    return [{"prompt": row["history"], "chosen": row[better], "rejected": row[worse]}]


def _replies(node: Any) -> list[Any]:
    replies = node.get("replies") if isinstance(node, dict) else None
    return replies if isinstance(replies, list) else []


def _said(node: Any) -> Message:
    if not isinstance(node, dict):
        raise BadRow(f"type:replies:{kind(node)}", f"a message of the tree is {kind(node)}")
    return {"role": node.get("role"), "content": node.get("text")}


def _rank(node: Any) -> Any:
    rank = node.get("rank") if isinstance(node, dict) else None
    return rank if isinstance(rank, int) and not isinstance(rank, bool) else None


def _tree_pairs(row: Row) -> list[Row]:
    """Every two replies to one message of which one has the better rank, at every depth."""
    found: list[Row] = []
    waiting = [([], row["prompt"])]
    while waiting:
        before, node = waiting.pop()
        prompt = [*before, _said(node)]
        ranked = [reply for reply in _replies(node) if _rank(reply) is not None]
        if len(ranked) > 1 and len({_rank(reply) for reply in ranked}) > 1:
            texts = [[_said(reply)] for reply in ranked]
            ranks = [_rank(reply) for reply in ranked]
            found.append({"prompt": prompt, "responses": texts, "ranks": ranks})
        waiting += [(prompt, reply) for reply in reversed(_replies(node))]
    if not found:
        raise BadRow("no_preference", "no two replies of the tree have ranks that differ")
    return found


def _best_path(row: Row) -> list[Row]:
    """The conversation along the reply with the best rank, and the first question after it."""
    messages: list[Message] = []
    node = row["prompt"]
    while node is not None:
        messages.append(_said(node))
        replies = _replies(node)
        ranks = [rank for reply in replies if (rank := _rank(reply)) is not None]
        best = [reply for reply in replies if ranks and _rank(reply) == min(ranks)]
        node = next(iter(best or replies), None)
    if messages[-1]["role"] == "prompter":
        messages.pop()
    return [{"messages": messages}]


def _no_tree(_: Row) -> list[Row]:
    raise BadRow(
        "no_tree", "single messages of OASST say not what follows what; give its file of trees"
    )


_STEER_RATINGS = ("correctness", "coherence", "complexity", "verbosity")
_TREE = ("message_tree_id", "prompt")
_NO_TREE = Form("oasst", ("message_id", "parent_id|message_tree_id", "text", "role"), (), _no_tree)

PUBLISHED_PAIRS = (
    Form("ultrafeedback", ("instruction", "completions"), ("models", "source"), _ultra_feedback),
    Form("helpsteer", ("prompt", "response", "helpfulness"), _STEER_RATINGS, _one_help_steer),
    Form(
        "helpsteer",
        ("prompt", "response_1", "response_2", "preference_strength"),
        (),
        _help_steer_preference,
    ),
    Form("shp", ("history", "human_ref_A", "human_ref_B", "labels"), (), _shp),
    Form("oasst", _TREE, ("tree_state",), _tree_pairs),
    _NO_TREE,
)
PUBLISHED_DEMONSTRATIONS = (Form("oasst", _TREE, ("tree_state",), _best_path), _NO_TREE)
