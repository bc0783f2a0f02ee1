"""A Modelfile for Ollama: the weights, the chat template in Go's, what ends a response, how to draw it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignflow.data import (
    ChatTemplate,
    PlainTokenizer,
    ResponseContract,
    TemplateRejects,
    contract_of_tokenizer,
    has_tokenizer,
    load_template,
)
from alignflow.errors import ArtifactError
from alignflow.exporting.turns import Turns, turns_of

QUOTES = '"""'
DRAWN = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 50),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
}
"""Field of a generation config to Ollama's parameter, and what Transformers takes without it.
Ollama's own defaults are others."""
INSTEAD = "The other ways out need no such template: --to gguf or --to hub."


def modelfile(model: Path, weights: str) -> str:
    """The Modelfile of a merged model.

    Args:
        model: Directory of the merged model.
        weights: What stands after FROM: a GGUF file or a folder of safetensors.

    Raises:
        ArtifactError: Its chat template cannot be written in Go's.
    """
    template = load_template(model)
    if template is None or not has_tokenizer(model):
        missing = "chat template" if template is None else "tokenizer.json"
        raise ArtifactError(
            f"{model} has no {missing}, so there is nothing to make Ollama's TEMPLATE of. {INSTEAD}"
        )
    tokenizer = PlainTokenizer(model)
    turns, contract = _turns(model, template, tokenizer)
    lines = [f"FROM {weights}", f"TEMPLATE {_quoted(model, go_template(turns))}"]
    lines += [f"PARAMETER stop {json.dumps(token)}" for token in contract.closes]
    lines += [f"PARAMETER {name} {value:g}" for name, value in _drawing(model).items()]
    notes = list(_left_out(template, turns))
    return "\n".join([*(f"# {note}" for note in notes), *lines, ""])


def _turns(
    model: Path, template: ChatTemplate, tokenizer: PlainTokenizer
) -> tuple[Turns, ResponseContract]:
    """The template in turns, and what ends a response.

    Raises:
        ArtifactError: It cannot be taken apart.
    """
    try:
        contract = contract_of_tokenizer(template, tokenizer)
    except TemplateRejects as error:
        raise ArtifactError(f"{model}: its chat template {error}. {INSTEAD}") from error
    turns = turns_of(template, contract.closes)
    if isinstance(turns, str):
        raise ArtifactError(
            f"{model}: its chat template cannot be written as Ollama's: {turns}. {INSTEAD}"
        )
    bos = tokenizer.init_kwargs.get("bos_token")
    adds = tokenizer.bos_token_id in tokenizer.encode("a")[:1]
    return turns.without(str(bos)) if bos and adds else turns, contract


def go_template(turns: Turns) -> str:
    """The turns in the language of Go's text/template, over Ollama's `.Messages`.

    A conversation that ends with an answer is one to continue, as Ollama's own templates have it.
    """
    user, answer = turns.user, turns.assistant
    content, first = "{{ .Content }}", "{{ if eq $i 0 }}"
    opens_user = _literal(user.before)
    system = ""
    if turns.system is not None:
        frame = turns.system
        system = f"{_literal(frame.before)}{content}{_literal(frame.after)}"
    elif turns.joined is not None:
        system = f"{opens_user}{content}{_literal(turns.joined)}"
        told = '{{ if or (ne $i 1) (ne (index $.Messages 0).Role "system") }}'
        opens_user = f"{told}{opens_user}{{{{ end }}}}"
    begin = f"{first}{_literal(turns.begin)}{{{{ end }}}}" if turns.begin else ""
    if turns.default:
        begin += (
            f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{_literal(turns.default)}{{{{ end }}}}'
        )
    branches = [
        f'{{{{ if eq .Role "user" }}}}{opens_user}{content}{_literal(user.after)}',
        f'{{{{ else if eq .Role "assistant" }}}}{_literal(answer.before)}{content}'
        f"{{{{ if not $last }}}}{_literal(answer.after)}{{{{ end }}}}",
        *([f'{{{{ else if eq .Role "system" }}}}{system}'] if system else []),
        "{{ end }}",
    ]
    opens = f'{{{{ if and $last (ne .Role "assistant") }}}}{_literal(turns.opens)}{{{{ end }}}}'
    return (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f"{begin}{''.join(branches)}{opens}{{{{ end }}}}"
    )


def _literal(text: str) -> str:
    """Text as it stands in a template, two opening braces in a string of Go's."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(model: Path, text: str) -> str:
    if QUOTES in text or text.endswith('"'):
        raise ArtifactError(
            f"{model}: its chat template has three quotes, which end a Modelfile's text. {INSTEAD}"
        )
    return f"{QUOTES}{text}{QUOTES}"


def _drawing(model: Path) -> dict[str, float]:
    """Ollama's parameters for the generation config, as Transformers reads it: greedy unless it says.

    The penalty is written in any case: Ollama's own is not 1.
    """
    file = model / "generation_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    drawn = {
        name: value if (value := config.get(field)) is not None else default
        for field, (name, default) in DRAWN.items()
    }
    told = drawn if config.get("do_sample") else {"temperature": 0.0}
    told["repeat_penalty"] = config.get("repetition_penalty") or 1.0
    if config.get("max_new_tokens"):
        told["num_predict"] = config["max_new_tokens"]
    return told


def _left_out(template: ChatTemplate, turns: Turns) -> list[str]:
    """What the Modelfile's template cannot do."""
    notes = []
    if template.writes_tools:
        notes.append("Definitions and calls of tools are left out: Ollama has a form of its own.")
    if not turns.takes_system:
        notes.append("System messages are left out, as the model's chat template takes none.")
    return notes
