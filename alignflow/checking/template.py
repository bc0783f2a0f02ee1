"""The chat template on probe conversations, in a child: does it take the roles that rows have?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignflow.checking.findings import Finding, error, note, raised, warning
from alignflow.checking.sandbox import GIB, run_limited
from alignflow.data import ChatTemplate, Message, TemplateRejects, load_template, special_tokens
from alignflow.errors import AlignflowError, DataError

SECONDS, MEMORY_BYTES = 5.0, 1 * GIB
FIELD = "base_model.chat_template"
USER: Message = {"role": "user", "content": "Alpha?"}
ANSWER: Message = {"role": "assistant", "content": "Beta."}
SYSTEM: Message = {"role": "system", "content": "Gamma."}


def template_findings(directory: Path, override: str | None, *, needed: bool) -> list[Finding]:
    """What is wrong with the template in force; it is `needed` where rows are conversations."""
    payload = {"directory": str(directory), "override": override}
    try:
        probed = run_limited(
            "alignflow.checking.template:probe",
            payload,
            seconds=SECONDS,
            memory_bytes=MEMORY_BYTES,
            what=f"{FIELD}: rendering a conversation of two messages",
        )
    except AlignflowError as problem:
        return [raised(problem).model_copy(update={"field": FIELD})]
    return list(_judged(probed, needed))


def _judged(probed: dict[str, Any], needed: bool) -> Iterator[Finding]:
    if probed["missing"]:
        if needed:
            yield error(
                FIELD,
                "the tokenizer has none, and rows are conversations. Name a Jinja file here, or "
                "give rows with a `text` column.",
                DataError,
            )
        return
    for name, reason in probed["rejected"].items():
        if name == "system":
            yield note(FIELD, f"rejects a system message ({reason}); such rows are dropped.")
        else:
            yield error(
                FIELD, f"rejects a {name} conversation: {reason}. Name another file.", DataError
            )
    for problem in probed["warnings"]:
        yield warning(FIELD, problem)


def probe(payload: dict[str, Any]) -> dict[str, Any]:
    """Renders the probes; runs in the child."""
    override = Path(payload["override"]) if payload["override"] else None
    template = load_template(Path(payload["directory"]), override)
    if template is None:
        return {"missing": True, "rejected": {}, "warnings": []}
    probes = {
        "user and assistant": [USER, ANSWER],
        "two-turn": [USER, ANSWER, USER, ANSWER],
        "system": [SYSTEM, USER, ANSWER],
    }
    rejected: dict[str, str] = {}
    for name, messages in probes.items():
        try:
            template.turns(messages)
        except TemplateRejects as problem:
            rejected[name] = str(problem)
    renders = not rejected.keys() - {"system"}
    problems = list(_oddities(template, Path(payload["directory"]))) if renders else []
    return {"missing": False, "rejected": rejected, "warnings": problems}


def _oddities(template: ChatTemplate, directory: Path) -> Iterator[str]:
    text = template.render([USER, ANSWER])
    for message in (USER, ANSWER):
        if message["content"] not in text:
            yield f"leaves out the {message['role']}'s message; its text is {text[:200]!r}."
    config = directory / "tokenizer_config.json"
    tokens = special_tokens(json.loads(config.read_text())) if config.is_file() else {}
    bos = tokens.get("bos_token")
    if bos and text.startswith(bos * 2):
        yield f"writes the beginning token {bos!r} twice."
