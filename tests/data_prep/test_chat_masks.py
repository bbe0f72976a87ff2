"""Loss masks of conversations: trained on is what the assistant wrote and the end of its turn, exactly."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_proof import conversation, learnt, prove
from chat_templates import CHATML, FAMILIES, MARKED, REASONING, SENTENCES, chat_folder

from data_prep.chat.encode import STRADDLES, SampleEncoder, token_mask
from data_prep.chat.records import Exchange, exchanges
from data_prep.chat.settings import SamplesSection
from data_prep.chat.spans import REWRITES
from data_prep.documents import RejectedError
from data_prep.tokenizer import load_tokenizer
from llmtrain.errors import DataError

IM = ("<|im_start|>", "<|im_end|>")


def encoder(folder: Path, **settings: Any) -> SampleEncoder:
    return SampleEncoder(folder, SamplesSection(**settings), eos_id=None)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learnt_is_what_the_assistant_wrote(tmp_path: Path, name: str, kind: str) -> None:
    family = FAMILIES[name]
    folder = chat_folder(tmp_path / "tokenizer", family.template, family.special, kind, name == "chatml")
    encode, tokenizer, rng = encoder(folder), load_tokenizer(folder), random.Random(f"{name} {kind}")
    found = [prove(family, encode, tokenizer, conversation(rng, family.system)) for _ in range(60)]
    assert found.count(True) >= 20, f"only {found.count(True)} were accepted"


@pytest.mark.parametrize("name", FAMILIES)
def test_renders_and_marks_as_transformers_does(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    family = FAMILIES[name]
    folder = chat_folder(tmp_path / "tokenizer", family.template, family.special)
    theirs, ours, rng = AutoTokenizer.from_pretrained(folder), encoder(folder), random.Random(name)
    for _ in range(10):
        messages = conversation(rng, family.system)
        for prompt in (True, False):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours.template.render(messages, prompt=prompt).text == text
        try:
            sample = ours.encode(Exchange(tuple(messages)))
        except RejectedError:
            continue
        assert theirs.apply_chat_template(messages)["input_ids"] == sample.tokens.tolist()


def test_marks_are_those_of_transformers(tmp_path: Path) -> None:
    """Without a macro and without trimmed offsets: there transformers 5.23 loses the place of a mark."""
    from transformers import AutoTokenizer

    plain = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>"
        "{% endif %}\n{% endfor %}"
    )
    folder = chat_folder(tmp_path / "tokenizer", plain, IM, "sentencepiece")
    theirs, ours, rng = AutoTokenizer.from_pretrained(folder), encoder(folder), random.Random(1)
    for _ in range(30):
        messages = conversation(rng, system=True)
        try:
            sample = ours.encode(Exchange(tuple(messages)))
        except RejectedError:
            continue
        found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert found["assistant_masks"] == sample.mask.tolist()


def test_tools_calls_and_answers_of_tools_are_read_and_calls_are_learnt(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "tokenizer", CHATML, IM)
    call = {"function": {"name": "add", "arguments": {"x": 1}}}
    row = {
        "messages": [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": "1?", "name": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "Two."},
        ],
        "tools": '[{"name": "add"}]',
    }
    (exchange,) = exchanges(row, "chat", {})
    encode = encoder(folder)
    sample = encode.encode(exchange)
    said = '<call>{"name": "add", "arguments": {"x": 1}}</call><|im_end|>'
    assert learnt(load_tokenizer(folder), sample) == [said, "Two.<|im_end|>"]
    whole = encode.rendering.decode(sample.tokens.tolist(), skip_special_tokens=False)
    assert 'Tools:\n{"name": "add"}<|im_end|>' in whole and "<|im_start|>tool\n2<|im_end|>" in whole
    assert learnt(load_tokenizer(folder), encoder(folder, turns="last").encode(exchange)) == [
        "Two.<|im_end|>"
    ]


def test_only_the_completion_is_learnt_after_a_prompt_of_messages(tmp_path: Path) -> None:
    said = [
        ("user", "How many legs has a spider?"),
        ("assistant", "Eight."),
        ("user", "And a fly?"),
        ("assistant", "Six."),
    ]
    messages = [{"role": role, "content": content} for role, content in said]
    for number, template in enumerate((CHATML, MARKED)):
        folder = chat_folder(tmp_path / str(number), template, IM)
        row = {"prompt": messages[:3], "completion": messages[3]}
        (exchange,) = exchanges(row, "prompt_completion", {})
        assert learnt(load_tokenizer(folder), encoder(folder).encode(exchange)) == ["Six.<|im_end|>"]


def test_a_template_that_strips_reasoning_is_learnt_from_by_its_last_turns(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "tokenizer", REASONING, IM)
    messages = [
        {"role": "user", "content": "How many legs has a spider?"},
        {"role": "assistant", "content": "Eight.", "reasoning": "It is no fly."},
        {"role": "user", "content": "And a fly?"},
        {"role": "assistant", "content": "Six.", "reasoning": "An insect."},
    ]
    with pytest.raises(
        DataError, match=r"rewrites earlier turns, .* set samples.turns: last .* {% generation %}"
    ):
        encoder(folder).template  # noqa: B018
    (exchange,) = exchanges({"messages": messages}, "chat", {})
    sample = encoder(folder, turns="last").encode(exchange)
    assert learnt(load_tokenizer(folder), sample) == ["<think>\nAn insect.\n</think>\n\nSix.<|im_end|>"]
    assert "no fly" not in load_tokenizer(folder).decode(sample.tokens.tolist())


def test_a_record_whose_earlier_turns_are_rewritten_is_refused_alone(tmp_path: Path) -> None:
    keeps = "(message.content if loop.last else (message.content or '').split('</think>')[-1])"
    folder = chat_folder(tmp_path / "tokenizer", CHATML.replace("(message.content or '')", keeps), IM)
    encode = encoder(folder)
    turns = [("user", "a?"), ("assistant", "<think>b</think>B."), ("user", "c?"), ("assistant", "C.")]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    with pytest.raises(RejectedError, match=REWRITES):
        encode.encode(Exchange(messages))
    assert learnt(load_tokenizer(folder), encode.encode(Exchange(messages[:2]))) == [
        "<think>b</think>B.<|im_end|>"
    ]


def test_white_space_before_an_answer_that_melts_into_its_first_word_is_refused(tmp_path: Path) -> None:
    """The template's space and the answer's first word are one token of GPT-2's kind: no edge is there."""
    folder = chat_folder(tmp_path / "tokenizer", SENTENCES, ("<x>",))
    spaced = SENTENCES.replace("[/INST]", "[/INST] ").replace("{{ ' ' + ", "{{ ")
    glued = chat_folder(tmp_path / "glued", spaced, ("<x>",))
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "Eight."})
    assert learnt(load_tokenizer(folder), encoder(folder).encode(Exchange(messages))) == [" Eight.</s>"]
    with pytest.raises(RejectedError, match=STRADDLES):
        encoder(glued).encode(Exchange(messages))


@pytest.mark.parametrize(
    ("offsets", "spans", "length", "expected"),
    [
        ([(0, 2), (2, 3), (3, 5)], [(2, 3)], 5, [0, 1, 0]),
        ([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], [(1, 2)], 3, [0, 1, 1, 1, 0]),  # bytes of one character
        (
            [(0, 2), (1, 2), (2, 3)],
            [(2, 3)],
            3,
            [0, 0, 1],
        ),  # a token with the first byte of the next character
        ([(0, 2), (2, 4)], [(0, 2), (2, 4)], 4, [1, 1]),
        ([(0, 2), (2, 4)], [(1, 4)], 4, STRADDLES),
        ([(0, 2), (2, 4)], [(0, 3)], 4, STRADDLES),
        ([(0, 2), (3, 4)], [(0, 2)], 4, "the tokenizer leaves out part of the text"),
        ([(0, 2)], [(0, 2)], 4, "the tokenizer leaves out part of the text"),
        ([], [], 1, "the tokenizer leaves out part of the text"),
    ],
)
def test_token_mask(offsets: Any, spans: Any, length: int, expected: Any) -> None:
    array = np.array(offsets, np.int64).reshape(-1, 2)
    if isinstance(expected, str):
        with pytest.raises(RejectedError, match=expected):
            token_mask(array, spans, length)
    else:
        assert token_mask(array, spans, length).tolist() == expected


def test_the_benchmark_of_many_conversations_finds_none_wrong() -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "chat_masks.py"
    command = [sys.executable, str(program), "--conversations", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| \w+ \| \w+ \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", done.stdout, re.MULTILINE)
    assert len(rows) == 2 * len(FAMILIES)
    assert all(
        int(count) == int(learnt) + int(refused) and wrong == "0" for count, learnt, refused, wrong in rows
    )
