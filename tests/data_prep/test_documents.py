"""Each kind of bad record has its reason, and nothing is lost between in, out and rejected."""

from __future__ import annotations

import json
import random

import pytest

from data_prep.documents import Damage, Record, Tally, parse
from llmtrain.errors import DataError

GOOD = [
    b'{"text": "fine"}',
    b'{"text": "nul \\u0000 byte"}',
    b'{"text": "x"}\r',
]
BAD = {
    "broken JSON": [b'{"text": "cut', b"[" * 100_000, b"{'text': 1}"],
    "duplicate JSON key": [b'{"text": "a", "text": "b"}', b'{"text": "a", "m": {"k": 1, "k": 1}}'],
    "not UTF-8": [b'{"text": "\xff\xfe"}'],
    "not a JSON object": [b'["text"]', b'"text"', b"3", b"null"],
    "no field 'text'": [b'{"txt": "x"}', b'{"text": null}', b"{}"],
    "field 'text' is not text": [
        b'{"text": 3}',
        b'{"text": ["a"]}',
        b'{"text": true}',
        b'{"text": {"a": 1}}',
    ],
    "empty": [b'{"text": ""}', b'{"text": " \\n\\t"}', b"", b"  \r"],
    "lone surrogate": [b'{"text": "a\\ud800b"}'],
    "truncated gzip file": [Damage("truncated gzip file", "")],
}


def test_every_bad_line_is_counted_under_its_reason_and_none_twice():
    rng = random.Random(0)
    kinds = [(None, line) for line in GOOD] + [(why, line) for why, lines in BAD.items() for line in lines]
    chosen = [rng.choice(kinds) for _ in range(3000)]
    expected: dict[str, int] = {}
    for why, _ in chosen:
        if why is not None:
            expected[why] = expected.get(why, 0) + 1
    tally = Tally()
    records = [Record(line, "d.jsonl", number) for number, (_, line) in enumerate(chosen, start=1)]
    documents = list(parse(records, "json", "text", tally))
    assert tally.rejected == expected
    assert tally.documents_in == 3000 == len(documents) + sum(expected.values())
    assert [d.number for d in documents] == [n for n, (why, _) in enumerate(chosen, start=1) if why is None]


@pytest.mark.parametrize(("reason", "line"), [(why, line) for why, lines in BAD.items() for line in lines])
def test_strict_stops_at_the_first_bad_line_with_its_place(reason, line):
    records = [Record(GOOD[0], "d.jsonl", 1), Record(line, "d.jsonl", 2)]
    with pytest.raises(DataError, match=rf"^d\.jsonl:2: {reason} \(strict is on"):
        list(parse(records, "json", "text", Tally(strict=True)))


def test_text_is_kept_as_it_is_but_for_the_byte_order_mark():
    for text in ["a\r\nb\n", "nul \0 in it", "  spaces  ", "\u2028 e\u0301 é", "\ufeffx"]:
        raw = text.encode()
        (plain,) = parse([Record(raw, "f")], "text", "text", Tally())
        assert plain.text == text.removeprefix("\ufeff") and plain.id == "f"
        (row,) = parse([Record(json.dumps({"body": text}).encode(), "f", 4)], "json", "body", Tally())
        assert row.text == text.removeprefix("\ufeff") and row.id == "f:4"


def test_tallies_add_up_and_keep_the_first_few_examples():
    total = Tally()
    for part in range(4):
        tally = Tally(documents_in=3, documents_out=1)
        tally.drop("empty", f"f:{2 * part}")
        tally.drop("empty", f"f:{2 * part + 1}")
        total.add(tally)
    assert (total.documents_in, total.documents_out, total.rejected) == (12, 4, {"empty": 8})
    assert total.examples == {"empty": ["f:0", "f:1", "f:2"]}
