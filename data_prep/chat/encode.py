"""Exchanges as token ids and a mask that is exact to the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors

from data_prep.chat.messages import REASONING
from data_prep.chat.records import Exchange, check_strings
from data_prep.chat.restarts import Restarts, Tokens, restarts_of
from data_prep.chat.settings import SamplesSection
from data_prep.chat.spans import assistant_spans, check_template
from data_prep.chat.template import ChatTemplate, Span, load_template, template_sources
from data_prep.chat.written import CallShape, check_written, pattern_of, shaped
from data_prep.documents import RejectedError
from data_prep.tokenizer import load_tokenizer
from llmtrain.data.shards import HEAD_ENDS, RESTARTS, TRAINED
from llmtrain.data.too_long import cut_from_the_left

MOST_PATTERNS = 10_000  # of conversations that are remembered
STRADDLES = "a token reaches over the edge of an assistant's turn"


@dataclass(frozen=True)
class Sample:
    """One document: ids, and 1 where a token is trained on. Its first token never is: it follows nothing."""

    tokens: np.ndarray  # uint32 [t]
    mask: np.ndarray  # uint8 [t]
    text_bytes: int
    restarts: Restarts = Restarts()

    @property
    def marks(self) -> np.ndarray:
        """The bytes of a mask file (`llmtrain.data.shards`)."""
        marks = self.mask * np.uint8(TRAINED)
        if self.restarts.places:
            marks[self.restarts.head] |= HEAD_ENDS
            marks[list(self.restarts.places)] |= RESTARTS
        return marks


class SampleEncoder:
    """Exchanges to samples, with the tokenizer and the chat template of one folder.

    eos_id  ends a plain completion, and is trained on; None: nothing does. A conversation ends as its
            template ends it
    The template is loaded and checked when it is first needed; plain text needs none.
    """

    def __init__(self, folder: Path, settings: SamplesSection, eos_id: int | None):
        self.folder = folder
        self.settings = settings
        self.eos_id = eos_id
        self.rendering = _offsets_kept(load_tokenizer(folder))
        self.plain = _offsets_kept(load_tokenizer(folder))
        self.plain.encode_special_tokens = True  # text stays text
        self.special: tuple[str, ...] = ()  # what only the template may write, once that is loaded
        self._stripping = _stripping(self.rendering)
        self._shapes: dict[bool, CallShape] = {}  # of calls, in a conversation with tools and without
        self._written: set[tuple[Any, ...]] = set()  # patterns of conversations of which nothing is left out
        self._template: ChatTemplate | None = None

    @property
    def template(self) -> ChatTemplate:
        """The chat template, checked. Raises DataError when there is none, or none that can be proven."""
        if self._template is None:
            settings = self.settings
            template = load_template(
                self.folder, settings.variables, settings.today, settings.chat_template or ""
            )
            added = self.rendering.get_added_tokens_decoder().values()
            contents = {token.content: token.special for token in added if token.content}
            self.special = check_template(template, contents, settings.turns)
            self._template = template
        return self._template

    @cached_property
    def has_template(self) -> bool:
        """Whether there is a chat template, of any use or not."""
        return bool(template_sources(self.folder))

    def check_template(self) -> None:
        """Raises DataError when there is no chat template, or none that can be proven."""
        assert self.template is not None

    def encode(self, exchange: Exchange) -> Sample:
        """Raises RejectedError when it can't be a sample, or is too long."""
        if exchange.plain:
            check_strings(exchange, ())
            sample = self._encode_plain(exchange)
        else:
            template = self.template  # which makes `special` known
            exchange = self._as_read(exchange)
            check_strings(exchange, self.special)
            text, spans = assistant_spans(template, exchange, self.special, self.settings.turns)
            sample = self._encode_rendered(text, spans, exchange)
        sample.mask[:1] = 0
        if not sample.mask.any():
            raise RejectedError("no token to train on")
        return self._fitted(sample)

    def without_effect(self, exchange: Exchange) -> list[str]:
        """What the exchange says and the chat template does not read: keys of its messages, or its tools."""
        template, tools = self.template, exchange.tools
        keys = {key for message in exchange.messages for key in message} - {"role", "content"}
        if keys & set(REASONING):  # one thing under several names, of which one is enough
            keys -= set(REASONING)
            keys |= {REASONING[0]} - {REASONING[0] for name in REASONING if template.names(name, tools)}
        unread = [f"message key '{key[:40]}'" for key in sorted(keys) if not template.names(key, tools)]
        return unread + ["tools"] * bool(tools and not template.names("tools", tools))

    def _as_read(self, exchange: Exchange) -> Exchange:
        """With tool calls as the template reads them. Raises RejectedError when it leaves out any message."""
        if any("tool_calls" in message for message in exchange.messages):
            with_tools = bool(exchange.tools)
            if with_tools not in self._shapes:
                self._shapes[with_tools] = CallShape.of(self.template, exchange.tools)
            exchange = shaped(exchange, self._shapes[with_tools])
        pattern = pattern_of(exchange)
        if pattern not in self._written:
            check_written(self.template, exchange)
            if len(self._written) < MOST_PATTERNS:
                self._written.add(pattern)
        return exchange

    def _encode_plain(self, exchange: Exchange) -> Sample:
        """Prompt and completion are encoded apart, as a prompt is when a model is asked to complete it."""
        prompt, completion = (
            self.plain.encode(text, add_special_tokens=False).ids
            for text in (exchange.prompt, exchange.completion)
        )
        if self.eos_id is not None:
            completion = [*completion, self.eos_id]
        mask = np.zeros(len(prompt) + len(completion), np.uint8)
        mask[len(prompt) :] = 1
        size = len((exchange.prompt + exchange.completion).encode())
        cuts = Restarts(0, tuple(range(1, len(prompt))))  # a prompt is cut anywhere
        return Sample(np.array([*prompt, *completion], np.uint32), mask, size, cuts)

    def _encode_rendered(self, text: str, spans: Sequence[Span], exchange: Exchange) -> Sample:
        encoding = self.rendering.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.uint32)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        own = self._own(ids, offsets, text)
        mask = token_mask(offsets, spans, len(text), own)
        written = np.array([self.rendering.token_to_id(token) for token in self.special], np.int64)
        control = np.isin(ids, written)
        for place in np.flatnonzero(control).tolist():
            start, end = offsets[place].tolist()
            if text[start:end].strip() not in self.special:  # a normalizer made it of a message
                raise RejectedError("special token in content", text[start:end])
        cuts = restarts_of(self.template, exchange, text, Tokens(own[:, 0], control, mask))
        return Sample(ids, mask, len(text.encode()), cuts)

    def _own(self, ids: np.ndarray, offsets: np.ndarray, text: str) -> np.ndarray:
        """The offsets without the white space that a token takes in from beside it (Phi-3's tokens do)."""
        if not self._stripping:
            return offsets
        own = offsets.copy()
        for place in np.flatnonzero(np.isin(ids, list(self._stripping))).tolist():
            start, end = offsets[place].tolist()
            content = self._stripping[int(ids[place])]
            at = text.find(content, start, end)
            if at >= 0:
                own[place] = at, at + len(content)
        return own

    def _fitted(self, sample: Sample) -> Sample:
        longest, size = self.settings.max_tokens, len(sample.tokens)
        if longest is None or size <= longest:
            return sample
        if self.settings.too_long == "drop":
            raise RejectedError("too long")
        left = np.arange(longest)
        if self.settings.too_long == "truncate_left":
            head, rest = cut_from_the_left(sample.marks, longest)
            if rest < 0:
                raise RejectedError("too long, and not even its last turns fit")
            left = np.concatenate([np.arange(head), np.arange(rest, size)])
        if not sample.mask[left].any():
            raise RejectedError("no token to train on once truncated")
        return Sample(sample.tokens[left], sample.mask[left], int(sample.text_bytes * len(left) / size))


def token_mask(
    offsets: np.ndarray, spans: Sequence[Span], length: int, own: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [tokens]: 1 for the tokens that lie in the spans. `offsets` [tokens, 2] are in characters.

    own  the same without the white space that a token takes in from beside it, which may lie on either side
         of an edge
    The bytes of one character may be several tokens, all with its offsets. Raises RejectedError when a token
    lies on both sides of a span's edge, or when the tokens leave out part of the text, so that nobody knows
    on which side of the edge it went.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    joined = (starts[1:] <= ends[:-1]) & (starts[1:] >= starts[:-1]) & (ends[1:] >= ends[:-1])
    if len(starts) == 0 or starts[0] != 0 or ends[-1] != length or not joined.all():
        raise RejectedError("the tokenizer leaves out part of the text")
    starts, ends = (starts, ends) if own is None else (own[:, 0], own[:, 1])
    mask = np.zeros(len(starts), np.uint8)
    for low, high in spans:
        for edge in (low, high):
            if ((starts < edge) & (edge < ends)).any():
                raise RejectedError(STRADDLES)
        mask[(starts >= low) & (starts < high)] = 1
    return mask


def _stripping(tokenizer: Tokenizer) -> dict[int, str]:
    """The added tokens that take in white space from beside them, by id."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {number: token.content for number, token in added if token.lstrip or token.rstrip}


def _offsets_kept(tokenizer: Tokenizer) -> Tokenizer:
    """Without its post-processor, which adds nothing to a text that is encoded as it stands, but may take the
    white space before a word off the word's offsets."""
    tokenizer.post_processor = processors.Sequence([])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
