"""Function calling: the metric, and rows with tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignflow.builtin import rows
from alignflow.data.demonstrations import prompt_to_answer
from alignflow.evaluation import compute_metric, load_metrics
from alignflow.recipe import EvaluationSection

CALL = {"name": "weather", "arguments": {"city": "Lyon", "days": 3}}
WANTED = json.dumps([CALL])


@pytest.fixture(scope="module")
def metric() -> Any:
    (loaded,) = load_metrics(EvaluationSection(metrics=["tool_call_accuracy"]))
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "target", "right"),
    [
        (f"<tool_call>{json.dumps(CALL)}</tool_call>", WANTED, True),
        (f"I look it up. <tool_call>\n{json.dumps(CALL)}\n</tool_call>", WANTED, True),
        (json.dumps(CALL), WANTED, True),
        (WANTED, WANTED, True),
        ('{"name": "weather", "parameters": {"days": 3, "city": "Lyon"}}', WANTED, True),
        (
            '{"name": "weather", "arguments": "{\\"days\\": 3, \\"city\\": \\"Lyon\\"}"}',
            WANTED,
            True,
        ),
        (json.dumps({"type": "function", "function": CALL}), WANTED, True),
        ('{"name": "weather", "arguments": {"city": "Lyon", "days": "3"}}', WANTED, False),
        ('{"name": "weather", "arguments": {"city": "Lyon"}}', WANTED, False),
        (f"<tool_call>{json.dumps(CALL)[:-3]}</tool_call>", WANTED, False),
        (f"Sure! {json.dumps(CALL)}", WANTED, False),
        (f"<tool_call>{json.dumps(CALL)}</tool_call>" * 2, WANTED, False),
        ("No tool can do that.", "That is not possible.", True),
        (json.dumps(CALL), "That is not possible.", False),
        (json.dumps(CALL) * 2, json.dumps([CALL, CALL]), True),
        (f"{json.dumps(CALL)} I hope this helps!", WANTED, False),
        ("It is sunny.", WANTED, False),
        ("It is sunny.", "[]", True),
        (json.dumps(CALL), "[]", False),
        ("[]", "[]", True),
        ('{"name": "weather"}', '[{"name": "weather", "arguments": ""}]', True),
        ('{"name": "weather", "arguments": "soon"}', WANTED, False),
        ('{"name": "weather", "arguments": [3]}', '{"name": "weather", "arguments": [3]}', False),
        ("{" * 5000, WANTED, False),
        ('["weather"]', '["weather"]', False),
    ],
)
def test_names_and_arguments_are_compared_as_json(
    metric: Any, response: str, target: str, right: bool
) -> None:
    assert compute_metric(metric, [response], [target]).figure == float(right)


@pytest.mark.slow
def test_the_order_of_calls_does_not_count(metric: Any) -> None:
    other = {"name": "time", "arguments": {}}
    said = "".join(f"<tool_call>{json.dumps(made)}</tool_call>" for made in (other, CALL))
    assert compute_metric(metric, [said], [json.dumps([CALL, other])]).figure == 1.0


def test_no_question_of_the_test_is_a_demonstration() -> None:
    asked = {row["prompt"][0]["content"] for row in rows("freight-tools-evaluation")}
    for name in ("freight-tools-sft", "freight-tools-preferences", "freight-tools-development"):
        assert not asked & {row["prompt"][0]["content"] for row in rows(name)}, name
    assert rows("freight-tools-sft", 1) == rows("freight-tools-sft", 1) != rows("freight-tools-sft")


def test_every_wanted_call_is_one_that_the_rows_tools_define() -> None:
    for row in rows("freight-tools-evaluation"):
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        for call in json.loads(row["target"]):
            known = tools[call["name"]]["properties"]
            for name, value in call["arguments"].items():
                assert value in known[name].get("enum", [value])


@pytest.mark.parametrize("said", ["", "I look it up."])
def test_the_target_of_a_response_that_calls_tools_is_its_calls(said: str) -> None:
    turns = [
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": said,
            "tool_calls": [{"type": "function", "function": CALL}],
        },
    ]
    assert prompt_to_answer({"messages": turns}, wants_target=True).target == json.dumps(CALL)
