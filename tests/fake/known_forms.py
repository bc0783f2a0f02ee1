"""A row of every form, and the conversation that it is."""

from __future__ import annotations

import json
from typing import Any

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Where is truck 7?"}
ANSWER, WORSE = ({"role": "assistant", "content": text} for text in ("In Lyon.", "Who knows."))
NEXT = {"role": "user", "content": "And 8?"}
LAST = {"role": "assistant", "content": "In Ulm."}
FUNCTION = {
    "name": "locate",
    "description": "Finds a truck.",
    "parameters": {"type": "object", "properties": {"truck": {"type": "integer"}}},
}
TOOL = {"type": "function", "function": FUNCTION}
TOLD = {"name": "locate", "arguments": {"truck": 7}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": TOLD}]}
OTHER = {"type": "function", "function": {"name": "locate", "arguments": {"truck": 8}}}
RESULT = {"role": "tool", "content": '{"city": "Lyon"}'}
CALLED = {"name": "locate", "arguments": '{"truck": 7}'}
ONE, TWO = [ASKED, ANSWER], [ASKED, ANSWER, NEXT, LAST]
WITH_CALL = [ASKED, CALL, RESULT, ANSWER]


def share(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": said} for speaker, said in turns]


HUMAN, GPT = ("human", ASKED["content"]), ("gpt", ANSWER["content"])
GPT_CALL = ("function_call", json.dumps(TOLD))
OBSERVED = ("observation", RESULT["content"])
TREE = {
    "message_tree_id": "1",
    "tree_state": "ready_for_export",
    "prompt": {
        "role": "prompter",
        "text": ASKED["content"],
        "replies": [
            {"role": "assistant", "text": WORSE["content"], "rank": 1, "replies": []},
            {
                "role": "assistant",
                "text": ANSWER["content"],
                "rank": 0,
                "replies": [{"role": "prompter", "text": NEXT["content"], "replies": []}],
            },
        ],
    },
}
DEMONSTRATIONS: list[tuple[str, dict[str, Any], list[Any], bool]] = [
    ("prompt-completion", {"prompt": "Where is truck 7?", "completion": "In Lyon."}, ONE, False),
    ("prompt-completion", {"prompt": [ASKED], "completion": [ANSWER]}, ONE, False),
    (
        "prompt-completion",
        {"system": "Be brief.", "prompt": "Where is truck 7?", "completion": "In Lyon."},
        [SYSTEM, *ONE],
        False,
    ),
    ("messages", {"messages": TWO}, TWO, False),
    ("messages", {"messages": json.dumps(TWO)}, TWO, False),
    ("messages", {"messages": [{"role": "system", "content": " "}, *ONE]}, ONE, False),
    ("messages", {"messages": ONE, "system": "Be brief."}, [SYSTEM, *ONE], False),
    (
        "messages",
        {"messages": [{"role": "developer", "content": "Be brief."}, *ONE]},
        [SYSTEM, *ONE],
        False,
    ),
    (
        "messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Where is "},
                        {"type": "text", "text": "truck 7?"},
                    ],
                },
                ANSWER,
            ]
        },
        ONE,
        False,
    ),
    (
        "messages",
        {
            "tools": [TOOL],
            "messages": [
                ASKED,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": CALLED}],
                },
                RESULT,
                ANSWER,
            ],
        },
        WITH_CALL,
        True,
    ),
    (
        "messages",
        {
            "functions": [FUNCTION],
            "messages": [
                ASKED,
                {"role": "assistant", "content": None, "function_call": CALLED},
                {"role": "function", "name": "locate", "content": RESULT["content"]},
                ANSWER,
            ],
        },
        WITH_CALL,
        True,
    ),
    ("messages", {"tools": json.dumps([FUNCTION]), "messages": [ASKED, CALL]}, WITH_CALL[:2], True),
    ("alpaca", {"instruction": "Where is truck 7?", "input": "", "output": "In Lyon."}, ONE, False),
    (
        "alpaca",
        {
            "system": "Be brief.",
            "instruction": "And",
            "input": "8?",
            "output": "In Ulm.",
            "history": [["Where is truck 7?", "In Lyon."]],
            "text": "rendered by others",
        },
        [SYSTEM, ASKED, ANSWER, {"role": "user", "content": "And\n8?"}, LAST],
        False,
    ),
    (
        "dolly",
        {
            "instruction": "Where is",
            "context": "truck 7?",
            "response": "In Lyon.",
            "category": "open_qa",
        },
        [{"role": "user", "content": "Where is\ntruck 7?"}, ANSWER],
        False,
    ),
    ("sharegpt", {"conversations": share(HUMAN, GPT)}, ONE, False),
    (
        "sharegpt",
        {"conversations": share(("user", HUMAN[1]), ("assistant", GPT[1]))},
        ONE,
        False,
    ),
    (
        "sharegpt",
        {"conversations": share(("system", "Be brief."), HUMAN, GPT)},
        [SYSTEM, *ONE],
        False,
    ),
    (
        "sharegpt",
        {
            "conversations": share(HUMAN, GPT_CALL, OBSERVED, GPT),
            "tools": json.dumps([FUNCTION]),
        },
        WITH_CALL,
        True,
    ),
    (
        "swift",
        {
            "system": "Be brief.",
            "query": "And 8?",
            "response": "In Ulm.",
            "history": [["Where is truck 7?", "In Lyon."]],
        },
        [SYSTEM, *TWO],
        False,
    ),
    ("oasst", TREE, ONE, False),
    (
        "langfuse",
        {"input": {"messages": [ASKED]}, "expectedOutput": "In Lyon.", "id": "1"},
        ONE,
        False,
    ),
    (
        "langsmith",
        {"inputs": {"question": ASKED["content"]}, "outputs": {"answer": "In Lyon."}},
        ONE,
        False,
    ),
    (
        "langsmith",
        {
            "inputs": {
                "messages": [
                    [
                        {
                            "lc": 1,
                            "type": "constructor",
                            "id": ["langchain", "schema", "messages", "HumanMessage"],
                            "kwargs": {"content": ASKED["content"], "type": "human"},
                        }
                    ]
                ]
            },
            "outputs": {
                "generations": [
                    [
                        {
                            "text": "In Lyon.",
                            "message": {
                                "lc": 1,
                                "id": ["langchain", "schema", "messages", "AIMessage"],
                                "kwargs": {"content": "In Lyon.", "type": "ai"},
                            },
                        }
                    ]
                ]
            },
        },
        ONE,
        False,
    ),
]


def pair(**more: Any) -> dict[str, Any]:
    return {"chosen": "In Lyon.", "rejected": "Who knows.", **more}


RECORD = {
    "prompt": ASKED["content"],
    "response-1": WORSE["content"],
    "response-2": ANSWER["content"],
}
RATED = {"response-1": 2, "response-2": 5}
ANNOTATED = {
    **{"id": 1, "annotator": 3, "annotation_id": 9, "lead_time": 4.5},
    **{"created_at": "2026-01-01T10:00:00Z", "updated_at": "2026-01-01T10:00:00Z"},
}
PAIRS: list[tuple[str, dict[str, Any], list[Any], bool]] = [
    ("pairs", pair(prompt="Where is truck 7?"), [ASKED], False),
    ("pairs", pair(prompt="Where is truck 7?\n"), [{**ASKED, "content": "Where is truck 7?\n"}], 0),
    ("pairs", pair(prompt="Where is truck 7?", system="Be brief."), [SYSTEM, ASKED], False),
    ("pairs", {"chosen": ONE, "rejected": [ASKED, WORSE]}, [ASKED], False),
    (
        "pairs",
        {"prompt": ASKED["content"], "chosen": [SYSTEM, *ONE], "rejected": [SYSTEM, ASKED, WORSE]},
        [SYSTEM, ASKED],
        False,
    ),
    (
        "pairs",
        {"chosen": json.dumps(ONE), "rejected": json.dumps([ASKED, WORSE])},
        [ASKED],
        False,
    ),
    (
        "ranked",
        {"prompt": [ASKED], "responses": ["Who knows.", "In Lyon."], "scores": [0.1, 0.9]},
        [ASKED],
        False,
    ),
    (
        "sharegpt",
        {
            "conversations": share(HUMAN),
            "chosen": {"from": "gpt", "value": "In Lyon."},
            "rejected": {"from": "gpt", "value": "Who knows."},
        },
        [ASKED],
        False,
    ),
    (
        "alpaca",
        pair(instruction="Where is", input="truck 7?"),
        [{"role": "user", "content": "Where is\ntruck 7?"}],
        False,
    ),
    (
        "openai",
        {
            "input": {"messages": [ASKED], "tools": [TOOL], "parallel_tool_calls": True},
            "preferred_output": [ANSWER],
            "non_preferred_output": [WORSE],
        },
        [ASKED],
        True,
    ),
    (
        "swift",
        {"query": ASKED["content"], "response": "In Lyon.", "rejected_response": "Who knows."},
        [ASKED],
        False,
    ),
    ("swift", {"messages": ONE, "rejected_response": "Who knows."}, [ASKED], False),
    ("swift", {"messages": ONE, "rejected_messages": [ASKED, WORSE]}, [ASKED], False),
    (
        "ultrafeedback",
        {
            "source": "x",
            "instruction": ASKED["content"],
            "models": ["a", "b"],
            "completions": [
                {"response": "Who knows.", "overall_score": 2.0, "annotations": {}},
                {"response": "In Lyon.", "overall_score": 8.5, "annotations": {}},
            ],
        },
        [ASKED],
        False,
    ),
    (
        "helpsteer",
        {
            "prompt": ASKED["content"],
            "response": ["Who knows.", "In Lyon."],
            "helpfulness": [1, 4],
            "verbosity": 2,
        },
        [ASKED],
        False,
    ),
    (
        "helpsteer",
        {
            "split": "train",
            "prompt": f"{ASKED['content']}\n<extra_id_1>Assistant\nIn Lyon.\n<extra_id_1>User\nAnd 8?",
            "response_1": "Who knows.",
            "response_2": "In Lyon.",
            "preference_strength": 2,
        },
        None,
        False,
    ),
    (
        "shp",
        {
            "history": ASKED["content"],
            "human_ref_A": "Who knows.",
            "human_ref_B": "In Lyon.",
            "labels": 0,
            "score_ratio": 3.0,
        },
        [ASKED],
        False,
    ),
    ("oasst", TREE, [ASKED], False),
    (
        "argilla",
        {
            "id": "1",
            "fields": RECORD,
            "responses": {"preference": [{"value": "response-2", "user_id": "u"}]},
        },
        [ASKED],
        False,
    ),
    (
        "argilla",
        {
            "fields": RECORD,
            "responses": {
                "order": [
                    {
                        "value": [
                            {"value": "response-2", "rank": 1},
                            {"value": "response-1", "rank": 2},
                        ],
                        "user_id": "u",
                    }
                ]
            },
        },
        [ASKED],
        False,
    ),
    (
        "argilla",
        {
            **{"id": "1", "status": "completed", "_server_id": "s", **RECORD},
            "order.responses": [["response-2", "response-1"]],
            "order.responses.users": ["u"],
            "order.responses.status": ["submitted"],
            "order.suggestion": None,
        },
        [ASKED],
        False,
    ),
    (
        "argilla",
        {
            **RECORD,
            "preference.responses": ["response-2", "response-1"],
            "preference.responses.users": ["u", "v"],
            "preference.responses.status": ["submitted", "discarded"],
            "topic": "trucks",
            "comment.responses": ["it's fine"],
            "comment.suggestion.agent": "x",
        },
        [ASKED],
        False,
    ),
    (
        "argilla",  # as `datasets` writes a table
        {
            **RECORD,
            "response-1-rating.responses": "[1 5]",
            "response-1-rating.responses.users": "['u' 'v']",
            "response-1-rating.responses.status": "['submitted' 'draft']",
            "response-2-rating.responses": "[4.0]",
            "response-2-rating.responses.users": "['u']",
            "response-2-rating.responses.status": "['submitted']",
        },
        [ASKED],
        False,
    ),
    ("label-studio", {**RECORD, "preference": "response-2", **ANNOTATED}, [ASKED], False),
    ("label-studio", {**RECORD, "pw": [{"selected": "right"}], **ANNOTATED}, [ASKED], False),
    ("label-studio", {**RECORD, "pw": '[{"selected": "right"}]', **ANNOTATED}, [ASKED], False),
    (
        "label-studio",
        {
            **RECORD,
            **{f"rate-{name}": [{"rating": score}] for name, score in RATED.items()},
            **ANNOTATED,
        },
        [ASKED],
        False,
    ),
    (
        "label-studio",
        {
            "id": 1,
            "data": RECORD,
            "annotations": [
                {
                    "was_cancelled": False,
                    "result": [
                        {
                            "from_name": "pw",
                            "to_name": "response-1,response-2",
                            "type": "pairwise",
                            "value": {"selected": "right"},
                        }
                    ],
                }
            ],
        },
        [ASKED],
        False,
    ),
]
RATINGS: list[tuple[str, dict[str, Any], bool]] = [
    ("ratings", {"prompt": ASKED["content"], "completion": "In Lyon.", "label": True}, True),
    ("ratings", {"prompt": ASKED["content"], "completion": "In Lyon.", "label": "False"}, False),
    ("ratings", {"prompt": ASKED["content"], "completion": "In Lyon.", "label": "1"}, True),
    ("rated-conversation", {"messages": ONE, "label": False}, False),
    ("rated-conversation", {"conversations": share(HUMAN, GPT), "kto_tag": True}, True),
    ("alpaca", {"instruction": ASKED["content"], "output": "In Lyon.", "kto_tag": True}, True),
    ("swift", {"query": ASKED["content"], "response": "In Lyon.", "label": True}, True),
    (
        "langfuse",
        {
            "input": [ASKED],
            "output": ANSWER,
            "scores": [
                {"name": "thumb", "dataType": "BOOLEAN", "value": 1.0, "stringValue": "True"}
            ],
        },
        True,
    ),
    (
        "langsmith",
        {
            "inputs": {"messages": [ASKED]},
            "outputs": {"choices": [{"message": ANSWER}]},
            "feedback_stats": {"user_score": {"n": 1, "avg": 0.0}},
        },
        False,
    ),
]
