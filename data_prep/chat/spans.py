"""Which characters of a rendered conversation an assistant writes, proven or refused.

A template with `{% generation %}` marks says so itself, and its marks are taken as they stand. For any other,
assistant turn k is what rendering turn k adds to the generation prompt of the turns before it. That is proof
only while every shorter rendering is the beginning of the whole one, which is checked each time; special
tokens with which a template ends any text, and which messages can't hold, are not counted.

The end of a turn belongs to it: a model must learn to stop. White space that a template writes after the
last special token of a turn (ChatML: `<|im_end|>` and a line end) does not, for generation has ended there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_prep.chat.messages import ASSISTANT
from data_prep.chat.records import Exchange
from data_prep.chat.settings import Turns
from data_prep.chat.template import ChatTemplate, Message, Span
from data_prep.documents import RejectedError
from llmtrain.errors import DataError

NOTHING_LEARNT = "no turn to train on, all have weight 0"
REWRITES = "the chat template rewrites earlier turns"
NO_PROMPT = "the generation prompt does not begin the assistant's turn"


def assistant_spans(
    template: ChatTemplate, exchange: Exchange, special: Collection[str], turns: Turns = "all"
) -> tuple[str, list[Span]]:
    """The conversation as text, and the spans of the assistant turns in it that are learnt, in order.

    special  the control tokens, which messages do not hold
    Raises RejectedError when there is no such turn, or its span can't be proven.
    """
    messages, tools = exchange.messages, exchange.tools
    places = _learnt_places(exchange, turns)
    whole = template.render(messages, tools)
    if template.has_marks(tools):
        return whole.text, _marked(whole.marks, messages, places)
    spans = []
    for k in places:
        before = template.render(messages[:k], tools, prompt=True).text
        after = whole.text
        if k + 1 < len(messages):
            after = _beginning(whole.text, template.render(messages[: k + 1], tools).text, special)
        if not after.startswith(before):
            raise RejectedError(_why(template, messages, tools, k, after))
        spans.append((len(before), _turn_end(after, len(before), special)))
    return whole.text, spans


def _learnt_places(exchange: Exchange, turns: Turns) -> list[int]:
    """The places of the messages that are learnt. Raises RejectedError when there is none."""
    messages = exchange.messages
    places = [k for k in range(exchange.first, len(messages)) if messages[k]["role"] == ASSISTANT]
    if turns == "last":
        places = places[-1:]
    if not places:
        raise RejectedError("no assistant turn")
    places = [k for k in places if k not in exchange.unlearnt]
    if not places:
        raise RejectedError(NOTHING_LEARNT)
    return places


def _beginning(whole: str, part: str, special: Collection[str]) -> str:
    """The part, without the special tokens at its end that it takes for it to begin the whole."""
    while not whole.startswith(part):
        part = part.rstrip()
        last = next((token for token in special if part.endswith(token)), None)
        if last is None:
            raise RejectedError(REWRITES)
        part = part.removesuffix(last)
    return part


def _why(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None, k: int, after: str
) -> str:
    """Why the generation prompt of turn k is not where turn k begins."""
    history = template.render(messages[:k], tools).text
    return NO_PROMPT if after.startswith(history) else REWRITES


def _marked(marks: Sequence[Span], messages: Sequence[Message], places: Sequence[int]) -> list[Span]:
    """The template's own marks: all of them, or of only some turns when each turn has one mark."""
    turns = [k for k, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not marks or (len(places) < len(turns) and len(marks) != len(turns)):
        raise RejectedError(
            "the chat template does not mark each assistant turn", f"{len(marks)} marks, {len(turns)} turns"
        )
    return list(marks) if len(places) == len(turns) else [marks[turns.index(k)] for k in places]


def _turn_end(text: str, start: int, special: Collection[str]) -> int:
    """Where the turn from `start` on ends: behind its last special token if only white space follows."""
    last = max(
        (at + len(token) for token in special if (at := text.rfind(token, start)) >= 0), default=len(text)
    )
    return last if not text[last:].strip() else len(text)


def _goes_on(text: str, span: Span, special: Collection[str]) -> bool:
    """True when a span does not end with a special token, and one follows it."""
    inside, outside = text[slice(*span)].rstrip(), text[span[1] :].lstrip()
    return not inside.endswith(tuple(special)) and outside.startswith(tuple(special))


PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "How many legs has a spider?"},
    {"role": ASSISTANT, "content": "Eight."},
    {"role": "user", "content": "And a fly?"},
    {"role": ASSISTANT, "content": "Six, and two wings."},
)


def _control_tokens(template: ChatTemplate, added: Mapping[str, bool]) -> tuple[str, ...]:
    """What only the template may write: special tokens, and others that it sets a turn off with.

    Not all that it writes: a message may well hold `<think>` where that is a token but no special one.
    """
    asked = template.render(PROBE[:1]).text
    answered = template.render(PROBE[:2]).text.rstrip()
    return tuple(
        token for token, special in added.items() if special or token in asked or answered.endswith(token)
    )


def check_template(template: ChatTemplate, added: Mapping[str, bool], turns: Turns) -> tuple[str, ...]:
    """The control tokens among those `added` to the tokenizer (whether each is special).

    Raises DataError, naming the property that fails and the way out, when a plain conversation shows that
    nothing can be proven with this template.
    """
    marks = "put the assistant's words between {% generation %} and {% endgeneration %} in the template"
    try:
        special = _control_tokens(template, added)
        for count in (2, 4):
            messages = PROBE[:count]
            text, spans = assistant_spans(template, Exchange(messages), special, turns)
            said = [message["content"] for message in messages if message["role"] == ASSISTANT]
            written = "".join(text[slice(*span)] for span in spans)
            if not all(content in written for content in (said if turns == "all" else said[-1:])):
                raise RejectedError("the span of an assistant's turn does not hold what was said")
            if any(_goes_on(text, span, special) for span in spans):
                raise RejectedError("the special token that ends a turn is not in it")
    except RejectedError as error:
        hint = {
            REWRITES: f"set samples.turns: last to learn from the last turn of each conversation, or {marks}",
            NO_PROMPT: f"give the template's variables in samples.variables, or {marks}",
        }.get(str(error), marks)
        detail = f" ({error.detail})" if error.detail else ""
        raise DataError(
            f"the tokenizer's chat template fails on a plain conversation: {error}{detail}, so which tokens "
            f"an assistant writes can't be proven: {hint}"
        ) from None
    return special
