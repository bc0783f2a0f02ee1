"""Template, training and generation agree, on templates that models are published with."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import chat_templates
import pytest

from alignflow.checking.template import probe, template_findings
from alignflow.data.base import save_spoken, spoken
from alignflow.data.contract import ResponseContract, contract_of
from alignflow.data.demonstrations import Demonstration
from alignflow.data.template import ChatTemplate, TemplateRejects, in_force
from alignflow.data.tokens import Encoder, contract_of_tokenizer, special_of
from alignflow.evaluation.metrics.tool_call_accuracy import agree
from alignflow.models.generate import answers
from alignflow.recipe import ModelSource

pytestmark = pytest.mark.slow  # every published template, in ours and in Transformers' renderer

DATE = datetime.date(2026, 1, 31)
ASKED = [{"role": "user", "content": "What is 2+2?"}]
GOLD = "It is 4, of course."
ONE = [*ASKED, {"role": "assistant", "content": GOLD}]
TWO = [*ONE, {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "Six."}]
SYSTEM = [{"role": "system", "content": "Be kind."}, *TWO]
SPOKEN = [name for name in chat_templates.names() if name not in chat_templates.REFUSED]
MARKED = [name for name in SPOKEN if chat_templates.training_source(name)]
TOOL = {
    "type": "function",
    "function": {
        "name": "locate",
        "description": "Finds a truck.",
        "parameters": {
            "type": "object",
            "properties": {"truck": {"type": "string", "description": "Its number."}},
            "required": ["truck"],
        },
    },
}
CALLED = [
    {"role": "user", "content": "Where is truck 7?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abcdef123",
                "type": "function",
                "function": {"name": "locate", "arguments": {"truck": "seven"}},
            }
        ],
    },
    {"role": "tool", "name": "locate", "tool_call_id": "abcdef123", "content": "Lyon"},
    {"role": "assistant", "content": "In Lyon."},
]
HISTORY = {
    "gptoss": "earlier turns end with another token, and their channel is rewritten",
    "glm4moe": "a turn has no end of its own: the mark of the next speaker ends it",
}
"""Templates whose training template marks other text, and why."""
WHOLE_ENDS = {"phi3", "phi3_5"}
"""Write a token behind the last turn, after its end, that the training template marks too."""


class Case:
    """A published template in force, and a tokenizer of its own."""

    def __init__(self, name: str) -> None:
        arguments = chat_templates.ARGUMENTS.get(name, {})
        self.source = in_force(chat_templates.source(name), arguments, DATE)
        self.tokenizer = chat_templates.tokenizer(self.source)
        self.template = ChatTemplate(self.source, self.tokenizer.special_tokens_map)
        self.contract = contract_of_tokenizer(self.template, self.tokenizer)
        self.encoder = Encoder(self.tokenizer, self.template)

    def messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As this template's own renderer is given them."""
        if not self.template.wants_parts:
            return messages
        return [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]

    def rendered_ids(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """Transformers' own."""
        return self.tokenizer.apply_chat_template(
            self.messages(messages), tokenize=True, return_dict=False, **options
        )

    def responses(self, ids: list[int], mask: list[int]) -> list[str]:
        """Text of each run of tokens with loss."""
        runs, before = [], 0
        for token, marked in zip(ids, mask, strict=True):
            if marked and not before:
                runs.append([])
            if marked:
                runs[-1].append(token)
            before = marked
        return [self.tokenizer.decode(run) for run in runs]


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {}


@pytest.fixture
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    name = request.param
    return cases.setdefault(name, cases.get(name) or Case(name))


every_template = pytest.mark.parametrize("case", SPOKEN, indirect=True)


@every_template
def test_ids_are_what_the_models_own_template_renders(case: Case) -> None:
    for conversation in (ONE, TWO):
        row = case.encoder.demonstrations(Demonstration(conversation))[-1]
        theirs = case.rendered_ids(conversation)
        length = len(row.input_ids)
        assert case.tokenizer.convert_ids_to_tokens(row.input_ids[-1]) == case.contract.closes[0]
        assert theirs[: length - 1] == row.input_ids[:-1]
        assert theirs[length - 1 : length] in ([row.input_ids[-1]], [])


@every_template
def test_a_response_continues_the_ids_that_a_model_is_prompted_with(case: Case) -> None:
    row = case.encoder.demonstrations(Demonstration(ONE))[0]
    prompted = case.rendered_ids(ASKED, add_generation_prompt=True)
    assert row.input_ids[: len(prompted)] == prompted == case.encoder.prompt(ASKED).prompt_ids
    assert row.completion_mask.index(1) == len(prompted)
    pair = case.encoder.pair(ASKED, [ONE[-1]], [TWO[-1]])
    assert [*pair.prompt_ids, *pair.chosen_ids] == row.input_ids


@every_template
def test_every_assistant_turn_has_loss_once(case: Case) -> None:
    rows = case.encoder.demonstrations(Demonstration(TWO))
    said = [text for row in rows for text in case.responses(row.input_ids, row.completion_mask)]
    assert len(said) == 2 and GOLD in said[0] and "Six." in said[1]
    last = Encoder(case.tokenizer, case.template, turns="last")
    (only,) = last.demonstrations(Demonstration(TWO))
    (text,) = case.responses(only.input_ids, only.completion_mask)
    assert "Six." in text and GOLD not in text


@pytest.mark.parametrize("case", [n for n in MARKED if n not in HISTORY], indirect=True)
def test_loss_is_where_the_training_template_marks_a_response(
    case: Case, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["case"]
    marked = chat_templates.training_source(name)
    arguments = chat_templates.ARGUMENTS.get(name, {})
    theirs = chat_templates.tokenizer(in_force(marked or "", arguments, DATE))
    told = theirs.apply_chat_template(
        case.messages(TWO), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    wanted = case.responses(told["input_ids"], told["assistant_masks"])
    rows = case.encoder.demonstrations(Demonstration(TWO))
    ours = [text for row in rows for text in case.responses(row.input_ids, row.completion_mask)]
    assert len(ours) == len(wanted) == 2
    for own, their in zip(ours, wanted, strict=True):
        if name in WHOLE_ENDS:
            their = their.removesuffix(chat_templates.END)
        extra = their.rstrip().removesuffix(own.strip())
        assert extra != their.rstrip(), (own, their)
        assert case.contract.opens.rstrip().endswith(extra.strip()), (own, their)


@every_template
def test_the_gold_answer_comes_back_from_its_own_response(case: Case) -> None:
    case.tokenizer.init_kwargs["alignflow_response"] = case.contract.model_dump(mode="json")
    row = case.encoder.demonstrations(Demonstration(ONE))[0]
    response = row.input_ids[row.completion_mask.index(1) :]
    (answer,) = answers(case.tokenizer, [response])
    assert answer.strip() == GOLD


@every_template
def test_roles_that_a_template_takes_are_rendered_as_transformers_does(case: Case) -> None:
    try:
        text = case.template.render(SYSTEM)
    except TemplateRejects:
        with pytest.raises(Exception, match=r"(?i)system"):
            case.tokenizer.apply_chat_template(case.messages(SYSTEM), tokenize=False)
        return
    theirs = case.tokenizer.apply_chat_template(case.messages(SYSTEM), tokenize=False)
    assert text == theirs


def as_taken(case: Case, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls as this template takes them, written here once more from what it was found to take."""
    calling = case.template.calling
    assert calling is not None
    taken = []
    for message in messages:
        told = dict(message)
        if calling.as_text and "tool_calls" in message:
            told["tool_calls"] = json.loads(json.dumps(message["tool_calls"]))
            for call in told["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        if "tool_calls" in message and not calling.has_content:
            del told["content"]
        elif "tool_calls" in message and calling.content is None:
            told["content"] = None
        taken.append(told)
    if case.template.wants_parts:
        return [
            m | {"content": [{"type": "text", "text": m["content"]}]}
            if isinstance(m.get("content"), str)
            else m
            for m in taken
        ]
    return taken


@every_template
def test_tools_and_calls_are_rendered_as_transformers_does_or_refused(case: Case) -> None:
    name, template = case.source, case.template
    if not template.writes_tools:
        with pytest.raises(TemplateRejects, match="writes no tools"):
            template.render(ASKED, tools=[TOOL])
    if template.calling is None:
        with pytest.raises(TemplateRejects, match="writes no tool calls"):
            template.render(CALLED[:2])
        return
    tools = [TOOL] if template.writes_tools else None
    rows = case.encoder.demonstrations(Demonstration(CALLED[:2], tools=tools))
    (row,) = rows
    theirs = case.tokenizer.apply_chat_template(
        as_taken(case, CALLED[:2]), tools=tools, tokenize=True, return_dict=False
    )
    length = len(row.input_ids)
    assert theirs[: length - 1] == row.input_ids[:-1], name[:80]
    prompted = case.tokenizer.apply_chat_template(
        as_taken(case, CALLED[:1]),
        tools=tools,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
    )
    assert row.input_ids[: len(prompted)] == prompted
    assert row.completion_mask.index(1) == len(prompted)
    (said,) = case.responses(row.input_ids, row.completion_mask)
    assert "locate" in said and "seven" in said
    assert json.loads(row.response) == {"name": "locate", "arguments": {"truck": "seven"}}


@every_template
def test_an_answer_after_a_tools_result_is_rendered_as_transformers_does(case: Case) -> None:
    template = case.template
    if template.calling is None or not template.writes_results:
        return
    tools = [TOOL] if template.writes_tools else None
    ours = template.render(CALLED, tools=tools)
    assert ours == case.tokenizer.apply_chat_template(
        as_taken(case, CALLED), tools=tools, tokenize=False
    )
    assert "Lyon" in ours and "seven" in ours
    rows = case.encoder.demonstrations(Demonstration(CALLED, tools=tools))
    said = [text for row in rows for text in case.responses(row.input_ids, row.completion_mask)]
    assert len(said) == 2 and "seven" in said[0] and "In Lyon." in said[1]


def test_templates_that_know_tools_are_known() -> None:
    calling = {name for name in SPOKEN if _case_template(name).calling is not None}
    tools = {name for name in SPOKEN if _case_template(name).writes_tools}
    assert {"qwen2_5", "qwen3", "llama3_1", "gptoss"} <= calling & tools
    assert not {"llama3", "gemma", "phi3"} & (calling | tools)


def _case_template(name: str) -> ChatTemplate:
    return ChatTemplate(chat_templates.source(name), {"bos_token": "<bos>"})


def test_unfinished_reasoning_is_no_answer() -> None:
    contract = ResponseContract(reasoning_opens="<think>", answer_follows="</think>")
    assert contract.parted("<think>a</think>\n\nb") == ("<think>a", "b")
    assert contract.parted("<think>a") == ("<think>a", "")
    assert contract.parted("b") == ("", "b")
    opened = contract.model_copy(update={"begins_in_reasoning": True})
    assert opened.parted("a") == ("a", "") and opened.parted("a</think>b") == ("a", "b")


def written(tmp_path: Path, name: str) -> Path:
    chat_templates.tokenizer(chat_templates.source(name)).save_pretrained(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", sorted(chat_templates.ARGUMENTS))
def test_a_template_that_opens_reasoning_is_refused_with_the_argument_that_helps(
    tmp_path: Path, name: str
) -> None:
    directory = written(tmp_path, name)
    _, findings = template_findings(directory, ModelSource(source="x"), needed=True)
    ((switch, _),) = chat_templates.ARGUMENTS[name].items()
    assert f"Set base_model.template_arguments to {{{switch}: false}}." in findings[0].text
    told = ModelSource(source="x", template_arguments=chat_templates.ARGUMENTS[name])
    example, findings = template_findings(directory, told, needed=True)
    assert not [finding for finding in findings if finding.level == "error"]
    assert example is not None and example.response.startswith("Beta.")


@pytest.mark.parametrize("name", SPOKEN)
def test_right_calls_score_1_or_the_metric_is_refused_with_what_the_template_writes(
    tmp_path: Path, name: str
) -> None:
    case = Case(name)
    told = ModelSource(source="x", template_arguments=chat_templates.ARGUMENTS.get(name, {}))
    payload = {"directory": str(written(tmp_path, name)), "model": told.model_dump(mode="json")}
    illegible = probe(payload)["illegible"]
    if not (case.template.writes_tools and case.template.calling):
        assert illegible is None
        return
    arguments = {"truck": "T-7", "days": 3, "from": {"city": "Lyon"}}
    right = {"name": "locate", "arguments": arguments}
    wrong = {"name": "locate", "arguments": arguments | {"days": 4}}
    case.tokenizer.init_kwargs["alignflow_response"] = case.contract.model_dump(mode="json")

    def score(call: dict[str, Any]) -> bool:
        made = {"id": "abcdef123", "type": "function", "function": call}
        turn = {"role": "assistant", "content": "", "tool_calls": [made]}
        (row,) = case.encoder.demonstrations(Demonstration((*ASKED, turn), tools=[TOOL]))
        response = row.input_ids[row.completion_mask.index(1) :]
        (answer,) = answers(case.tokenizer, [response])
        return agree(answer, json.dumps([right]))

    assert score(right) == (illegible is None)
    assert not score(wrong)
    assert illegible is None or "delta" in illegible


def test_only_a_recipe_whose_metric_reads_calls_is_refused(tmp_path: Path) -> None:
    directory, told = written(tmp_path, "glm4moe"), ModelSource(source="x")
    _, without = template_findings(directory, told, needed=True)
    readers = ["tool_call_accuracy"]
    _, findings = template_findings(directory, told, needed=True, call_readers=readers)
    (refusal,) = [finding.text for finding in findings if finding not in without]
    assert "tool_call_accuracy reads calls" in refusal and "<arg_key>" in refusal


@pytest.mark.parametrize("name", sorted(chat_templates.REFUSED))
def test_a_template_that_no_argument_helps_is_refused(tmp_path: Path, name: str) -> None:
    _, findings = template_findings(written(tmp_path, name), ModelSource(source="x"), needed=True)
    assert findings[0].level == "error" and "Name another file." in findings[0].text


def test_what_closes_a_response_ends_generation_wherever_the_tokenizer_goes(
    tmp_path: Path,
) -> None:
    base = written(tmp_path / "base", "qwen2_5")
    (base / "generation_config.json").write_text('{"eos_token_id": 7, "temperature": 0.7}')
    said = save_spoken(base, ModelSource(source="x"), tmp_path / "saved")
    assert said.document_end == chat_templates.END
    again = spoken(tmp_path / "saved", ModelSource(source="x"))
    assert again.contract == said.contract
    assert again.tokenizer.eos_token == "<|im_end|>" == said.tokenizer.eos_token
    assert again.tokenizer.pad_token == chat_templates.END
    config = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    ends = said.tokenizer.convert_tokens_to_ids(["<|im_end|>", chat_templates.END])
    assert config == {"eos_token_id": [*ends, 7], "temperature": 0.7}


@pytest.mark.parametrize("name", ["phi3", "llama3", "qwen3", "gemma"])
def test_what_is_saved_renders_as_it_did(tmp_path: Path, name: str) -> None:
    said = save_spoken(
        written(tmp_path / "base", name), ModelSource(source="x"), tmp_path / "saved"
    )
    assert said.template is not None
    again = spoken(tmp_path / "saved", ModelSource(source="x"))
    theirs = again.tokenizer.apply_chat_template(TWO, tokenize=False)
    assert theirs == said.template.render(TWO) == again.template.render(TWO)  # type: ignore[union-attr]
    assert again.document_end == chat_templates.END


def test_the_example_of_check_ends_where_training_ends(tmp_path: Path) -> None:
    base = written(tmp_path, "phi3")
    example, _ = template_findings(base, ModelSource(source="x"), needed=True)
    assert example is not None and example.response == "Beta.<|end|>"


def test_check_knows_what_a_saved_tokenizer_was_made_of(tmp_path: Path) -> None:
    said = save_spoken(
        written(tmp_path / "base", "phi3"), ModelSource(source="x"), tmp_path / "two"
    )
    example, _ = template_findings(tmp_path / "two", ModelSource(source="x"), needed=True)
    assert example is not None and example.contract == said.contract


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_a_template_that_writes_the_date_writes_the_recipes(name: str) -> None:
    source = chat_templates.source(name)
    told = in_force(source, {}, DATE)
    tokenizer = chat_templates.tokenizer(told)
    theirs = tokenizer.apply_chat_template(ONE, tokenize=False)
    ours = ChatTemplate(told, tokenizer.special_tokens_map).render(ONE)
    assert ours == theirs
    assert any(DATE.strftime(form) in ours for form in ("%d %b %Y", "%Y-%m-%d"))


def test_arguments_are_defaults_that_a_caller_may_change() -> None:
    source = (
        "{% if thinking %}T{% else %}F{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokenizer = chat_templates.tokenizer(in_force(source, {"thinking": True}, DATE))
    assert tokenizer.apply_chat_template(ASKED, tokenize=False).startswith("T")
    assert tokenizer.apply_chat_template(ASKED, tokenize=False, thinking=False).startswith("F")


def test_a_response_has_the_tokens_that_it_has_in_its_place() -> None:
    """A tokenizer that puts a space before every text would put one before a response alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({*"▁[INST]/WhatisParofEngd.?", "▁Paris", "Paris"})
    bare = Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in letters)], 0))
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # type: ignore[assignment]
    bare.decoder = decoders.Metaspace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", unk_token="<unk>")
    source = "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    encoder = Encoder(tokenizer, ChatTemplate(source, {}))
    turns = [{"role": "user", "content": "Wat?"}, {"role": "assistant", "content": "Paris"}]
    row = encoder.demonstrations(Demonstration(turns))[0]
    ids = tokenizer.encode("[INST]Wat?[/INST]Paris</s>", add_special_tokens=False)
    assert row.input_ids == ids
    response = [t for t, m in zip(row.input_ids, row.completion_mask, strict=True) if m]
    assert tokenizer.convert_ids_to_tokens(response) == ["Paris", "</s>"]


def test_the_contract_names_only_tokens() -> None:
    for name in SPOKEN:
        template = ChatTemplate(chat_templates.source(name), {"bos_token": "<bos>"})
        tokenizer = chat_templates.tokenizer(template.source)
        contract = contract_of(template, special_of(tokenizer), chat_templates.END)
        assert {*contract.closes} <= {*special_of(tokenizer)}, name
