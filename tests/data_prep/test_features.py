"""Words and lines as filters share them: found in arrays, many texts at once, and the same as one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from filter_texts import prose, run, texts

from data_prep.documents import Document
from data_prep.steps import features


def test_words_of_mixed_scripts() -> None:
    assert features.split_words("GPT 很好用, really 好") == ["GPT", "很", "好", "用", ",", "really", "好"]
    assert features.split_words("ที่นี่") == ["ที่", "นี่"], "marks stay on their letter"
    assert features.split_words("한국어 단어는 띄어 쓴다") == ["한국어", "단어는", "띄어", "쓴다"]


def test_equal_words_have_equal_hashes_and_others_do_not() -> None:
    words = [word for text in texts() for word in text.split()][::3]
    words += ["ab", "ba", "a", "aa", "aaa", "x" * 70_000, "x" * 70_001, "é", "e\u0301", "字", "🙂"] * 2
    made = features.Features(" \n".join(words))
    assert made.words == words and made.lengths.tolist() == [len(word) for word in words]
    by_word = dict(zip(words, made.hashes.tolist(), strict=True))
    assert [by_word[word] for word in words] == made.hashes.tolist()
    assert len(set(by_word.values())) == len(by_word) > 5000
    assert features.Features(" \n").hashes.size == features.Features("").lengths.size == 0


def test_the_chain_looks_at_the_words_of_each_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Counted(features.Group):
        def __init__(self, texts: Sequence[str]):
            super().__init__(texts)
            seen.extend(texts)

    monkeypatch.setattr(features, "Group", Counted)
    good = prose(random.Random(5), 200)
    documents = [Document(f"{good} {number}.", "x", number) for number in range(5)]
    chain = [{"gopher_repetition": {}}, {"gopher_quality": {}}, {"fineweb": {}}]
    kept = run(chain, *documents)[0]
    assert sorted(seen) == [document.text for document in kept] and len(kept) == 5
    kept[0].text += " And one more."
    run(chain, *kept)
    assert len(seen) == 6, "a text that a step has changed is looked at anew"


STRANGE = [
    "", " \n", "\x1c\x1d", "数据处理很重要。" * 30, "ที่นี่ " * 9, "한국어 단어는 " * 20,
    "a\u3000b\xa0c\x85d\u2003e", "“naïve” café… " * 30,
    "🙂 \ud800 \0", "x" * 70_000, "𠀀𠀁 the of", "अनुवाद का " * 20,
]  # fmt: skip


@pytest.mark.parametrize("step", ["gopher_quality", "gopher_repetition", "c4", "fineweb"])
def test_which_texts_are_looked_at_together_changes_nothing(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    mixed = [text for text in STRANGE if text.split()] * 3 + rng.sample(texts(), 200)
    rng.shuffle(mixed)
    told = []
    for size in (1, 3000, 2**17):
        monkeypatch.setattr(features, "_GROUP_CHARS", size)
        documents = [Document(text, "x", number) for number, text in enumerate(mixed)]
        kept, tally = run([{step: {"exempt_code": True}}], *documents)
        told.append(([(one.number, one.text) for one in kept], tally))
    assert told[0] == told[1] == told[2]


def test_words_in_arrays_are_those_of_the_plain_split() -> None:
    group = features.Group([*STRANGE, *texts()[:50]])
    for place, text in enumerate(group.texts):
        found, words = features.Features(text, group, place), features.split_words(text)
        assert found.count == len(words) and found.lengths.tolist() == list(map(len, words))
        assert found.hashes.tolist() == features.Features(text).hashes.tolist()
        with_letter = sum(any(map(str.isalpha, word)) for word in words)
        for share in (with_letter / max(len(words), 1), (with_letter + 1) / max(len(words), 1)):
            assert not words or found.lettered(share) == (with_letter / len(words) >= share)


def test_no_white_space_and_no_script_without_spaces_is_missed() -> None:
    for point in [*range(0x80, 0xD800), *range(0xE000, 0x40000)]:
        character = chr(point)
        if character.isspace() or features._ALONE.match(character):
            assert features._is_odd(f"a{character}b".encode()), hex(point)
