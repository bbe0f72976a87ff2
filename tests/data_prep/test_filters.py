"""The filters of documents: equal to a plain reading of the papers, exact at each threshold."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import plain_filters
import pytest
from filter_texts import NOUNS, prose, run, texts

from data_prep.documents import Document
from data_prep.steps import features, gopher_datatrove
from data_prep.steps.gopher_repetition import Grams
from data_prep.steps.registry import StepSection
from data_prep.steps.stop_words import STOP_WORDS


def reason(step: str, text: str, meta: dict[str, Any] | None = None, **settings: Any) -> str | None:
    """Why the step drops this text, without its name; None when it keeps it."""
    kept, tally = run([{step: settings}], Document(text, "x.txt", meta=meta or {}))
    assert len(kept) + sum(tally.rejected.values()) == 1
    return None if kept else next(iter(tally.rejected)).removeprefix(f"{step}: ")


@pytest.mark.parametrize("step", ["gopher_quality", "gopher_repetition", "fineweb"])
def test_a_filter_breaks_the_same_rules_as_a_plain_reading_of_its_paper(step: str) -> None:
    plain: Callable[[str], set[str]] = getattr(plain_filters, step)
    seen: set[str | None] = set()
    for text in texts():
        said, broken = reason(step, text), plain(text)
        assert said in broken if broken else said is None, (said, broken, text[:300])
        seen.add(said)
    assert len(seen) >= 5 and None in seen, f"the texts break too few rules to prove anything: {seen}"


@pytest.mark.parametrize("terminal", [True, False])
def test_c4_leaves_the_lines_that_a_plain_reading_leaves(terminal: bool) -> None:
    seen = set()
    for text in texts():
        rule, left = plain_filters.c4(text, terminal)
        kept, tally = run([{"c4": {"terminal_punctuation": terminal}}], Document(text, "x"))
        if rule is None:
            assert "\n".join(line for line in map(str.strip, kept[0].text.split("\n")) if line) == left
        else:
            assert tally.rejected == {f"c4: {rule}": 1}, text
        seen.add(rule)
    assert seen == {None, "curly bracket", "lorem ipsum", "too few sentences"}


GOOD = prose(random.Random(5), 200)
FILLER = [f"{noun}{letter}" for noun in NOUNS for letter in "abcdefghij"]


def of_words(count: int, *, letters: int | None = None) -> str:
    """`count` different words, two of them stop words, with a letter in `letters` of them."""
    words = ["the", "of", *FILLER, *(f"w{number}" for number in range(count))][:count]
    for at in range(letters if letters is not None else count, count):
        words[at] = str(1000 + at)
    return " ".join(words)


@pytest.mark.parametrize(
    ("kept", "dropped", "rule"),
    [
        (of_words(50), of_words(49), "too few words"),
        (of_words(100_000), of_words(100_001), "too many words"),
        ("the of " + "ab" * 17 + " " + "aaa " * 50, "the of " + "aaa " * 50, "words too short"),
        ("the of " + "a" * 25 + " " + "a" * 10 + (" " + "a" * 10) * 50, None, "words too long"),
        (of_words(50) + "#" * 5, of_words(50) + "#" * 6, "too many hashes"),
        (of_words(50) + "... " * 5 + "x", of_words(50) + "… " * 6 + "x", "too many ellipses"),
        ("- a line\n" * 9 + of_words(50), "* a line\n" * 19 + of_words(50), "too many bullet lines"),
        (of_words(50, letters=40), of_words(50, letters=39), "too few words with a letter"),
        (of_words(60), of_words(60).replace("of ", "it "), "too few stop words"),
        (
            of_words(60).replace("the of", '"The Of,'),
            of_words(60).replace("the of", "The th"),
            "too few stop words",
        ),
    ],
)
def test_gopher_quality_is_exact_at_its_thresholds(kept: str, dropped: str | None, rule: str) -> None:
    assert reason("gopher_quality", kept) is None
    if dropped is None:
        dropped = kept.replace("a" * 25, "a" * 27)
    assert reason("gopher_quality", dropped) == rule


def test_lines_that_end_in_an_ellipsis_may_be_three_in_ten() -> None:
    lines = [of_words(8) for _ in range(10)]
    three = [line + "..." * (at < 3) for at, line in enumerate(lines)]
    four = [line + " …" * (at < 4) for at, line in enumerate(lines)]
    assert reason("gopher_quality", "\n".join(three)) is None
    assert reason("gopher_quality", "\n".join(four)) == "too many lines end in an ellipsis"


def test_repetition_is_exact_at_its_thresholds() -> None:
    alone = {"max_top_ngram_chars": {}, "max_duplicate_ngram_chars": {}, "max_duplicate_line_chars": 1}
    alone["max_duplicate_paragraph_chars"] = 1
    lines = [f"line {number}" for number in range(7)]
    assert reason("gopher_repetition", "\n".join(lines + lines[:3]), **alone) is None
    assert reason("gopher_repetition", "\n".join(lines + lines[:4]), **alone) == "duplicate lines"
    paragraphs = "\n\n".join(lines + lines[:4])
    assert reason("gopher_repetition", paragraphs, **alone) == "duplicate paragraphs"
    # 100 characters, of which the repeated 19 to 21 stand in one line
    for size, rule in ((20, None), (21, "characters in duplicate lines")):
        line = "r" * size
        text = "\n".join([line, "x" * (98 - 2 * size), line])
        assert len(text) == 100
        settings = {"max_duplicate_lines": 1, "max_top_ngram_chars": {}, "max_duplicate_ngram_chars": {}}
        assert reason("gopher_repetition", text, **settings) == rule
    # "ab cd" twice is 10 characters of 50 (a fifth), and of 49
    for size, rule in ((50, None), (49, "characters in the top 2-gram")):
        text = "ab cd x ab cd ".ljust(size, "y")
        assert reason("gopher_repetition", text) == rule


def repeated_characters(text: str, n: int) -> int:
    group = features.Group([text])
    sizes = np.array([len(text)])
    grams = Grams(np.arange(1), sizes, np.diff(group.firsts), group.hashes, group.lengths)
    return int(grams.repeated_characters(n)[0])


def test_repeated_ngrams_that_overlap_count_each_character_once() -> None:
    words = [f"w{number:02d}" for number in range(20)]
    text = " ".join(words + ["apart"] + words[:7])
    assert repeated_characters(text, 5) == repeated_characters(text, 7) == 7 * 3
    assert repeated_characters(text, 8) == 0


def test_where_words_are_characters_an_ngram_has_two_for_each_word() -> None:
    different = "".join(chr(0x4E00 + at) for at in range(60))
    for length, repeated in ((9, 0), (10, 10), (14, 14)):
        text = different + "。" + different[:length]
        assert repeated_characters(text, 10) == repeated
        limits = {"max_top_ngram_chars": {}, "max_duplicate_ngram_chars": {5: 0.1}}
        rule = "characters in duplicate 5-grams" if repeated else None
        assert reason("gopher_repetition", text, **limits) == rule
    polite = "\n".join(f"{different[at * 6 : at * 6 + 6]}を使うことができます。" for at in range(10))
    assert repeated_characters(polite, 10) == 9 * len("を使うことができます。")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("One is here. Two is here. Three is here. Four is here. Five is here.", None),
        ("One is here. Two is here. Three is here. Four is here, five is here.", "too few sentences"),
        ("He spoke, e.g. of cats, i.e. dogs. It was. So it was. Then no.", "too few sentences"),
        ("\n".join(["All of us went."] * 5), None),
        ("\n".join(["All of us went."] * 4 + ["and then home"]), "too few sentences"),
        ("\n".join(["All of us went."] * 4 + ["Home again."]), "too few sentences"),
        ("\n".join(["All of us went."] * 4 + ["We went..."]), "too few sentences"),
        ("\n".join(["All of us went."] * 4 + ["Turn on JavaScript please."]), "too few sentences"),
        ("\n".join(["All of us went."] * 4 + ["Read the Privacy Policy."]), "too few sentences"),
        ("\n".join(["All of us went."] * 4 + ["a b " + "w" * 1001 + "."]), "too few sentences"),
        ("\n".join(["All of us went."] * 4 + ["a b " + "w" * 999 + "."]), None),
        ("我们今天去公园。" * 5, None),
        ("我们今天去公园。" * 4, "too few sentences"),
    ],
)
def test_c4_at_its_thresholds(text: str, rule: str | None) -> None:
    assert reason("c4", text) == rule


def test_c4_says_what_it_took_out_of_a_document_that_stays() -> None:
    body = ["It rained all of the day[1]."] * 6
    text = "\n".join(["Menu", *body, "See our cookie policy now.", "No."])
    kept, tally = run([{"c4": {}}], Document(text, "x"))
    assert kept[0].text == "\n".join(["It rained all of the day."] * 6)
    assert tally.found == {
        "c4: line left out, no terminal punctuation": 1,
        "c4: line left out, policy": 1,
        "c4: line left out, too few words": 1,
    }


@pytest.mark.parametrize(
    ("kept", "dropped", "rule"),
    [
        (3, 2, "too few lines end in punctuation"),
        (67, 68, "too many short lines"),
    ],
)
def test_fineweb_counts_lines(kept: int, dropped: int, rule: str) -> None:
    def marked(count: int) -> str:
        return "\n".join(f"{at} a line of more than thirty letters" + "." * (at < count) for at in range(25))

    def short(count: int) -> str:
        return "\n".join(f"{at} ".ljust(29 + (at >= count), "x") + "." for at in range(100))

    make = marked if "punctuation" in rule else short
    settings = {"max_line_word_ratio": 1}
    assert reason("fineweb", make(kept), **settings) is None
    assert reason("fineweb", make(dropped), **settings) == rule


def test_fineweb_counts_characters_and_line_ends() -> None:
    for repeated, rule in (("ten chars.", None), ("eleven chs.", "characters in duplicate lines")):
        text = "\n".join([repeated, "x " * 400 + "x" * (199 - 2 * len(repeated)) + ".", repeated])
        assert len(text) - 2 == 1000
        assert reason("fineweb", text, max_short_lines=1) == rule
    text = "\n".join(f"{at} line, that." for at in range(4))  # 3 line ends, 12 words
    settings = {"max_short_lines": 1}
    assert reason("fineweb", text, max_line_word_ratio=0.25, **settings) is None
    assert reason("fineweb", text, max_line_word_ratio=0.24, **settings) == "too many lines for its words"


def test_code_passes_every_filter_that_is_told_so() -> None:
    code = "x = {1: 2}\n" * 3
    for name in ("gopher_quality", "gopher_repetition", "c4", "fineweb"):
        for document in (
            Document(code, "src/a.py.gz"),
            Document(code, "d.jsonl", 3, {"kind": "code"}),
            Document(code, "d.jsonl", 4, {"path": "lib/B.RS"}),
        ):
            kept, tally = run([{name: {"exempt_code": True}}], document)
            assert kept == [document] and tally.found == {f"{name}: code, exempt": 1}
            assert run([{name: {}}], document)[0] == []
        prose_in_code = Document(code, "a.py", meta={"kind": "prose"})
        assert run([{name: {"exempt_code": True}}], prose_in_code)[0] == []


GERMAN = (
    "Der Fluss ist breit und die Stadt liegt auf der anderen Seite, wo das alte Haus mit dem Garten steht. "
    "Am Morgen gehen die Leute in den Park und sprechen von dem Wetter, das sich in den Bergen nicht ändert. "
    "Niemand weiß, wer die Brücke gebaut hat, aber sie ist schön, und jeder Besucher bleibt für einen "
    "Augenblick stehen, um zu sehen, wie sich das Licht im Wasser bricht."
)
CHINESE = (
    "这条河很宽，城市在另一边，那里有一座带花园的老房子。早上人们去公园，谈论山里的天气。"
    "没有人知道是谁造的桥，但是它很美，每个来的人都会停下来看一看水中的光。我们昨天也去了那里，看见了许多不同的鸟。"
)
THAI = "แม่น้ำสายนี้กว้างมากและเมืองตั้งอยู่อีกฝั่งหนึ่งซึ่งมีบ้านเก่าที่มีสวนในตอนเช้าผู้คนไปสวนสาธารณะและพูดคุยเรื่องอากาศบนภูเขา"


def test_stop_words_are_those_of_the_documents_language() -> None:
    assert reason("gopher_quality", GERMAN) == "too few stop words"
    assert reason("gopher_quality", GERMAN, language="de") is None
    assert reason("gopher_quality", GERMAN, {"language": "de"}) is None
    assert reason("gopher_quality", GERMAN, {"language": "de_AT"}) is None
    assert reason("gopher_quality", GERMAN, {"language": "xx"}) is None, "no list: the rule does not apply"
    assert reason("gopher_quality", of_words(60), {"language": "de"}) == "too few stop words"


@pytest.mark.parametrize(("text", "language"), [(CHINESE, "zh"), (THAI, "th")])
def test_a_script_without_spaces_is_judged_by_its_characters(text: str, language: str) -> None:
    meta = {"language": language}
    assert reason("gopher_quality", text, meta) is None
    assert reason("gopher_quality", text[:40], meta) == "too few words"
    assert reason("gopher_repetition", text) is None
    assert reason("fineweb", text, min_line_punctuation=0) is None


def test_every_list_of_stop_words_can_be_met() -> None:
    for language, words in STOP_WORDS.items():
        assert len(words) >= 8, language
        found = {word for word in words if features.split_words(word) == [word]}
        assert found == words, f"{language}: {words - found} are never words of a text"


class Token:
    def __init__(self, text: str):
        self.text = text


@pytest.fixture
def spacy_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What spaCy makes of plain English: words, and each sign of punctuation by itself."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    cut = re.compile(r"\w+|[^\w\s]|\s+")
    monkeypatch.setattr(gopher_datatrove, "_english", lambda: lambda text: map(Token, cut.findall(text)))


def test_datatrove_counts_each_sign_as_a_word(spacy_words: None) -> None:
    calls = "\n".join(f"the {noun}(of);" for noun in NOUNS * 9) + " of"
    tuples = "\n".join(f"x{number} = (a, b, c);" for number in range(60))
    few = {"max_duplicate_ngram_chars": {5: 0.15}, "max_top_ngram_chars": {}}
    for step, text, settings, rule in (
        ("gopher_quality", calls, {}, "too few words with a letter"),
        ("gopher_repetition", tuples, few, "characters in duplicate 5-grams"),
    ):
        assert reason(step, text, **settings) is None
        assert reason(step, text, words="datatrove", **settings) == rule
        assert reason(step, GOOD) is None and reason(step, GOOD, words="datatrove") is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("... ! ? ;" * 40, "too few words"),
        ("a b c the of " * 20, "words too short"),
        ("# " * 30 + GOOD, "too many hashes"),
        ("\n".join(f"- {word}" for word in GOOD.split()), "too many bullet lines"),
        ("\n".join(f"* {word}" for word in GOOD.split()), None),  # no bullet to datatrove
        (GOOD.title(), "too few stop words"),  # which are in small letters to datatrove
    ],
)
def test_the_rules_of_quality_are_those_of_datatrove(spacy_words: None, text: str, rule: str | None) -> None:
    lenient = {} if rule is None or "letter" in rule else {"min_alphabetic_words": 0}
    assert (
        reason("gopher_quality", text, words="datatrove", **(lenient or {"min_alphabetic_words": 0.4}))
        == rule
    )


def test_repeated_ngrams_are_skipped_over_as_datatrove_does() -> None:
    assert gopher_datatrove._skipping_characters(["a", "b", "c", "a", "b", "c", "a", "b", "c"], 2) == 6
    assert gopher_datatrove._skipping_characters(["aa", "b", "aa", "b", "aa"], 2) == 3
    assert gopher_datatrove._top_characters(["one", "two", "three"], 2) == len("one two")
    assert gopher_datatrove._top_characters(["one"], 2) == 0


def test_words_of_datatrove_need_spacy_and_english_and_change_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = StepSection.model_validate({"gopher_quality": {}}).model_dump(mode="json")
    assert "words" not in plain["gopher_quality"]  # so datasets of before are found up to date
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "spacy" else object())
    with pytest.raises(ValueError, match="needs spaCy, whose words datatrove counts: pip install spacy"):
        StepSection.model_validate({"gopher_repetition": {"words": "datatrove"}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ValueError, match="words: datatrove is for English alone"):
        StepSection.model_validate({"gopher_quality": {"words": "datatrove", "language": "de"}})
    said = StepSection.model_validate({"gopher_quality": {"words": "datatrove"}}).model_dump(mode="json")
    assert said["gopher_quality"]["words"] == "datatrove"
