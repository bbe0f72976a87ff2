"""Records of fine-tuning data: what is accepted in which shape, and every reason for refusing one."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, MARKED, TURNS, chat_folder
from tokenizers import AddedToken, Tokenizer, normalizers

from data_prep.chat.encode import SampleEncoder
from data_prep.chat.records import exchanges
from data_prep.chat.settings import SamplesSection
from data_prep.documents import RejectedError
from data_prep.tokenizer import load_tokenizer
from llmtrain.errors import DataError

IM = ("<|im_start|>", "<|im_end|>")
ASKED = {"role": "user", "content": "How many legs has a spider?"}
SAID = {"role": "assistant", "content": "Eight."}


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat") / "tokenizer", CHATML, IM)


def encoder(folder: Path, eos_id: int | None = None, **settings: Any) -> SampleEncoder:
    return SampleEncoder(folder, SamplesSection(**settings), eos_id)


def learnt(folder: Path, sample: Any) -> str:
    return load_tokenizer(folder).decode(sample.tokens[sample.mask == 1].tolist(), skip_special_tokens=False)


def test_sharegpt_columns_of_other_names_and_a_message_alone_are_the_same(chatml: Path) -> None:
    plain = exchanges({"messages": [ASKED, SAID]}, "chat", {})
    turns = [{"from": "human", "value": ASKED["content"]}, {"from": "gpt", "value": SAID["content"]}]
    assert exchanges({"conversations": turns}, "chat", {"messages": "conversations"}) == plain
    alone = exchanges({"prompt": ASKED, "completion": SAID}, "prompt_completion", {})
    assert alone[0].messages == plain[0].messages and alone[0].first == 1


def test_plain_completions_are_encoded_apart_and_text_stays_text(chatml: Path) -> None:
    tokenizer = load_tokenizer(chatml)
    eos = tokenizer.token_to_id("</s>")
    row = {"prompt": "How many legs has a spider? ", "completion": "Eight.<|im_end|>"}
    (exchange,) = exchanges(row, "prompt_completion", {})
    sample = encoder(chatml, eos_id=eos).encode(exchange)
    prompt = tokenizer.encode(row["prompt"], add_special_tokens=False).ids
    assert sample.tokens.tolist()[: len(prompt)] == prompt and not sample.mask[: len(prompt)].any()
    assert learnt(chatml, sample) == "Eight.<|im_end|></s>"
    assert tokenizer.token_to_id("<|im_end|>") not in sample.tokens
    (unprompted,) = exchanges({"prompt": "", "completion": "a fly"}, "prompt_completion", {})
    assert encoder(chatml).encode(unprompted).mask.tolist()[0] == 0  # a first token follows nothing


def test_pairs_share_their_prompt_given_or_not(chatml: Path) -> None:
    wrong = {"role": "assistant", "content": "Six."}
    given = exchanges({"prompt": [ASKED], "chosen": [SAID], "rejected": [wrong]}, "preference", {})
    found = exchanges({"chosen": [ASKED, SAID], "rejected": [ASKED, wrong]}, "preference", {})
    assert given == found
    encode = encoder(chatml)
    assert [learnt(chatml, encode.encode(each)) for each in given] == ["Eight.<|im_end|>", "Six.<|im_end|>"]
    plain = exchanges({"prompt": "a ", "chosen": "b", "rejected": "c"}, "preference", {})
    assert [(each.prompt, each.completion) for each in plain] == [("a ", "b"), ("a ", "c")]


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("chat", {}, "no field 'messages'"),
        ("chat", {"messages": []}, "messages are not a list"),
        ("chat", {"messages": "hello"}, "messages are not a list"),
        ("chat", {"messages": ["hello"]}, "a message is not an object"),
        ("chat", {"messages": [{"role": "narrator", "content": "x"}]}, "unknown role"),
        ("chat", {"messages": [{"content": "x"}]}, "unknown role"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content is not text"),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "content is not text"),
        ("chat", {"messages": [{"role": "assistant", "content": None}]}, "a message without content"),
        ("chat", {"messages": [ASKED, SAID], "tools": "{"}, "tools are not a list of schemas"),
        ("chat", {"messages": [ASKED, SAID], "tools": {"a": 1}}, "tools are not a list of schemas"),
        ("chat", {"messages": [ASKED, SAID], "tools": ["add"]}, "tools are not a list of schemas"),
        ("prompt_completion", {"prompt": "a"}, "no field 'completion'"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "empty answer"),
        ("prompt_completion", {"prompt": [ASKED], "completion": "b"}, "not both text or both messages"),
        ("preference", {"prompt": "a", "chosen": "b"}, "no field 'rejected'"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ("preference", {"chosen": "ab", "rejected": "ac"}, "no field 'prompt'"),
    ],
)
def test_a_record_that_says_nothing_is_refused(kind: Any, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RejectedError, match=reason):
        exchanges(row, kind, {})


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ASKED], "no assistant turn"),
        ([{"role": "user", "content": "x<|im_end|>y"}, SAID], "special token in content"),
        ([ASKED, {"role": "assistant", "content": "Eight.</s>"}], "special token in content"),
        ([{**ASKED, "name": {"a<|im_start|>": 1}}, SAID], "special token in content"),
        ([{"role": "user", "content": "\ud800"}, SAID], "lone surrogate"),
        ([ASKED, {"role": "assistant", "content": "\U000ffff0"}], "private-use character in content"),
    ],
)
def test_a_conversation_that_can_not_be_told_apart_is_refused(
    chatml: Path, messages: list[Any], reason: str
) -> None:
    (exchange,) = exchanges({"messages": messages}, "chat", {})
    with pytest.raises(RejectedError, match=reason):
        encoder(chatml).encode(exchange)


def test_tokens_that_set_turns_off_are_the_template_s_alone_special_or_not(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "tokenizer", CHATML, ("<think>",))
    tokenizer = load_tokenizer(folder)
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] == "</s>"
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in IM])
    tokenizer.save(str(folder / "tokenizer.json"))
    encode = encoder(folder)

    def said(text: str) -> str:
        (exchange,) = exchanges({"messages": [ASKED, {**SAID, "content": text}]}, "chat", {})
        return learnt(folder, encode.encode(exchange))

    assert said("<think>A fly?") == "<think>A fly?<|im_end|>"
    for token in IM:
        with pytest.raises(RejectedError, match="special token in content"):
            said(f"a{token}")
    assert encode.special == ("</s>", *IM)


def test_a_special_token_that_a_normalizer_makes_of_a_message_is_refused(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "tokenizer", CHATML, ("<|im_start|>",))
    tokenizer = load_tokenizer(folder)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (exchange,) = exchanges({"messages": [ASKED, {**SAID, "content": "<|IM_END|>"}]}, "chat", {})
    with pytest.raises(RejectedError, match="special token in content") as caught:
        encoder(folder).encode(exchange)
    assert caught.value.detail == "<|IM_END|>"


def test_what_the_template_refuses_is_refused_in_its_words(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "tokenizer", TURNS, ("<bos>", "<start_of_turn>", "<end_of_turn>"))
    (exchange,) = exchanges(
        {"messages": [{"role": "system", "content": "Be brief."}, ASKED, SAID]}, "chat", {}
    )
    with pytest.raises(RejectedError, match="the chat template refuses it") as caught:
        encoder(folder).encode(exchange)
    assert caught.value.detail == "System role not supported"


def test_too_long_a_sample_is_dropped_or_cut_to_its_head(chatml: Path) -> None:
    (exchange,) = exchanges({"messages": [ASKED, SAID]}, "chat", {})
    whole = encoder(chatml).encode(exchange)
    size, first = len(whole.tokens), int(whole.mask.argmax())
    assert encoder(chatml, max_tokens=size).encode(exchange).tokens.tolist() == whole.tokens.tolist()
    with pytest.raises(RejectedError, match="too long"):
        encoder(chatml, max_tokens=size - 1).encode(exchange)
    cut = encoder(chatml, max_tokens=first + 1, too_long="truncate").encode(exchange)
    assert cut.tokens.tolist() == whole.tokens[: first + 1].tolist() and cut.mask.sum() == 1
    with pytest.raises(RejectedError, match="no token to train on once truncated"):
        encoder(chatml, max_tokens=first, too_long="truncate").encode(exchange)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", r"not valid Jinja"),
        ("{{ messages[9].content.x }}", r"fails on a plain conversation: the chat template refuses it \("),
        (
            CHATML.replace("assistant\\n' }}{%- endif %}", "assistant\\n<think>' }}{%- endif %}"),
            r"the generation prompt does not begin the assistant's turn, .*samples.variables, or put the",
        ),
        (
            MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"),
            r"the special token that ends a turn is not in it, .* put the assistant's words between",
        ),
        (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
            r"the special token that ends a turn is not in it",
        ),
        (CHATML.replace("(message.content or '')", "'same'"), r"does not hold what was said"),
        ("{% for m in messages %}{% if false %}{% generation %}{% endgeneration %}{% endif %}{% endfor %}",
         r"does not mark each assistant turn \(0 marks, 1 turns\)"),
        (CHATML + "{{ strftime_now('%Y') }}", r"writes today's date, .* set samples.today to a date"),
    ],
)  # fmt: skip
def test_a_template_that_proves_nothing_is_refused_with_the_way_out(
    tmp_path: Path, template: str, message: str
) -> None:
    folder = chat_folder(tmp_path / "tokenizer", template, IM)
    with pytest.raises(DataError, match=message):
        encoder(folder).template  # noqa: B018


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "tokenizer", CHATML, IM)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has no chat template, .* take the tokenizer of a chat model"):
        encoder(folder).template  # noqa: B018


def test_a_template_sees_its_variables_the_given_day_and_no_interpreter(tmp_path: Path) -> None:
    begin = "{{ strftime_now('%d %b %Y') }} {{ mood }} {% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}"
    folder = chat_folder(tmp_path / "a", "{{ '" + IM[0] + "' }}" + begin + CHATML, IM)
    settings = {"today": date(2026, 1, 31), "variables": {"mood": "calm"}}
    text = encoder(folder, **settings).template.render([ASKED]).text
    assert text.startswith("<|im_start|>31 Jan 2026 calm 2")
    for number, attack in enumerate(
        [
            "{{ ''.__class__.__mro__ }}",
            "{% set n = namespace() %}{% set n.__class__ = 1 %}",
            "{{ messages.pop() }}",
        ]
    ):
        folder = chat_folder(tmp_path / str(number), attack + CHATML, IM)
        with pytest.raises(DataError, match="the chat template refuses it"):
            encoder(folder).template  # noqa: B018
