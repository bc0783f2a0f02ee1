"""The chat template on probe conversations, in a child: does it take the roles that rows have?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignflow.checking.findings import Finding, error, note, raised, warning
from alignflow.checking.sandbox import GIB, run_limited
from alignflow.data import (
    Call,
    ChatTemplate,
    Message,
    PlainTokenizer,
    ResponseContract,
    TemplateRejects,
    added_tokens,
    contract_of_tokenizer,
    has_tokenizer,
    made_calls,
    special_of,
    special_tokens,
    template_in_force,
    tokenizer_config,
)
from alignflow.errors import AlignflowError, DataError
from alignflow.recipe import ModelSource
from alignflow.stages import Record

SECONDS, MEMORY_BYTES = 5.0, 1 * GIB
FIELD = "base_model.chat_template"
USER: Message = {"role": "user", "content": "Alpha?"}
ANSWER: Message = {"role": "assistant", "content": "Beta."}
SYSTEM: Message = {"role": "system", "content": "Gamma."}
TOOL = {
    "type": "function",
    "function": {
        "name": "delta",
        "description": "Zeta.",
        "parameters": {
            "type": "object",
            "properties": {
                "epsilon": {"type": "string", "description": "Eta."},
                "theta": {"type": "integer", "description": "Iota."},
            },
        },
    },
}
CALLS: list[Call] = [
    {
        "id": f"abcdef12{number}",
        "type": "function",
        "function": {"name": "delta", "arguments": {"epsilon": "Kappa", "theta": number}},
    }
    for number in (3, 4)
]
SWITCHES = ("enable_thinking", "thinking")
"""Arguments that switch off reasoning in templates whose generation prompt opens it."""


class Example(Record):
    """A rendered question and its answer, and what is made of them."""

    prompt: str
    """As the model reads it, with what opens a response."""
    response: str
    """On which there is loss; it ends with the token that closes it, where that is known."""
    contract: ResponseContract | None
    """None where tokens cannot be read here."""


class Probed(Record):
    """What a template did with the probes."""

    missing: bool = False
    rejected: dict[str, str] = {}  # noqa: RUF012 (pydantic copies it)
    """Kind of conversation to why."""
    warnings: list[str] = []  # noqa: RUF012
    example: Example | None = None
    illegible: str | None = None
    """Calls as the template writes them, where that is not as metrics read them."""


def template_findings(
    directory: Path, model: ModelSource, *, needed: bool, call_readers: Sequence[str] = ()
) -> tuple[Example | None, list[Finding]]:
    """An example of the template in force, and what is wrong with it.

    It is `needed` where rows are conversations; `call_readers` are the recipe's metrics that read
    tool calls.
    """
    payload = {"directory": str(directory), "model": model.model_dump(mode="json")}
    try:
        answer = run_limited(
            "alignflow.checking.template:probe",
            payload,
            seconds=SECONDS,
            memory_bytes=MEMORY_BYTES,
            what=f"{FIELD}: rendering a conversation of two messages",
        )
    except AlignflowError as problem:
        return None, [raised(problem).model_copy(update={"field": FIELD})]
    probed = Probed.model_validate(answer)
    findings = list(_judged(probed, needed))
    if probed.illegible is not None and call_readers:
        findings.append(_illegible(probed.illegible, call_readers))
    return probed.example, findings


def _illegible(seen: str, metrics: Sequence[str]) -> Finding:
    return error(
        "evaluation.metrics",
        f"{' and '.join(metrics)} reads calls that are JSON, between <tool_call> tags or the whole "
        f"answer; the chat template writes {seen!r:.200}, so that right calls would score 0. Leave "
        f"the metric out, or name a template in {FIELD} that writes calls as JSON.",
        DataError,
    )


def _judged(probed: Probed, needed: bool) -> Iterator[Finding]:
    if probed.missing:
        if needed:
            yield error(
                FIELD,
                "the tokenizer has none, and rows are conversations. Name a Jinja file here, or "
                "give rows with a `text` column.",
                DataError,
            )
        return
    for name, reason in probed.rejected.items():
        if name == "system":
            yield note(FIELD, f"rejects a system message ({reason}); such rows are dropped.")
        else:
            yield error(FIELD, f"rejects a {name} conversation: {reason}", DataError)
    for problem in probed.warnings:
        yield warning(FIELD, problem)


def beyond_embedding(
    directory: Path, model: ModelSource, vocabulary: int | None
) -> Iterator[Finding]:
    """Tokens of the template, and those that begin, end or pad a text, that no row stands for."""
    if vocabulary is None or not has_tokenizer(directory):
        return
    try:
        template = template_in_force(directory, model)
    except DataError:
        return  # said where the template itself is looked at
    text = template.source if template else ""
    named = special_tokens(tokenizer_config(directory)).values()
    for index, token in sorted(added_tokens(directory).items()):
        if index >= vocabulary and (token in text or token in named):
            field = FIELD if token in text else "base_model"
            yield error(
                field,
                f"uses the token {token!r}, whose id is {index}; the model's embedding has "
                f"{vocabulary} rows, 0 to {vocabulary - 1}. Name a chat template in tokens that the "
                "model has, or a model whose embedding was enlarged.",
            )
            return


def probe(payload: dict[str, Any]) -> dict[str, Any]:
    """Renders the probes; runs in the child."""
    directory, model = Path(payload["directory"]), ModelSource.model_validate(payload["model"])
    template = template_in_force(directory, model)
    if template is None:
        return Probed(missing=True).model_dump()
    rejected = _rejected(template)
    if rejected.keys() - {"system"}:
        remedy = _remedy(directory, model)
        told = {
            name: f"{reason.rstrip('.')}. {remedy}" if name != "system" else reason
            for name, reason in rejected.items()
        }
        return Probed(rejected=told).model_dump()
    problems = list(_oddities(template, directory))
    return Probed(
        rejected=rejected,
        warnings=problems,
        example=_example(template, directory),
        illegible=_illegible_calls(template, directory),
    ).model_dump(mode="json")


def _illegible_calls(template: ChatTemplate, directory: Path) -> str | None:
    """The answer that makes one call, or two, as decoded, if no metric reads it; else None.

    A template that takes no such conversation writes none: its rows are dropped by name.
    """
    tokenizer = PlainTokenizer(directory) if has_tokenizer(directory) else None
    special = special_of(tokenizer) if tokenizer else ()
    contract = contract_of_tokenizer(template, tokenizer) if tokenizer else ResponseContract()
    for calls in (CALLS[:1], CALLS):
        turn: Message = {"role": "assistant", "content": "", "tool_calls": calls}
        try:
            told = template.rendered([USER, turn], tools=[TOOL], turns="last", special=special)
        except TemplateRejects:
            continue
        ((text, _, ((start, end),)),) = told
        answer = contract.parted(text[start:end])[1]
        for token in special:
            answer = answer.replace(token, "")
        if made_calls(answer) != [call["function"] for call in calls]:
            return answer
    return None


def _rejected(template: ChatTemplate) -> dict[str, str]:
    """Kinds of conversations that the template rejects, and why."""
    probes = {
        "user and assistant": [USER, ANSWER],
        "two-turn": [USER, ANSWER, USER, ANSWER],
        "system": [SYSTEM, USER, ANSWER],
    }
    rejected: dict[str, str] = {}
    for name, messages in probes.items():
        try:
            template.rendered(messages)
        except TemplateRejects as problem:
            rejected[name] = str(problem)
    return rejected


def _remedy(directory: Path, model: ModelSource) -> str:
    """What to do about a template that rejects conversations: a switch that helps, else another."""
    for switch in SWITCHES:
        arguments = model.template_arguments | {switch: False}
        tried = template_in_force(
            directory, model.model_copy(update={"template_arguments": arguments})
        )
        if tried is not None and not _rejected(tried).keys() - {"system"}:
            return f"Set base_model.template_arguments to {{{switch}: false}}."
    return "Name another file."


def _example(template: ChatTemplate, directory: Path) -> Example:
    tokenizer = PlainTokenizer(directory) if has_tokenizer(directory) else None
    contract = contract_of_tokenizer(template, tokenizer) if tokenizer else None
    special = special_of(tokenizer) if tokenizer else ()
    ((text, _, ((start, end),)),) = template.rendered([USER, ANSWER], special=special)
    response = text[start:end]
    closes = contract.closes if contract else ()
    if closes and not response.endswith(closes):
        response += closes[0]
    return Example(prompt=text[:start], response=response, contract=contract)


def _oddities(template: ChatTemplate, directory: Path) -> Iterator[str]:
    text = template.render([USER, ANSWER])
    for message in (USER, ANSWER):
        if message["content"] not in text:
            yield f"leaves out the {message['role']}'s message; its text is {text[:200]!r}."
    bos = special_tokens(tokenizer_config(directory)).get("bos_token")
    if bos and text.startswith(bos * 2):
        yield f"writes the beginning token {bos!r} twice."
