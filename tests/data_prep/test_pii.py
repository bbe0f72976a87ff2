"""Personal data: what each kind is, what is none, and what becomes of it."""

from __future__ import annotations

import random
import re

import pii as pii_benchmark
import pytest
from corpora import corpus_file
from pii_labelled import labelled
from step_driver import pass_through

from data_prep.corpus import CorpusConfig
from data_prep.steps import pii_find, secrets
from data_prep.steps.checksums import NATIONAL_IDS, is_card, is_iban, luhn
from data_prep.steps.pii import KINDS, Pii, make
from data_prep.steps.pii_find import Span, apart
from llmtrain.config.load import load_yaml_model
from llmtrain.errors import ConfigError

# Published examples, each of its registry or specification, not made by our own arithmetic.
PUBLISHED = {
    "email": ["jane.doe+tag@mail.example.co.uk", "o'brien@example.org", "käthe@bücher.example"],
    "phone": ["+44 20 7946 0958", "(212) 555-0123", "+1-202-555-0143", "01 23 45 67 89", "+4930123456"],
    "ip": ["193.0.14.129", "2001:500:84::b", "2a00:1450:4001:81b::200e"],
    "iban": [
        "DE89370400440532013000",
        "GB82 WEST 1234 5698 7654 32",
        "NO9386011117947",
        "FR1420041010050500013M02606",
    ],
    "credit_card": [
        "4111111111111111",
        "5555-5555-5555-4444",
        "3782 822463 10005",
        "6011111111111117",
        "30569309025904",
    ],
    "national_id": [
        "12345678Z",
        "X1234567L",
        "111.444.777-35",
        "756.9217.0769.85",
        "RSSMRA85T10A562S",
        "811228-9874",
    ],
    "secret": [
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ],
}
NONE_OF_THEM = [
    "version 1.2.3.4 and 3.6.1.1, Chrome/91.0.12.124, numpy==1.26.4.1, v30.40.50.60",
    "10.0.0.1 192.168.0.1 127.0.0.1 fe80::1 ::1 std::string a::b Dead::Beef 300.1.2.3 1.2.3.4.5.6",
    "2024-01-31 12:30:45.123456, 31.01.2024, 01/31/2024, 20240131123045, 1998-2004",
    "4111111111111112 1234567812345678 0.4111111111111111 DE89370400440532013001",
    "ISBN 978-3-16-148410-0, 0-306-40615-2; MA 02110-1301; pi = 3.14159265358979",
    "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e",
    "@property user@localhost icon@2x.png lodash@4.17.21 git@github.com:a/b @",
    "12345678A 44051401358 123456782 sk-learn task-oriented-dialogue-systems-2024 hf_hub_download ghp_short",
    "factorial(10) makes 11 recursive calls 3628800 and call #1233329 is in cell 1048576",
    "127.0.0.1 backwards is 1.0.0.127, and 1.0.0.127.in-addr.arpa; 5.1.168.192; build 1.0.0.250, 2.3.0.145",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
]


def found_in(text: str, **settings) -> dict[str, int]:
    found = pass_through(make(Pii(mode="report", **settings)), [text]).tally.found
    return {name.removeprefix("pii: "): count for name, count in found.items()}


@pytest.mark.parametrize(
    ("kind", "item"), [(kind, item) for kind, items in PUBLISHED.items() for item in items]
)
def test_published_examples_are_found_and_masked_whole(kind, item):
    text = f"It was ({item}), he said."
    assert found_in(text) == {kind: 1}
    assert pass_through(make(Pii()), [text]).texts == [f"It was (<{kind.upper()}>), he said."]


@pytest.mark.parametrize("text", NONE_OF_THEM)
def test_what_only_looks_like_it_is_left_alone(text):
    outcome = pass_through(make(Pii()), [text])
    assert outcome.texts == [text] and outcome.tally.found == {}


def test_recall_and_precision_on_the_generated_set():
    scores, errors = pii_benchmark.measure(3000, seed=11)
    assert set(scores) == set(KINDS)
    for kind, score in scores.items():
        assert score.there > 150
        assert score.recall >= 0.95 and score.precision >= 0.95, f"{kind}: {errors[:5]}"


def test_the_generated_set_is_half_negative_and_made_anew_from_its_seed():
    examples = list(labelled(400, 1))
    assert sum(example.kind is None for example in examples) == 200
    assert all(example.text[example.start : example.end].strip() for example in examples)
    assert examples == list(labelled(400, 1)) != list(labelled(400, 2))


def test_numbers_without_a_form_of_their_own_need_their_label():
    assert found_in("44051401359 and 111222333") == {}
    assert found_in("PESEL: 44051401359, BSN 111222333, CPF 11144477735") == {"national_id": 3}
    assert found_in("PESEL: 44051401358, BSN 111222334") == {}
    assert found_in("612 345 678") == {} and found_in("Tel.: 612 345 678") == {"phone": 1}


@pytest.mark.parametrize(
    "text",
    [
        "Call 555 0123",
        "call us at 5550123456",
        "cell: (0)55-0123",
        "Phone #5550123",
        "mobile no 612345678",
        "Fax # 5550123",
    ],
)
def test_a_label_that_is_an_everyday_word_still_labels_what_is_dialled(text):
    assert found_in(text) == {"phone": 1}


def test_each_kind_has_its_mode_and_all_are_counted():
    texts = ["mail a@b.example or call +44 20 7946 0958", "host 193.0.14.129", "nothing", "4111111111111111"]
    settings = Pii(phone="report", ip="drop", credit_card="ignore", placeholders={"email": "[mail]"})
    outcome = pass_through(make(settings), texts)
    assert outcome.texts == ["mail [mail] or call +44 20 7946 0958", "nothing", "4111111111111111"]
    assert outcome.tally.found == {"pii: email": 1, "pii: phone": 1, "pii: ip": 1}
    assert outcome.tally.rejected == {"pii: ip": 1}


def test_private_addresses_and_social_security_numbers_are_found_when_asked():
    text = "10.0.0.77 and fd12::9 and 219-09-9999"
    assert found_in(text) == {}
    assert found_in(text, private_ips=True) == {"ip": 2}
    assert found_in(text, national_ids=("us",)) == {"national_id": 1}
    assert found_in("666-09-9999 000-12-3456", national_ids=("us",)) == {}


def test_a_number_of_corsica_is_found_in_both_ways_of_writing():
    for written in ("1 85 05 2A 006 084 36", "185052B00608463"):
        key = 97 - int(written.replace(" ", "")[:13].replace("2A", "19").replace("2B", "18")) % 97
        assert found_in(f"NIR {written[:-2]}{key:02d}.") == {"national_id": 1}
        assert found_in(f"NIR {written[:-2]}{key - 1:02d}.") == {}


def test_a_private_key_goes_as_a_block():
    body = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC\n\n" + "ab+/" * 60
    text = f"key:\n-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\nend"
    assert pass_through(make(Pii()), [text]).texts == ["key:\n<SECRET>\nend"]


def test_of_two_kinds_at_one_place_one_is_counted():
    assert found_in("IBAN DE89 3704 0044 0532 0130 00 THANKS") == {"iban": 1}
    assert found_in("https://193.0.14.129/x?mail=a@b.example") == {"ip": 1, "email": 1}


def test_masking_twice_changes_nothing_more():
    texts = [example.text for example in labelled(600, 4)]
    once = pass_through(make(Pii()), texts).texts
    again = pass_through(make(Pii()), once)
    assert again.texts == once and again.tally.found == {}


ODD = ["\0" * 50, "9" * 100_000, "1." * 50_000, ":" * 50_000, "a@" * 20_000, "A" * 100_000, "eyJ" * 9000]
ODD += [
    "eyJhbGciOi-" * 9000,
    "-----BEGIN RSA PRIVATE KEY-----\n" * 3000,
    "sk-" * 30_000,
    "a@b.example " * 20_000,
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("odd", ODD)
def test_long_runs_take_no_long_time(odd):
    assert len(pass_through(make(Pii()), [odd]).documents) == 1


def test_a_text_has_the_sign_of_every_mark_of_a_token():
    for mark, (sign, _) in secrets._TOKENS.items():
        for before in ("", " ", "\n("):
            assert sign.search(before + mark + ("b-" if mark == "xox" else "")), mark


def test_numbers_are_found_by_their_shape_as_in_the_text_itself():
    plain = re.compile(
        r"[0-9](?:([0-9]{0,2}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?!\.?[0-9]))"
        r"|(?:[ .()/\u00a0-]{0,2}[0-9]){6,})"
    )
    rng = random.Random(3)
    for _ in range(3000):
        text = "".join(rng.choices("0123456789" * 2 + " .()/-\xa0\u0661é🙂Aa_,", k=40))
        shape = text.encode("latin-1", "replace").translate(pii_find._SHAPES)
        assert [match.span() for match in pii_find._NUMBERS.finditer(shape)] == [
            match.span() for match in plain.finditer(text)
        ]


def test_of_overlapping_spans_the_one_found_first_is_kept():
    spans = [Span(5, 9, "a"), Span(0, 6, "b"), Span(9, 12, "c"), Span(8, 10, "d"), Span(20, 21, "e")]
    assert apart(spans) == [Span(5, 9, "a"), Span(9, 12, "c"), Span(20, 21, "e")]


def test_check_digits_by_the_published_examples():
    assert luhn("79927398713") and not luhn("79927398710")
    assert is_card("4222222222222") and not is_card("1234567812345670")
    assert is_iban("MT84MALT011000012345MTLCAST001S") and not is_iban("XX82WEST12345698765432")
    good = {"fr": "255081416802538", "se": "198112289874", "nl": "111222333", "pl": "44051401359"}
    for country, number in good.items():
        assert NATIONAL_IDS[country](number)
        last = str((int(number[-1]) + 1) % 10)
        assert not NATIONAL_IDS[country](number[:-1] + last)
    assert not NATIONAL_IDS["br"]("11111111111")
    rng = random.Random(0)
    passed = sum(luhn("".join(rng.choices("0123456789", k=16))) for _ in range(2000))
    assert 150 < passed < 250


def test_an_unknown_placeholder_is_refused_with_the_kinds(tmp_path):
    source = {"path": str(tmp_path / "*.txt")}
    path = corpus_file(tmp_path, sources=[source], steps=[{"pii": {"placeholders": {"mail": "x"}}}])
    with pytest.raises(ConfigError, match="placeholders has no kind 'mail': choose from email, phone, ip"):
        load_yaml_model(path, CorpusConfig, ())
