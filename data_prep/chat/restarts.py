"""Where a conversation may be cut from the left: its head stays, and the rest begins with a later user turn.

The head is what the template writes before the first turn: system text, tools. A cut is good when head and
rest together are, to the letter, what the template writes for the conversation without the turns between; so
what is left is again a conversation. Where the template does not allow that there is no such place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.chat.messages import SYSTEM
from data_prep.chat.records import Exchange
from data_prep.chat.template import ChatTemplate
from data_prep.documents import RejectedError


@dataclass(frozen=True)
class Restarts:
    """In tokens: the head ends before `head`, and the rest may begin at each of `places`, which rise."""

    head: int = 0
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """A rendered conversation in tokens: the characters they start at, whether each is one that only the
    template writes, and whether it is trained on."""

    starts: np.ndarray
    control: np.ndarray
    mask: np.ndarray


def restarts_of(template: ChatTemplate, exchange: Exchange, text: str, tokens: Tokens) -> Restarts:
    """The cuts of a rendered conversation, all with one head; between tokens that are not trained on."""
    cuts = [_cuts(text, shorter, tokens) for shorter in _without_first_turns(template, exchange)]
    heads = Counter(head for each in cuts for head in each)
    if not heads:
        return Restarts()
    # A control token behind a cut melts into nothing; where contents begin alike, a later head does as well.
    before_control = Counter(head for each in cuts for head, rest in each.items() if tokens.control[rest])
    head = max(heads, key=lambda head: (heads[head], before_control[head], -head))
    return Restarts(head, tuple(sorted({each[head] for each in cuts if head in each})))


def _cuts(text: str, shorter: str, tokens: Tokens) -> dict[int, int]:
    """Tokens that a head may end before, each with the one that the rest then begins with."""
    starts, shift = tokens.starts, len(text) - len(shorter)
    low, high = len(shorter) - _common_end(text, shorter), _common_beginning(text, shorter)
    first, stop = int(np.searchsorted(starts, low)), int(np.searchsorted(starts, high, side="right"))
    heads = np.arange(first, min(stop, int(tokens.mask.argmax()) + 1))  # none of a head is trained on
    rests = np.searchsorted(starts, starts[heads] + shift)
    heads, rests = heads[rests < len(starts)], rests[rests < len(starts)]
    good = (rests > heads) & (starts[rests] == starts[heads] + shift) & (tokens.mask[rests] == 0)
    return dict(zip(heads[good].tolist(), rests[good].tolist(), strict=True))


def _without_first_turns(template: ChatTemplate, exchange: Exchange) -> Iterator[str]:
    """The conversation as text, without its first turns, then without the next ones, and so on."""
    messages = exchange.messages
    lead = next((k for k, message in enumerate(messages) if message["role"] not in SYSTEM), 0)
    for k in range(lead + 1, len(messages)):
        if messages[k]["role"] == "user":
            try:
                yield template.text([*messages[:lead], *messages[k:]], exchange.tools)
            except RejectedError:
                continue


def _common_beginning(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _common_end(one: str, other: str) -> int:
    """How many characters two texts have in common at their end."""
    return _common_beginning(one[::-1], other[::-1])
