"""One prompt, one response: to try a result."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from alignflow.evaluation.generate import generate
from alignflow.modeling import load_merged


def answer(
    directory: Path, prompt: str, *, max_new_tokens: int = 256, temperature: float | None = None
) -> str:
    """The response of a model directory to one user message.

    Raises:
        ArtifactError: There is no model in the directory.
    """
    model = load_merged(directory)
    tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    (response,) = generate(
        model, tokenizer, [list(ids)], max_new_tokens=max_new_tokens, batch_size=1,
        temperature=temperature, seed=0,
    )  # fmt: skip
    return response
