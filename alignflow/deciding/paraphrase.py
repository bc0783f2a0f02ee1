"""Stage `paraphrase`: documents said in other words, to be read beside them in pre-training.

    documents -> the same facts in other frames and orders, by templates, a model or an endpoint

Questions are no input of it, so that nothing is written for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from alignflow.data import Spoken, spoken
from alignflow.deciding.questions import TEXTS_FILE
from alignflow.errors import EvaluationError
from alignflow.files import write_json_lines
from alignflow.models import chat_reply
from alignflow.recipe import ModelSource, ParaphrasesSection
from alignflow.retrieval import Document, read_documents
from alignflow.stages import EventWriter, ModelParams, StageResult, StageSpec

TIMEOUT_SECONDS = 120.0
TEMPERATURE = 0.7
FRAMES = (
    "{topic}: {sentence}",
    "About {topic}. {sentence}",
    "{sentence} This is what {topic} says.",
    "Note on {topic}: {sentence}",
    "According to {topic}: {sentence}",
    "Remember: {sentence} ({topic})",
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class ParaphraseParams(ModelParams):
    """Of stage `paraphrase`."""

    section: ParaphrasesSection


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module."""
    params = ParaphraseParams.of(spec)
    section, documents = params.section, read_documents(spec.input("index"))
    total = len(documents) * section.per_document
    if section.by == "model":
        texts = _by_model(
            spec, params, documents, lambda done: events.progress(done, total, "texts")
        )
    elif section.by == "endpoint":
        texts = _by_endpoint(section, documents)
    else:
        texts = by_templates(documents, section.per_document, spec.seed)
    kept = list(dict.fromkeys(text for text in texts if text.strip()))
    write_json_lines(work / "output" / TEXTS_FILE, [{"text": text} for text in kept])
    events.progress(total, total, "texts")
    return StageResult(metrics={"texts": float(len(kept))})


def by_templates(documents: Sequence[Document], count: int, seed: int) -> list[str]:
    """Each document's sentences in other frames and another order, `count` times."""
    texts = []
    for document in documents:
        topic, sentences = topic_and_sentences(document)
        for number in range(count):
            drawn = Random(f"{seed}/{document.name}/{number}")
            order = drawn.sample(sentences, len(sentences))
            frames = [drawn.choice(FRAMES) if topic else "{sentence}" for _ in order]
            framed = (f.format(topic=topic, sentence=s) for f, s in zip(frames, order, strict=True))
            texts.append(" ".join(framed))
    return texts


def topic_and_sentences(document: Document) -> tuple[str, list[str]]:
    """What a document is about by its first heading, and its sentences without headings."""
    lines = [line.strip() for line in document.text.splitlines()]
    heading = next((line.strip("# ") for line in lines if line.startswith("#")), "")
    body = "\n".join(line for line in lines if not line.startswith("#"))
    sentences = [part.strip() for part in _SENTENCE_END.split(body)]
    return heading, [sentence for sentence in sentences if sentence]


def _asked(section: ParaphrasesSection, document: Document) -> str:
    return f"{section.instruction}\n\n{document.text}"


def _by_endpoint(section: ParaphrasesSection, documents: Sequence[Document]) -> list[str]:
    texts = []
    for document in documents:
        for number in range(section.per_document):
            body = {
                "model": section.endpoint_model,
                "temperature": TEMPERATURE,
                "seed": number,
                "max_tokens": section.max_new_tokens,
                "messages": [{"role": "user", "content": _asked(section, document)}],
            }
            try:
                texts.append(chat_reply(section.endpoint or "", body, TIMEOUT_SECONDS))
            except (OSError, ValueError) as error:
                raise EvaluationError(
                    f"decide.paraphrases.endpoint {section.endpoint} did not answer ({error}). Run "
                    "again when it is back."
                ) from error
    return texts


def _by_model(
    spec: StageSpec,
    params: ParaphraseParams,
    documents: Sequence[Document],
    progress: Callable[[int], None],
) -> list[str]:
    from alignflow.models import answers, base_of, load_base, respond

    directory = spec.input("data") / "tokenizer"
    said: Spoken = spoken(directory, ModelSource(source=str(directory)))
    encoder = said.encoder("all")
    asked = [
        encoder.prompt([{"role": "user", "content": _asked(params.section, document)}]).prompt_ids
        for document in documents
        for _ in range(params.section.per_document)
    ]
    responses = respond(
        load_base(base_of(spec), dtype=params.dtype, quantization=params.quantization),
        said.tokenizer,
        asked,
        max_new_tokens=params.section.max_new_tokens,
        temperature=TEMPERATURE,
        seed=spec.seed,
        progress=progress,
    )
    return answers(said.tokenizer, [response.ids for response in responses])
