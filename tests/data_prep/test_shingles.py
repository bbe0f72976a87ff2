"""N-grams are what a plain reading of the text gives, however texts are batched and whatever their script."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from data_prep.steps import shingles
from data_prep.steps.shingles import shingle

WORD = re.compile(r"[^\W_]")
SCRIPTS = [
    "The quick brown fox, it's 12 years old: f(x_1) = 3.5!",
    "Straße naïve ÉCOLE — “quoted” Ωμέγα Привет мир",
    "数据处理很重要 and ひらがな カタカナ",
    "한국어 문장 하나",
    "🙂 emoji 👍🏽 between",
    "",
    " \n\t",
    "_ - _",
    "𠀀𠀁 rare Han",
]


def words_of(text: str) -> list[str]:
    """Words by the definition, a character at a time."""
    words, current = [], ""
    for char in text.lower():
        alone = re.match(r"[\u0e00-\u0fff\u3040-\u312f\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]", char)
        if WORD.match(char) and not alone:
            current += char
            continue
        if current:
            words.append(current)
        current = ""
        if alone and WORD.match(char):
            words.append(char)
    return [*words, current] if current else words


def grams_of(text: str, n: int) -> list[tuple[str, ...]]:
    words = words_of(text)
    return [tuple(words[at : at + n]) for at in range(max(len(words) - n + 1, 1))] if words else []


def some_texts(count: int) -> list[str]:
    rng = random.Random(5)
    pool = " ".join(SCRIPTS).split(" ")
    texts = [" ".join(rng.choices(pool, k=rng.choice([0, 1, 3, 5, 40, 300]))) for _ in range(count)]
    return texts + SCRIPTS


@pytest.mark.parametrize("n", [1, 3, 5])
def test_equal_ngrams_and_only_they_have_equal_hashes(n):
    texts = some_texts(60)
    hashes, counts = shingle(texts, n)
    expected = [gram for text in texts for gram in grams_of(text, n)]
    assert counts.tolist() == [len(grams_of(text, n)) for text in texts]
    padded = {gram + (None,) * (n - len(gram)) for gram in expected}
    by_gram = dict(zip(expected, hashes.tolist(), strict=True))
    assert [by_gram[gram] for gram in expected] == hashes.tolist()
    assert len(set(hashes.tolist())) == len(set(by_gram)) == len(padded)


def test_batches_and_blocks_change_nothing(monkeypatch):
    texts = [*some_texts(40), "x" * 5000 + " tail of words after a very long one", "数" * 3000]
    together, counts = shingle(texts, 5)
    alone = [shingle([text], 5)[0] for text in texts]
    assert (np.concatenate(alone) == together).all()
    monkeypatch.setattr(shingles, "_BLOCK", 64)
    again, same = shingle(texts, 5)
    assert (again == together).all() and (same == counts).all()


def test_no_text_has_no_ngrams():
    hashes, counts = shingle([], 5)
    assert hashes.size == counts.size == 0
    hashes, counts = shingle(["", "."], 5)
    assert hashes.size == 0 and counts.tolist() == [0, 0]
