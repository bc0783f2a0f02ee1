"""One prompt, one response: to try a result."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from alignflow.errors import ArtifactError
from alignflow.evaluation.generate import generate


def answer(
    directory: Path, prompt: str, *, max_new_tokens: int = 256, temperature: float | None = None
) -> str:
    """The response of a model directory to one user message.

    Raises:
        ArtifactError: There is no model in the directory.
    """
    if not (directory / "config.json").is_file():
        raise ArtifactError(
            f"{directory} holds no model (no config.json). Give the merged model's directory; a "
            "run prints it at its end."
        )
    tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype="float32", trust_remote_code=False, use_safetensors=True
    )
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    (response,) = generate(
        model.eval(), tokenizer, [list(ids)], max_new_tokens=max_new_tokens, batch_size=1,
        temperature=temperature, seed=0,
    )  # fmt: skip
    return response
