"""From conversations to token ids, each once. Trainers get ids and never tokenise again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal, NamedTuple

from alignflow.data.calls import Tool
from alignflow.data.contract import ResponseContract, contract_of
from alignflow.data.demonstrations import Demonstration
from alignflow.data.rejected import BadRow
from alignflow.data.template import NOT_THE_BEGINNING, ChatTemplate, TemplateRejects, ending_of
from alignflow.data.turns import Message, answer_text
from alignflow.errors import DataError


class TrainingRow(NamedTuple):
    """A demonstration in token ids; the loss is where `completion_mask` is 1."""

    input_ids: list[int]
    completion_mask: list[int]
    prompt: str
    response: str
    responses: int = 0
    """Assistant turns that have loss."""


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

    A conversation is encoded once, as the model's own template writes it, without special tokens of
    the tokenizer's own: the template writes the beginning-of-text token if there is one, so that it
    never stands twice. Loss is on the tokens between the prompt and the end of what closes a
    response. Where a token would reach over the end of a prompt, prompt and response are encoded
    each on its own, since a model that answers is given the prompt alone.

    Args:
        tokenizer: Of Transformers or a PlainTokenizer.
        template: In force; None where there is none.
        contract: How responses end; None is found from the template, where it takes the probes.
        turns: Assistant turns of a demonstration that have loss.
        vocabulary: Rows of the model's embedding; None where that is not known.

    Raises:
        BadRow: Of every method: the template rejects the row.
        DataError: Of every method: the row is a conversation, and there is no template.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate | None,
        *,
        contract: ResponseContract | None = None,
        turns: Literal["all", "last"] = "all",
        vocabulary: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._template = template
        if contract is None and template is not None:
            with suppress(TemplateRejects):
                contract = contract_of_tokenizer(template, tokenizer)
        self._closes = contract.closes if contract else ()
        self._document_end = (contract and contract.document_end) or tokenizer.eos_token
        self._special = special_of(tokenizer)
        self._ending = ending_of(self._special)
        self._turns: Literal["all", "last"] = turns
        self._vocabulary = vocabulary

    def demonstrations(self, row: Demonstration) -> list[TrainingRow]:
        """Ids of a demonstration: one row, or several of one conversation (`ChatTemplate.rendered`)."""
        if row.messages is None:
            ids = self.document(row.text or "")
            return [TrainingRow(ids, [1] * len(ids), "", row.text or "")]
        texts = self._required_template().rendered(
            row.messages, tools=row.tools, turns=self._turns, special=self._special
        )
        if not texts:
            raise BadRow("no_response", "its last response has weight 0")
        return [
            TrainingRow(
                *self._marked(text, spans),
                prompt=text[: spans[-1][0]],
                response=answer_text(row.messages[last]),
                responses=len(spans),
            )
            for text, last, spans in texts
        ]

    def document(self, text: str) -> list[int]:
        """Ids of a text without a template, with the tokens that begin and end one."""
        ids, bos = self.encode(text), self._tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos] and self._tokenizer.encode("a")[:1] == [bos]:
            ids = [bos, *ids]
        return self._ended(ids, self._document_end)

    def pair(
        self,
        prompt: list[Message],
        chosen: list[Message],
        rejected: list[Message],
        tools: list[Tool] | None = None,
    ) -> PairRow:
        """Ids of a pair.

        Raises:
            BadRow: Also where the two answers have the same ids.
        """
        text = self._prompt_text(prompt, tools)
        chosen_ids = self._continuation(text, [*prompt, *chosen], tools)
        rejected_ids = self._continuation(text, [*prompt, *rejected], tools)
        if chosen_ids == rejected_ids:
            raise BadRow("equal_responses", "chosen and rejected are the same")
        answers = (answer_text(chosen[-1]), answer_text(rejected[-1]))
        return PairRow(self.encode(text), chosen_ids, rejected_ids, text, *answers)

    def rated(
        self,
        prompt: list[Message],
        completion: list[Message],
        liked: bool,
        tools: list[Tool] | None = None,
    ) -> RatedRow:
        """Ids of a response and whether it was liked."""
        text = self._prompt_text(prompt, tools)
        ids = self._continuation(text, [*prompt, *completion], tools)
        return RatedRow(self.encode(text), ids, liked, text, answer_text(completion[-1]))

    def prompt(self, messages: list[Message], tools: list[Tool] | None = None) -> PromptRow:
        """Ids of a prompt to answer."""
        text = self._prompt_text(messages, tools)
        return PromptRow(text, self.encode(text))

    def texts(self, ids: list[int]) -> list[str]:
        """Text of each id, special tokens too; of a part of a character what stands for it."""
        decode = (self._backend or self._tokenizer).decode
        return [decode([token], skip_special_tokens=False) for token in ids]

    def check_embedded(self, ids: list[int]) -> None:
        """Checks that the model's embedding has a row for each id.

        Raises:
            BadRow: It has none for a token that the text holds, such as one added to the tokenizer.
        """
        if self._vocabulary is None or not ids or max(ids) < self._vocabulary:
            return
        raise BadRow(
            "beyond_embedding",
            f"has the token {self.texts([max(ids)])[0]!r:.60}, whose id is {max(ids)}; the model's "
            f"embedding has {self._vocabulary} rows, 0 to {self._vocabulary - 1}. Take it out of the "
            "text, or name a model whose embedding was enlarged",
        )

    def _prompt_text(self, messages: list[Message], tools: list[Tool] | None) -> str:
        template = self._required_template()
        return template.render(messages, tools=tools, add_generation_prompt=True)

    def _continuation(
        self, prompt_text: str, messages: list[Message], tools: list[Tool] | None
    ) -> list[int]:
        whole = self._required_template().render(messages, tools=tools)
        whole = self._ending.sub(r"\1", whole)
        if not whole.startswith(prompt_text):
            raise TemplateRejects(NOT_THE_BEGINNING)
        ids, mask = self._marked(whole, [(len(prompt_text), len(whole))])
        return ids[mask.index(1) :]

    def _required_template(self) -> ChatTemplate:
        if self._template is None:
            raise DataError(
                "The tokenizer has no chat template, and the data are conversations. Name a Jinja "
                "file in base_model.chat_template, or give rows with a `text` column."
            )
        return self._template

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands, nothing added."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _marked(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Ids, and 1 on those of a response.

        A text that does not end with a token that closes a response gets the contract's.
        """
        marked = self._by_offsets(text, spans) or self._by_pieces(text, spans)
        ids = marked[0]
        if not text.endswith(tuple(self._closes)) and self._closes:
            ids = self._ended(ids, self._closes[0])
        return ids, [*marked[1], *[1] * (len(ids) - len(marked[0]))]

    def _by_offsets(
        self, text: str, spans: list[tuple[int, int]]
    ) -> tuple[list[int], list[int]] | None:
        """Ids of the whole text; None where a token reaches over the end of a prompt."""
        if self._backend is None:
            return None
        encoded = self._backend.encode(text, add_special_tokens=False)
        mask = [0] * len(encoded.ids)
        spans_left = iter(spans)
        start, end = next(spans_left)
        for place, (first, last) in enumerate(encoded.offsets):
            if first >= end and (span := next(spans_left, None)):
                start, end = span
            if first < start < last:
                return None
            mask[place] = int(start <= first < end)
        return encoded.ids, mask

    def _by_pieces(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Ids of prompts and responses, each encoded on its own."""
        ids: list[int] = []
        mask: list[int] = []
        done = 0
        for start, end in spans:
            for piece, is_response in ((text[done:start], 0), (text[start:end], 1)):
                encoded = self.encode(piece)
                ids += encoded
                mask += [is_response] * len(encoded)
            done = end
        return ids, mask

    def _ended(self, ids: list[int], token: str | None) -> list[int]:
        end = None if token is None else self._tokenizer.convert_tokens_to_ids(token)
        return ids if end is None or ids[-1:] == [end] else [*ids, end]


def contract_of_tokenizer(template: ChatTemplate, tokenizer: Any) -> ResponseContract:
    """What a template says of responses in a tokenizer's tokens, after what it was saved with.

    Raises:
        TemplateRejects: It takes no question and answer.
    """
    contract = contract_of(template, special_of(tokenizer), tokenizer.eos_token)
    before = ResponseContract.kept_with(tokenizer)
    return contract.after(before) if before else contract


def special_of(tokenizer: Any) -> list[str]:
    """A tokenizer's special tokens."""
    added = tokenizer.added_tokens_decoder.values()
    return list(
        dict.fromkeys([*tokenizer.all_special_tokens, *(t.content for t in added if t.special)])
    )
