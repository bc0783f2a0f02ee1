"""Bringing the base model here, and recording what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignflow.data.contract import FIELD, ResponseContract
from alignflow.data.gguf_base import dequantized_from, gguf_base
from alignflow.data.template import (
    ChatTemplate,
    TemplateRejects,
    in_force,
    load_template,
    special_tokens,
    tokenizer_config,
    with_end_token,
)
from alignflow.data.tokens import Encoder, contract_of_tokenizer
from alignflow.errors import DataError
from alignflow.files import atomic_write_json, digest_directory, file_stamps
from alignflow.machine import asking_hub
from alignflow.recipe import ModelSource, is_gguf
from alignflow.stages import NamedModel, Prepared, ResolvedModel

CONTEXT_FIELDS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "context_length"),
    "model_max_length",
)
"""Names of the longest text in configs; of GPT-2 and its kin, MPT and DBRX, RWKV, Kimi Linear."""
TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")
SPOKEN_FILES = ["config.json", "tokenizer*", "chat_template*", "special_tokens_map.json"]
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]


def fetch_base(
    model: NamedModel | ResolvedModel, path: str | None, home: Path, field: str = "base_model"
) -> Path:
    """Directory of a model: its `path` here; None is a Hub model, downloaded into the Hub's cache.

    Of a GGUF file it is the model made of it, in the home.

    Raises:
        AlignflowError: It cannot be downloaded, or is a file that holds no model that is read.
    """
    if path is not None and is_gguf(model.source):
        return gguf_base(Path(path), model.digest, home, field)
    if path is not None:
        return Path(path)
    from huggingface_hub import snapshot_download

    with asking_hub(f"{field}: {model.source} at {model.digest}"):
        return Path(
            snapshot_download(model.source, revision=model.digest, allow_patterns=MODEL_FILES)
        )


def fetch_spoken(model: ModelSource) -> Path:
    """Config, tokenizer and chat template of a Hub model, without its weights, in the Hub's cache.

    Raises:
        AlignflowError: The Hub does not give them.
    """
    from huggingface_hub import snapshot_download

    with asking_hub(f"base_model: {model.source}"):
        return Path(
            snapshot_download(model.source, revision=model.revision, allow_patterns=SPOKEN_FILES)
        )


def fetch_card(model: NamedModel | ResolvedModel) -> Path:
    """The model card of a Hub model, in the Hub's cache.

    Raises:
        AlignflowError: The Hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    with asking_hub(f"{model.source} at {model.digest}"):
        return Path(hf_hub_download(model.source, "README.md", revision=model.digest))


class Spoken(NamedTuple):
    """How a model is spoken to."""

    tokenizer: Any
    """With the contract, and the token that closes a response as its end token."""
    template: ChatTemplate | None
    contract: ResponseContract | None
    """None where there is no template."""
    vocabulary: int | None = None
    """Rows of the model's embedding; None where its config does not say."""

    @property
    def document_end(self) -> str | None:
        """Token that ends a text without a template."""
        return self.contract.document_end if self.contract else self.tokenizer.eos_token

    def encoder(self, turns: Literal["all", "last"]) -> Encoder:
        """What makes token ids of rows; `turns` are those that have loss."""
        return Encoder(
            self.tokenizer,
            self.template,
            contract=self.contract,
            turns=turns,
            vocabulary=self.vocabulary,
        )


def spoken(directory: Path, model: ModelSource, field: str = "base_model") -> Spoken:
    """Tokenizer and template of a model's directory, with what the recipe says of them in force.

    Raises:
        DataError: There is no tokenizer, or the template is not there, does not parse, or rejects a
            question and its answer.
    """
    from transformers import AutoTokenizer

    kind: Any = AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{field}: {directory} has no tokenizer that loads: {error}") from error
    document_end, template = tokenizer.eos_token, template_in_force(directory, model)
    tokenizer.chat_template = template.source if template else None
    if template is None:
        return Spoken(tokenizer, None, None, vocabulary_rows(directory))
    try:
        contract = contract_of_tokenizer(template, tokenizer)
    except TemplateRejects as error:
        raise DataError(
            f"{field}: the chat template rejects a question and its answer: {error}. Name another "
            f"file in {field}.chat_template."
        ) from error
    if contract.closes and contract.closes[0] != document_end:
        tokenizer.pad_token = tokenizer.pad_token or document_end
        tokenizer.eos_token = contract.closes[0]
        tokenizer.chat_template = with_end_token(template.source, document_end)
    tokenizer.init_kwargs[FIELD] = contract.model_dump(mode="json")
    return Spoken(tokenizer, template, contract, vocabulary_rows(directory))


def template_in_force(directory: Path, model: ModelSource) -> ChatTemplate | None:
    """The template of a model as a recipe names it; None where there is none.

    Raises:
        DataError: The file that replaces it is not there, or it does not parse.
    """
    override = Path(model.chat_template) if model.chat_template else None
    template = load_template(directory, override)
    if template is None:
        return None
    source = in_force(template.source, model.template_arguments, model.template_date)
    return ChatTemplate(source, special_tokens(tokenizer_config(directory)))


def save_spoken(base: Path, model: ModelSource, output: Path) -> Spoken:
    """Writes what stands beside weights to `output`: tokenizer, chat template, generation config.

    Raises:
        DataError: As `spoken`.
    """
    said = spoken(base, model)
    said.tokenizer.save_pretrained(str(output))
    _write_generation_config(base, said, output)
    return said


def _write_generation_config(base: Path, said: Spoken, output: Path) -> None:
    """The base's own generation config, with all tokens that end a response."""
    file = base / "generation_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    closes = said.contract.closes if said.contract else ()
    ends = said.tokenizer.convert_tokens_to_ids(list(closes))
    named = config.get("eos_token_id")
    before = named if isinstance(named, list) else [] if named is None else [named]
    if ends := list(dict.fromkeys([*ends, *before])):
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if config:
        atomic_write_json(output / "generation_config.json", config)


def text_section(config: dict[str, Any]) -> dict[str, Any]:
    """What a model's config says of its language model, which may be one part of several."""
    parts = (config[name] for name in TEXT_SECTIONS if isinstance(config.get(name), dict))
    return next((text_section(part) for part in parts), config)


def context_length(config: dict[str, Any]) -> int | None:
    """Longest text that a model reads, in tokens; None where its config names no limit."""
    text = text_section(config)
    return next((text[n] for n in CONTEXT_FIELDS if isinstance(text.get(n), int)), None)


def vocabulary_rows(directory: Path) -> int | None:
    """Rows of a model's embedding; None where no config says."""
    file = directory / "config.json"
    rows = text_section(json.loads(file.read_text())).get("vocab_size") if file.is_file() else None
    return rows if isinstance(rows, int) else None


def describe_base(model: ResolvedModel, base: Path, files: Prepared) -> int | None:
    """Writes what the base model is and where; returns the context length."""
    config = json.loads((base / "config.json").read_text())
    template: ChatTemplate | None = load_template(files.tokenizer)
    context = context_length(config)
    record = {
        "source": model.source,
        "revision": model.revision,
        "digest": model.digest,
        "tokenizer_digest": digest_directory(files.tokenizer),
        "chat_template_digest": template.digest if template else None,
        "context_length": context,
        "model_type": config.get("model_type"),
        "torch_dtype": config.get("dtype") or config.get("torch_dtype"),
    }
    if made_of := dequantized_from(base):
        record["dequantized_from"] = made_of
    atomic_write_json(files.base_model, record)
    location = {"path": str(base.absolute()), "files": file_stamps(base)}
    atomic_write_json(files.location, location)
    return context
