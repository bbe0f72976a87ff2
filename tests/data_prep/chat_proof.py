"""The property that every accepted conversation has, checked against a rendering that was written by hand."""

from __future__ import annotations

import random
from itertools import groupby
from typing import Any

from chat_templates import Family
from tokenizers import Tokenizer

from data_prep.chat.encode import STRADDLES, Sample, SampleEncoder
from data_prep.chat.records import Exchange
from data_prep.documents import RejectedError

HOSTILE = [
    *(
        "Eight.",
        "spider legs",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "x",
        "12",
        ".",
        "naïve",
        "数据",
        "🙂",
        "e\u0301",
    ),
    *(
        "\u202e",
        "\x00",
        "{{ 7*7 }}",
        "{% endfor %}",
        "[INST]",
        "</s",
        "<|im_",
        "im_end|>",
        "<think>",
        "</think>",
    ),
    *("{% generation %}", "assistant\n", "<0x0A>", "model", "\ufeff", "\U0001f9d1\u200d\U0001f680"),
]


def conversation(rng: random.Random, system: bool) -> list[dict[str, str]]:
    def content() -> str:
        return "".join(rng.choice(HOSTILE) for _ in range(rng.choice([1, 1, 2, 4, 9])))

    messages = [{"role": "system", "content": content()}] if system and rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 3)):
        messages += [{"role": "user", "content": content()}, {"role": "assistant", "content": content()}]
    return messages


def learnt(tokenizer: Tokenizer, sample: Sample) -> list[str]:
    """The runs of trained tokens, decoded."""
    runs = groupby(zip(sample.tokens.tolist(), sample.mask.tolist(), strict=True), lambda pair: pair[1])
    return [
        tokenizer.decode([token for token, _ in run], skip_special_tokens=False) for mark, run in runs if mark
    ]


def prove(
    family: Family, encoder: SampleEncoder, tokenizer: Tokenizer, messages: list[dict[str, Any]]
) -> bool:
    """True for a conversation that was accepted, and is learnt exactly; False for one rightly refused.

    Refused is right when no token ends at one of the edges of a turn. Anything else is an AssertionError.
    """
    pieces = family.by_hand(messages)
    text = "".join(piece for piece, _ in pieces)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    try:
        sample = encoder.encode(Exchange(tuple(messages)))
    except RejectedError as error:
        assert str(error) == STRADDLES, error
        edges = {len("".join(piece for piece, _ in pieces[:k])) for k in range(len(pieces))}
        reached = {len(tokenizer.decode(ids[:n], skip_special_tokens=False)) for n in range(len(ids))}
        assert edges - reached, "refused, though a token ends at each edge"
        return False
    assert sample.tokens.tolist() == ids, "not the tokens of the rendering"
    assert learnt(tokenizer, sample) == [piece for piece, writes in pieces if writes]
    assert sample.text_bytes == len(text.encode())
    return True
