"""From conversations to token ids, each once. Trainers get ids and never tokenise again."""

from __future__ import annotations

from typing import Any, NamedTuple

from alignflow.data.forms import BadRow, Demonstration, Message
from alignflow.data.template import NOT_THE_BEGINNING, ChatTemplate, TemplateRejects
from alignflow.errors import DataError


class TrainingRow(NamedTuple):
    """A demonstration in token ids; the loss is where `completion_mask` is 1."""

    input_ids: list[int]
    completion_mask: list[int]
    prompt: str
    response: str


class PairRow(NamedTuple):
    """A preference pair in token ids: responses continue the prompt's ids."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    prompt: str
    chosen: str
    rejected: str


class RatedRow(NamedTuple):
    """A response that somebody liked or not, in token ids; it continues the prompt's ids."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool
    prompt: str
    completion: str


class PromptRow(NamedTuple):
    """A rendered prompt in token ids."""

    prompt: str
    prompt_ids: list[int]


class Encoder:
    """A tokenizer and its chat template.

    Pieces are encoded one by one without special tokens of the tokenizer's own: the template writes
    the beginning-of-text token if there is one, so that it never stands twice, and a response's ids
    continue exactly the ids a model is prompted with when it answers.

    Raises:
        BadRow: Of every method: the template rejects the row.
        DataError: Of every method: the row is a conversation, and there is no template.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._special = set(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    def demonstration(self, row: Demonstration) -> TrainingRow:
        """Ids of a demonstration."""
        if row.messages is None:
            ids = self._text(row.text or "")
            return TrainingRow(ids, [1] * len(ids), "", row.text or "")
        pieces = self._required_template().turns(row.messages)
        ids: list[int] = []
        mask: list[int] = []
        for position, (text, is_response) in enumerate(pieces):
            ends = position == len(pieces) - 1
            piece = self._response(text) if is_response and ends else self._encode(text)
            ids += piece
            mask += [int(is_response)] * len(piece)
        prompt = "".join(text for text, _ in pieces[:-1])
        return TrainingRow(ids, mask, prompt, row.messages[-1]["content"])

    def pair(
        self, prompt: list[Message], chosen: list[Message], rejected: list[Message]
    ) -> PairRow:
        """Ids of a pair.

        Raises:
            BadRow: Also where the two answers have the same ids.
        """
        text = self._prompt_text(prompt)
        chosen_ids = self._continuation(text, prompt, chosen)
        rejected_ids = self._continuation(text, prompt, rejected)
        if chosen_ids == rejected_ids:
            raise BadRow("equal_responses", "chosen and rejected are the same")
        answers = (chosen[-1]["content"], rejected[-1]["content"])
        return PairRow(self._encode(text), chosen_ids, rejected_ids, text, *answers)

    def rated(self, prompt: list[Message], answer: str, liked: bool) -> RatedRow:
        """Ids of a response and whether it was liked."""
        text = self._prompt_text(prompt)
        ids = self._continuation(text, prompt, [{"role": "assistant", "content": answer}])
        return RatedRow(self._encode(text), ids, liked, text, answer)

    def prompt(self, messages: list[Message]) -> PromptRow:
        """Ids of a prompt to answer."""
        text = self._prompt_text(messages)
        return PromptRow(text, self._encode(text))

    def _prompt_text(self, messages: list[Message]) -> str:
        return self._required_template().render(messages, add_generation_prompt=True)

    def _continuation(
        self, prompt_text: str, prompt: list[Message], answer: list[Message]
    ) -> list[int]:
        whole = self._required_template().render([*prompt, *answer])
        if not whole.startswith(prompt_text):
            raise TemplateRejects(NOT_THE_BEGINNING)
        return self._response(whole[len(prompt_text) :])

    def _required_template(self) -> ChatTemplate:
        if self._template is None:
            raise DataError(
                "The tokenizer has no chat template, and the data are conversations. Name a Jinja "
                "file in base_model.chat_template, or give rows with a `text` column."
            )
        return self._template

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _response(self, text: str) -> list[int]:
        """Ids of a last response, up to and with the token that ends it."""
        stripped = self._encode(text.rstrip())
        if stripped and stripped[-1] in self._special:
            return stripped
        return self._ended(self._encode(text))

    def _text(self, text: str) -> list[int]:
        ids, bos = self._encode(text), self._tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos] and self._tokenizer.encode("a")[:1] == [bos]:
            ids = [bos, *ids]
        return self._ended(ids)

    def _ended(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]
