"""Normalisation, language, block lists, decontamination and a user's own step."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from corpora import corpus_file, texts_of
from test_filters import CHINESE, GERMAN, GOOD, run

from data_prep.build import build
from data_prep.documents import Document, Tally
from data_prep.steps.registry import StepSection, apply_steps, make_steps
from data_prep.steps.shingles import shingle, words_of
from llmtrain.data.manifest import read_manifest
from llmtrain.errors import DataError


def change(text: str, **settings: Any) -> tuple[str, dict[str, int]]:
    kept, tally = run([{"normalize": settings}], Document(text, "x"))
    return kept[0].text, tally.found


@pytest.mark.parametrize(
    ("settings", "text", "changed", "what"),
    [
        ({}, "cafe\u0301", "café", "changed Unicode form (NFC)"),
        ({"form": "NFKC"}, "ﬁne x²", "fine x2", "changed Unicode form (NFKC)"),
        ({"form": "none"}, "cafe\u0301", "cafe\u0301", None),
        ({}, "a\r\nb\rc\u2028d\x85e\x0cf", "a\nb\nc\nd\ne\nf", "changed line ends"),
        ({"line_ends": "keep", "whitespace": "keep"}, "a\r\nb", "a\r\nb", None),
        ({}, "a\x00b\x1b[0m\ufeffc\td", "ab[0mc\td", "dropped control characters"),
        ({"controls": "keep"}, "a\x00b", "a\x00b", None),
        ({}, "\n  def f(x):\t \n\n\n\n    pass  \n", "  def f(x):\n\n    pass", "changed white space"),
        ({"whitespace": "collapse"}, "a \t b\xa0c\n d", "a b c\n d", "changed white space"),
        ({"whitespace": "keep"}, "a  \n\n\n\n", "a  \n\n\n\n", None),
        ({"fix_encoding": True}, "schÃ¶n", "schön", "mended encoding"),
        ({}, "nothing\n\n\tto do", "nothing\n\n\tto do", None),
    ],
)
def test_normalize_changes_one_thing_and_counts_it(
    settings: dict[str, Any], text: str, changed: str, what: str | None
) -> None:
    assert change(text, **settings) == (changed, {f"normalize: documents with {what}": 1} if what else {})


def test_normalizing_twice_changes_nothing_more() -> None:
    rng = random.Random(3)
    pieces = [
        "a",
        "é",
        "e\u0301",
        " ",
        "  ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\x00",
        "\ufeff",
        "\u2028",
        "ﬁ",
        "\xa0",
        "字",
    ]
    for form in ("NFC", "NFKC", "none"):
        for whitespace in ("trim", "collapse", "keep"):
            for _ in range(60):
                text = "x" + "".join(rng.choices(pieces, k=30)) + "x"
                once, _ = change(text, form=form, whitespace=whitespace)
                assert change(once, form=form, whitespace=whitespace) == (once, {})


def test_a_text_of_which_nothing_is_left_is_dropped() -> None:
    kept, tally = run([{"normalize": {}}], Document("\x00 \x01", "x"))
    assert not kept and tally.rejected == {"normalize: nothing left": 1}


def test_language_is_written_to_meta_and_decides() -> None:
    english = "The river is wide, and the town lies on its other side, where the old house stands. " * 3
    documents = [Document(english, "en"), Document(GERMAN, "de"), Document(CHINESE, "zh")]
    documents.append(Document("q7 zz 0x3f kk 99 -- vv", "noise"))
    kept, _ = run([{"language": {}}], *documents)
    assert [one.meta["language"] for one in kept[:3]] == ["en", "de", "zh"]
    kept, tally = run([{"language": {"keep": ["en", "de"]}}], *documents)
    assert [one.file for one in kept] == ["en", "de"]
    assert all(one.meta["language_score"] >= 0.65 for one in kept)
    assert tally.rejected == {"language: zh": 1, "language: unsure": 1}
    long = "Lorem " * 10 + GERMAN * 40
    assert run([{"language": {"keep": ["de"]}}], Document(long, "x"))[0], "the middle is looked at as well"


def test_the_identified_language_picks_the_stop_words() -> None:
    chain = [{"language": {"keep": ["de", "zh"]}}, {"gopher_quality": {}}]
    assert len(run(chain, Document(GERMAN, "de"), Document(CHINESE, "zh"))[0]) == 2


def blocked(tmp_path: Path, url: str | None, **lists: str) -> str | None:
    """Why a document from this address is dropped."""
    named = {}
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        named[name] = str(tmp_path / name)
    kept, tally = run([{"urls": named}], Document("text", "x", meta={} if url is None else {"url": url}))
    return None if kept else next(iter(tally.rejected))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("https://bad.example/page", "urls: domain"),
        ("http://WWW.Bad.Example:8080/", "urls: domain"),
        ("https://a.b.bad.example./x?y", "urls: domain"),
        ("bad.example/x", "urls: domain"),
        ("https://notbad.example/", None),
        ("https://bad.example.org/", None),
        ("https://good.example/?next=bad.example", None),
        ("https://bücher.example/", "urls: domain"),
        ("https://xn--bcher-kva.example/", "urls: domain"),
        ("https://good.example/some/page/", "urls: address"),
        ("http://www.good.example/some/page#part", "urls: address"),
        ("https://good.example/some/page2", None),
        ("https://good.example/Some/page", None),
        ("https://good.example/best-casino_games", "urls: word in the address"),
        ("https://good.example/?q=Casin%6F", "urls: word in the address"),
        ("https://good.example/casinos", None),
        ("http://[broken/", None),
        (None, None),
    ],
)
def test_block_lists(tmp_path: Path, url: str | None, rule: str | None) -> None:
    domains = "# hosts\nbad.example   # with all below it\n\nbücher.example\n"
    lists = {"domains": domains, "urls": "https://good.example/some/page\n", "words": "Casino\n"}
    assert blocked(tmp_path, url, **lists) == rule


QUESTION = "A farmer has seven sheep and sells all but three of them at the market on Tuesday morning"
ANSWER = "so he is left with three"


def evaluation(tmp_path: Path, *rows: dict[str, Any], name: str = "sheep.jsonl") -> dict[str, Any]:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path), "fields": sorted({field for row in rows for field in row})}


def test_thirteen_words_in_a_row_are_contamination(tmp_path: Path) -> None:
    given = evaluation(tmp_path, {"a": QUESTION, "b": [ANSWER]})
    words = QUESTION.split()
    thirteen, twelve = " ".join(words[2:15]), " ".join(words[2:14])
    documents = [
        Document(f"{GOOD} {thirteen.upper().replace(' ', ', ')}! {GOOD}", "x", 1),
        Document(f"{GOOD} {twelve}! {GOOD}", "x", 2),
        Document(f"{GOOD} {' '.join(words[-8:])}: {ANSWER}", "x", 3),
        Document(GOOD, "x", 4),
    ]
    kept, tally = run([{"decontaminate": {"sets": [given]}}], *documents)
    assert [one.number for one in kept] == [2, 4]
    assert tally.rejected == {"decontaminate: sheep": 2}
    assert tally.examples["decontaminate: sheep"][0] == f"x:1 ({thirteen.lower()})"
    kept, tally = run([{"decontaminate": {"sets": [given], "n": 12}}], *documents)
    assert [one.number for one in kept] == [4]


@pytest.mark.parametrize("name", ["sheep.json", "sheep.jsonl.gz", "sheep.parquet"])
def test_an_evaluation_set_may_be_an_array_packed_or_parquet(tmp_path: Path, name: str) -> None:
    rows = [{"a": QUESTION, "b": [ANSWER]}, {"a": None, "b": [GERMAN, ANSWER]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(
            gzip.compress(lines.encode()) if ".gz" in name else json.dumps(rows, indent=1).encode()
        )
    given = {"path": str(tmp_path / name), "fields": ["a", "b"]}
    documents = [Document(text, "x", number) for number, text in enumerate((QUESTION, GERMAN, GOOD))]
    kept, tally = run([{"decontaminate": {"sets": [given]}}], *documents)
    assert [one.number for one in kept] == [2] and tally.rejected == {"decontaminate: sheep": 2}


def test_report_keeps_the_documents_and_names_set_and_ngram(tmp_path: Path) -> None:
    sets = [evaluation(tmp_path, {"a": QUESTION}), evaluation(tmp_path, {"a": GERMAN}, name="brücke.jsonl")]
    sets[1]["name"] = "bridge"
    settings = {"sets": sets, "mode": "report"}
    kept, tally = run([{"decontaminate": settings}], Document(GOOD + GERMAN[30:], "x"), Document(GOOD, "y"))
    assert len(kept) == 2 and tally.found == {"decontaminate: bridge": 1} and not tally.rejected
    assert kept[0].meta["contamination"]["set"] == "bridge"
    ngram = kept[0].meta["contamination"]["ngram"]
    assert len(ngram.split()) == 13 and " ".join(words_of(GERMAN)).find(ngram) >= 0
    assert "contamination" not in kept[1].meta


def test_short_evaluation_texts_are_looked_for_as_a_whole(tmp_path: Path) -> None:
    nine = "which planet has the most moons of them all"
    given = evaluation(tmp_path, {"a": nine}, {"a": "too short to tell anything"})
    documents = [
        Document(f"They asked {nine}, and left.", "x", 1),
        Document(f"They asked {nine[:-4]} others.", "x", 2),
        Document("It was too short to tell anything.", "x", 3),
    ]
    kept, _ = run([{"decontaminate": {"sets": [given]}}], *documents)
    assert [one.number for one in kept] == [2, 3]


def test_decontamination_does_not_depend_on_how_documents_are_grouped(tmp_path: Path) -> None:
    rng = random.Random(9)
    words = GOOD.split()
    rows = [{"a": " ".join(rng.sample(words, 30))} for _ in range(20)]
    steps = [{"decontaminate": {"sets": [evaluation(tmp_path, *rows)]}}]
    documents = []
    for number in range(200):
        text = rng.sample(words, 60)
        row = rng.choice(rows)["a"].split()
        start, length = rng.randrange(10), rng.randint(10, 16)
        text[20:20] = row[start : start + length]
        documents.append(Document(" ".join(text), "x", number))
    plain = set()
    looked_for = {tuple(words_of(row["a"])[at : at + 13]) for row in rows for at in range(18)}
    for document in documents:
        there = words_of(document.text)
        if any(tuple(there[at : at + 13]) in looked_for for at in range(len(there))):
            plain.add(document.number)
    alone = {one.number for document in documents for one in run(steps, document)[0]}
    together = {one.number for one in run(steps, *documents)[0]}
    assert alone == together == set(range(200)) - plain and 50 < len(plain) < 150


def test_shown_words_are_the_shingled_ones() -> None:
    for text in (GOOD, GERMAN, CHINESE, "ÉTÉ, naïve! x2 GPT好", "a-b_c", ""):
        words = words_of(text)
        assert len(words) == shingle([text], 1)[1][0]
        grams = shingle([" ".join(words)], 1)[0]
        assert (grams == shingle([text], 1)[0]).all()


MY_STEP = """
def step(documents, tally, least=3, shout=False):
    for document in documents:
        if len(document.text) < least:
            tally.drop("mine: short", document.id)
            continue
        if shout:
            document.text = document.text.upper()
        tally.find("mine: seen")
        yield document
"""


def my_step(tmp_path: Path, source: str) -> dict[str, Any]:
    (tmp_path / "my_step.py").write_text(source)
    return {"file": str(tmp_path / "my_step.py")}


def test_a_users_step_is_a_step(tmp_path: Path) -> None:
    given = my_step(tmp_path, MY_STEP) | {"settings": {"shout": True}}
    kept, tally = run([{"python": given}], Document("abcd", "x"), Document("ab", "y"))
    assert [one.text for one in kept] == ["ABCD"]
    assert tally.rejected == {"mine: short": 1} and tally.found == {"mine: seen": 1}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def step(documents, tally):\n    for d in documents:\n        yield d.txt\n",
            "step in my_step.py:3 fails at x:1: AttributeError",
        ),
        (
            "def step(documents, tally):\n    return None\n",
            "step in my_step.py returns None: it must yield documents",
        ),
        ("def step(documents, tally):\n    return 3\n", "step in my_step.py returns a int: it must yield"),
        (
            "def step(documents, tally):\n    for d in documents:\n        yield d.text\n",
            "step in my_step.py yields a str at x:1",
        ),
        (
            "def step(documents):\n    yield\n",
            "step in my_step.py fails before the first document: TypeError",
        ),
    ],
)
def test_what_goes_wrong_in_a_users_step_names_its_line_and_the_document(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        run([{"python": my_step(tmp_path, source)}], Document("abcd", "x", 1))
    assert message in str(caught.value)


def test_a_step_named_by_a_relative_path_fails_with_its_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    my_step(
        tmp_path, "def step(documents, tally):\n    for d in documents:\n        yield open('/none/at/all')\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"step in my_step.py:3 fails at x:7: FileNotFoundError"):
        run([{"python": {"file": "my_step.py"}}], Document("abcd", "x", 7))


def test_what_stands_in_the_files_of_steps_decides_the_dataset_and_not_their_names(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{'z' * number} this is text number {number}")
    (tmp_path / "words").write_text("casino\n")
    step = my_step(tmp_path, MY_STEP)
    steps = [{"python": step}, {"urls": {"words": str(tmp_path / "words")}}]
    corpus = {"sources": [{"path": str(tmp_path / "*.txt")}]}
    first = build(corpus_file(tmp_path, **corpus, steps=steps))
    assert sorted(texts_of(tmp_path / "out", "train"))[0].startswith(" this is text number 0")
    assert build(corpus_file(tmp_path, **corpus, steps=steps)).reused

    (tmp_path / "my_step.py").rename(tmp_path / "other.py")
    steps[0] = {"python": {"file": str(tmp_path / "other.py")}}
    assert build(corpus_file(tmp_path, **corpus, steps=steps)).reused, "a name decides nothing"

    (tmp_path / "words").write_text("casino\npoker\n")
    with pytest.raises(DataError, match="differs in steps"):
        build(corpus_file(tmp_path, **corpus, steps=steps))
    (tmp_path / "words").write_text("casino\n")
    (tmp_path / "other.py").write_text(MY_STEP.replace("< least", "<= least"))
    with pytest.raises(DataError, match="differs in steps"):
        build(corpus_file(tmp_path, **corpus, steps=steps))
    assert read_manifest(tmp_path / "out").fingerprint == first.manifest.fingerprint


def test_only_the_named_step_is_written_of_a_step() -> None:
    assert StepSection.model_validate({"length": {}}).model_dump() == {
        "length": {"min_chars": 1, "max_chars": None}
    }


def test_a_chain_loses_no_document(tmp_path: Path) -> None:
    given = my_step(tmp_path, MY_STEP)
    chain = [
        {"normalize": {}},
        {"gopher_repetition": {}},
        {"gopher_quality": {}},
        {"c4": {}},
        {"python": given},
    ]
    rng = random.Random(4)
    texts = [GOOD, GERMAN, "", "\x00", "{", GOOD * 3, "x y z"]
    documents = [Document(rng.choice(texts), "x", number) for number in range(100)]
    tally = Tally()
    made = make_steps([StepSection.model_validate(step) for step in chain])
    kept = list(apply_steps(made, iter(documents), tally))
    assert len(kept) + sum(tally.rejected.values()) == 100 and 0 < len(kept) < 100


ENGLISH = (
    "The river is wide, and the town lies on the other side of it, where the old house stands. In the "
    "morning people go to the park and talk of the weather that comes down from the hills. Nobody knows who "
    "built the bridge, but it is a fine one. Each visitor stops for a while to look at the light in the "
    "water. They have told this story to their children for as long as anyone can remember."
)
OTHER = (
    "We had a small boat with one sail, and the wind was always against us when we wanted to be home. My "
    "brother would sing to it, which did not help. The harbour master had seen it all before and said that "
    "the sea has time. He gave us bread and a blanket. We are to write to him at keeper@bay.org, and we do."
)


def test_the_web_recipe_cleans_pages_in_its_order(tmp_path: Path) -> None:
    pages = {
        ENGLISH: None,
        OTHER: None,
        ENGLISH.replace("The river", "A river") + " Yes.": "minhash",
        GERMAN: "language: de",
        "You can call us on any day of the week. " * 60: "gopher_repetition",
        ENGLISH.replace("of", "#").replace("in", "#").replace("is", "#"): "gopher_quality: too many hashes",
        OTHER + "\nfunction() {": "c4: curly bracket",
        "\n".join(f"{word} and {word}s" for word in OTHER.split()) + "\nThe end.": "fineweb",
    }
    lines = [json.dumps({"text": text, "url": f"https://example.org/{at}"}) for at, text in enumerate(pages)]
    (tmp_path / "crawl.jsonl").write_text("\n".join(lines))
    recipe = Path(__file__).parents[2] / "recipes" / "web-corpus.yaml"
    given = {"sources.0.path": tmp_path / "crawl.jsonl", "output": tmp_path / "out", "workers": 1}
    given |= {"tokenizer.vocab_size": 400, "splits": "{}"}
    overrides = [f"{key}={value}" for key, value in given.items()]
    counts = build(recipe, [*overrides, "steps.3.c4.min_sentences=0"]).manifest.counts
    kept = [ENGLISH, OTHER.replace("keeper@bay.org", "<EMAIL>")]
    assert sorted(texts_of(tmp_path / "out", "train")) == sorted(kept), counts
    assert counts.documents_in == len(pages) and counts.found["pii: email"] == 1
    for rule in filter(None, pages.values()):
        assert [count for reason, count in counts.rejected.items() if reason.startswith(rule)] == [1], counts
