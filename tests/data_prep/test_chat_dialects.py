"""The ways in which data sets write a conversation: each becomes what transformers' templates read, has its
effect, or is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, MARKED, chat_folder
from test_chat_build import built, corpus_file, documents, talks

from data_prep.build import build
from data_prep.chat.encode import SampleEncoder
from data_prep.chat.records import Exchange, exchanges
from data_prep.chat.settings import SamplesSection
from data_prep.chat.spans import NOTHING_LEARNT
from data_prep.documents import RejectedError
from data_prep.tokenizer import load_tokenizer
from llmtrain.errors import ConfigError, DataError

IM = ("<|im_start|>", "<|im_end|>")
ASKED, SAID = {"role": "user", "content": "a spider?"}, {"role": "assistant", "content": "Eight."}
MORE, THEN = {"role": "user", "content": "a fly?"}, {"role": "assistant", "content": "Six."}
ADD = {"name": "add", "arguments": {"x": 1, "unit": "mm"}}
CALLED = '<call>{"name": "add", "arguments": {"x": 1, "unit": "mm"}}</call><|im_end|>'


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat") / "tokenizer", CHATML, IM)


def encoder(folder: Path, **settings: Any) -> SampleEncoder:
    return SampleEncoder(folder, SamplesSection(**settings), None)


def chat(messages: list[Any], **columns: Any) -> Exchange:
    return exchanges({"messages": messages, **columns}, "chat", {})[0]


def read_and_learnt(folder: Path, exchange: Exchange, **settings: Any) -> tuple[str, str]:
    sample, decode = encoder(folder, **settings).encode(exchange), load_tokenizer(folder).decode
    texts = (
        decode(part.tolist(), skip_special_tokens=False)
        for part in (sample.tokens, sample.tokens[sample.mask == 1])
    )
    return tuple(texts)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "off", [{"weight": 0}, {"weight": 0.0}, {"loss_weight": 0}, {"train": False}, {"training": False},
            {"loss": False}, {"loss_mask": 0}, {"masked": True}]
)  # fmt: skip
def test_a_turn_of_weight_zero_is_read_and_not_learnt(
    chatml: Path, tmp_path: Path, off: dict[str, Any]
) -> None:
    on = {key: not value for key, value in off.items()}
    marked = chat_folder(tmp_path / "marked", MARKED, IM)
    for folder in (chatml, marked):
        for first, second, expected in [
            (off, {}, "Six.<|im_end|>"),
            (on, off, "Eight.<|im_end|>"),
            ({"weight": None}, on, "Eight.<|im_end|>Six.<|im_end|>"),
        ]:
            exchange = chat([ASKED, {**SAID, **first}, MORE, {**THEN, **second}])
            whole, learnt = read_and_learnt(folder, exchange)
            assert learnt == expected and "Eight." in whole and "Six." in whole
            assert not any(off.keys() & message.keys() for message in exchange.messages)
    with pytest.raises(RejectedError, match=NOTHING_LEARNT):
        encoder(chatml, turns="last").encode(chat([ASKED, SAID, MORE, {**THEN, **off}]))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**SAID, "weight": 0.5}, "weight is neither 0 nor 1"),
        ({**SAID, "weight": "0"}, "weight is neither 0 nor 1"),
        ({**SAID, "weight": [0]}, "weight is neither 0 nor 1"),
        ({**SAID, "weight": 1, "train": False}, "to be learnt and not to be learnt"),
        ({**ASKED, "train": True}, "a turn that is not the assistant's is to be learnt"),
        ({**SAID, "mask": True}, "a message's 'mask' can't be honoured"),
        ({**SAID, "loss_scale": 2}, "a message's 'loss_scale' can't be honoured"),
        ({**ASKED, "images": ["a.png"]}, "a message's 'images' can't be honoured"),
        ({"from": ["gpt"], "value": "x"}, "unknown role"),
        ({"from": {"a": 1}, "value": "x"}, "unknown role"),
        ({"role": ["user"], "content": "x"}, "unknown role"),
        ({"role": True, "content": "x"}, "unknown role"),
        ({"from": "gpt"}, "a message without content"),
        ({"from": "gpt", "value": {"a": 1}}, "content is not text"),
        ({**SAID, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content is not text"),
        ({**SAID, "content": [{"type": ["text"], "text": "x"}]}, "content is not text"),
        ({**SAID, "content": [{"type": "text", "text": 7}]}, "content is not text"),
        ({**SAID, "content": [[7]]}, "content is not text"),
        ({**SAID, "reasoning": ["a"]}, "reasoning is not text"),
        ({**SAID, "tool_calls": "add"}, "tool calls are not a list of calls"),
        ({**SAID, "tool_calls": ["add"]}, "tool calls are not a list of calls"),
        ({**SAID, "tool_calls": 7}, "tool calls are not a list of calls"),
        ({**SAID, "tool_calls": [{"function": {"name": {}}}]}, "tool calls are not a list of calls"),
        ({**SAID, "tool_calls": [{"function": {**ADD, "arguments": "x=1"}}]}, "are not a JSON object"),
        ({**SAID, "tool_calls": [{"function": {**ADD, "arguments": "[1]"}}]}, "are not a JSON object"),
        ({**SAID, "tool_calls": [{"function": {**ADD, "arguments": 7}}]}, "are not a JSON object"),
        ({"from": "function_call", "value": "add(1)"}, "tool calls are not a list of calls"),
        ({"from": "function_call", "value": ""}, "a message without content"),
    ],
)  # fmt: skip
def test_what_a_message_says_and_can_not_have_is_refused(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(RejectedError, match=reason):
        chat([ASKED, message])


@pytest.mark.parametrize(
    "value", [7, 1.5, True, "x", "[", [], [[]], [7], {}, {"a": [{}]}, b"\xff", [None], "[7]"]
)
def test_no_value_of_any_type_in_any_place_ends_the_build(chatml: Path, value: Any) -> None:
    row = {"messages": [ASKED, SAID], "prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"}
    call = {**SAID, "tool_calls": [{"function": ADD}]}
    rows = [{**row, key: value} for key in (*row, "system", "tools")]
    rows += [
        {"messages": [ASKED, {**call, key: value}]} for key in (*call, "function_call", "name", "thinking")
    ]
    rows += [
        {"messages": [ASKED, {**SAID, "tool_calls": [{"function": {**ADD, key: value}}]}]} for key in ADD
    ]
    rows += [{"messages": [{"from": value, "value": value}, SAID]}, {"messages": [value]}]
    encode = encoder(chatml)
    for kind in ("chat", "prompt_completion", "preference"):
        for each in rows:
            try:
                found = exchanges(row | each, kind, {})  # type: ignore[arg-type]
                for exchange in found:
                    encode.encode(exchange)
                    encode.without_effect(exchange)
            except RejectedError:
                continue


def test_a_record_of_odd_types_is_counted_by_its_reason(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(600):
        deep = {"a": deep}
    odd = [{"messages": [{"from": ["human"], "value": "a"}]}, {"messages": [{**ASKED, "name": deep}, SAID]}]
    manifest = built(tmp_path, [*talks(30), *odd])
    assert manifest.counts.rejected["unknown role"] == 1 and manifest.counts.documents_out in (30, 31)


def test_arguments_as_json_text_are_an_object_where_the_template_writes_one(
    chatml: Path, tmp_path: Path
) -> None:
    texts = [ADD, {**ADD, "arguments": json.dumps(ADD["arguments"])}]
    shapes = [[{"type": "function", "id": "a", "function": each}] for each in texts]
    shapes += [json.dumps(shapes[1]), texts[1:], texts[1], [json.dumps(shapes[0][0])]]
    calls = [{"role": "assistant", "content": "", "tool_calls": shape} for shape in shapes]
    calls.append({"role": "assistant", "content": "", "function_call": texts[1]})
    calls.append({"from": "function_call", "value": json.dumps(texts[1])})
    calls.append({"from": "function_call", "value": json.dumps([texts[0]])})
    for call in calls:
        assert read_and_learnt(chatml, chat([ASKED, call]))[1] == CALLED
    plain = CHATML.replace("call.function | tojson", "call.function.name + ' ' + call.function.arguments")
    as_text = chat_folder(tmp_path / "text", plain, IM)
    for call in calls:
        expected = '<call>add {"x": 1, "unit": "mm"}</call><|im_end|>'
        assert read_and_learnt(as_text, chat([ASKED, call]))[1] == expected
    none = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": ""}}],
    }
    assert '"arguments": {}' in read_and_learnt(chatml, chat([ASKED, none]))[1]


def test_what_a_template_leaves_out_is_refused(chatml: Path, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "t", MARKED, IM)
    call = {**SAID, "tool_calls": [{"function": ADD}]}
    with pytest.raises(RejectedError, match="the chat template writes no tool calls"):
        encoder(folder).encode(chat([ASKED, call]))
    three = "message.role in ['user', 'assistant', 'system']"
    deaf = chat_folder(
        tmp_path / "d", CHATML.replace("in messages %}", "in messages if " + three + " %}"), IM
    )
    deaf_encoder = encoder(deaf)
    assert deaf_encoder.encode(chat([ASKED, SAID])).mask.any()
    with pytest.raises(RejectedError, match="leaves out a message") as caught:
        deaf_encoder.encode(chat([ASKED, call, {"role": "tool", "content": "2"}, THEN]))
    assert caught.value.detail == "of role 'tool'"


def test_a_call_gets_the_content_and_arguments_with_which_the_template_writes_it(tmp_path: Path) -> None:
    """DeepSeek R1's writes a call only beside a content of null, and its arguments as they stand."""
    only_null = CHATML.replace(
        "message.tool_calls or []", "(message.tool_calls or []) if message.content is none"
    )
    as_it_stands = only_null.replace("call.function | tojson", "call.function.name + call.function.arguments")
    prints = CHATML.replace("(message.content or '')", "message.content | string")
    for template, expected in [
        (only_null, CALLED),
        (as_it_stands, '<call>add{"x": 1, "unit": "mm"}</call><|im_end|>'),
        (prints, CALLED),
    ]:
        folder = chat_folder(tmp_path / str(len(template)), template, IM)
        for content in ({}, {"content": ""}, {"content": None}):
            call = {"role": "assistant", **content, "tool_calls": [{"function": ADD}]}
            assert read_and_learnt(folder, chat([ASKED, call]))[1] == expected
    beside = {**SAID, "tool_calls": [{"function": ADD}]}
    with pytest.raises(RejectedError, match="the chat template writes no tool calls"):
        encoder(chat_folder(tmp_path / "beside", only_null, IM)).encode(chat([ASKED, beside]))


def test_a_table_s_nulls_are_keys_that_are_not_there(tmp_path: Path) -> None:
    """A struct of Arrow has every field of every row: `y` of one call is null in the other."""
    import pyarrow
    import pyarrow.parquet

    def row(key: str) -> dict[str, Any]:
        call = {"function": {"name": key, "arguments": {key: 1}}}
        schema = {"name": key, "parameters": {"properties": {key: {"type": "number"}}}}
        said = {"role": "assistant", "content": [{"type": "text", "text": "So: "}], "tool_calls": [call]}
        return {
            "messages": [{"role": "user", "content": [{"type": "text", "text": key, "of": key}]}, said],
            "tools": [schema],
        }

    rows = [row("x"), row("y")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert "null" in json.dumps(pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist())
    built(tmp_path, rows, output=str(tmp_path / "json"))
    built(tmp_path, rows, sources=[{"path": str(tmp_path / "rows.parquet")}])
    found = documents(tmp_path / "out")
    assert found == documents(tmp_path / "json") and len(found) == 2
    assert not any("null" in whole or "None" in whole for whole, _ in found)
    assert found[0][1] == 'So: <call>{"name": "x", "arguments": {"x": 1}}</call><|im_end|>'


def test_nulls_of_json_stay_where_they_are_meant(chatml: Path) -> None:
    call = {**SAID, "tool_calls": [{"id": None, "function": {"name": "add", "arguments": {"x": None}}}]}
    schema = {
        "name": "add",
        "strict": None,
        "parameters": {"properties": {"x": {"default": None}, "y": None}},
    }
    whole, learnt = read_and_learnt(chatml, chat([ASKED, call], tools=[schema]))
    assert '"arguments": {"x": null}' in learnt
    assert '{"name": "add", "parameters": {"properties": {"x": {"default": null}}}}' in whole


def test_sharegpt_with_tools_is_what_openai_s_form_says(chatml: Path) -> None:
    schema = {"name": "add", "description": "adds", "parameters": {}}
    turns = [("human", "1?"), ("function_call", json.dumps(ADD)), ("observation", "2"), ("gpt", "Two.")]
    same = [
        ("Human", "1?"),
        ("tool_call", json.dumps([ADD])),
        ("function_response", "2"),
        ("chatgpt", "Two."),
    ]
    openai = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": ADD}]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": [{"type": "text", "text": "Tw"}, {"type": "text", "text": "o."}]},
    ]
    expected = chat(openai, tools=[{"type": "function", "function": schema}])
    for given in (turns, same):
        messages = [{"from": speaker, "value": value} for speaker, value in given]
        names = {"messages": "conversations"}
        columns = {"conversations": messages, "system": "Add.", "tools": json.dumps([schema])}
        assert exchanges(columns, "chat", names) == [expected]
    assert read_and_learnt(chatml, expected)[1] == CALLED + "Two.<|im_end|>"
    assert chat(openai, system="Add.").messages == expected.messages
    with pytest.raises(RejectedError, match="two system texts"):
        chat(openai, system="Subtract.")
    legacy = [
        {"role": "user", "content": "1?"},
        {**SAID, "function_call": ADD},
        {"role": "function", "name": "add", "content": "2"},
    ]
    assert [message["role"] for message in chat(legacy).messages] == ["user", "assistant", "tool"]
    assert chat(json.dumps(openai)).messages == expected.messages  # type: ignore[arg-type]


def test_half_the_data_does_not_go_for_one_role_s_name(tmp_path: Path) -> None:
    strange = [{"messages": [{"from": "narrator", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 20
    path = corpus_file(tmp_path, talks(30) + strange)
    with pytest.raises(
        DataError,
        match=r"fraction = 0.1: 20 of 50 .*20 unknown role \(such as rows.jsonl:31 \('narrator'\)\)",
    ):
        build(path)
    assert not (tmp_path / "out").exists()
    assert build(path, ["max_reject_fraction=0.5"]).manifest.counts.documents_out == 30


def test_what_a_template_does_not_read_is_said(tmp_path: Path) -> None:
    rows = talks(20)
    for row in rows[:5]:
        row["messages"][0] |= {"id": 7, "name": None}
        row["messages"][-1]["reasoning"] = "for"
    path = corpus_file(tmp_path, rows)
    report = build(path)
    assert {what: count for what, count in report.manifest.counts.found.items()} == {
        "note: message key 'id', which the chat template does not read": 5,
        "note: message key 'reasoning_content', which the chat template does not read": 5,
    }
    assert "       5  message key 'id', which the chat template does not read\n" in report.render()


def test_alpaca_s_prompts_are_read_whole_and_put_through_the_template_when_asked(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Add {k}.", "input": "to 1" if k % 2 else "", "output": f"{k + 1}"} for k in range(8)
    ]
    content = {
        "kind": "prompt_completion",
        "sources": [
            {"path": str(tmp_path / "rows.jsonl"), "field": {"prompt": "instruction", "completion": "output"}}
        ],
    }
    report = build(corpus_file(tmp_path, rows, **content))
    prompts = [f"Add {k}.\n\nto 1" if k % 2 else f"Add {k}." for k in range(8)]
    assert documents(tmp_path / "out") == [(f"{prompts[k]}{k + 1}</s>", f"{k + 1}</s>") for k in range(8)]
    assert (
        "       8  plain text, as it stands (samples.apply_chat_template: true makes turns of it)"
        in report.render()
    )
    rows[0]["system"] = "Count."
    chatted = {**content, "samples": {"apply_chat_template": True}, "output": str(tmp_path / "chat")}
    built(tmp_path, rows, **chatted)
    found = documents(tmp_path / "chat")
    start, end = "<|im_start|>", "<|im_end|>\n"
    assert found == [
        (
            f"{start}system\n{'Be brief.' if k else 'Count.'}{end}{start}user\n{prompts[k]}{end}"
            f"{start}assistant\n{k + 1}{end}",
            f"{k + 1}<|im_end|>",
        )
        for k in range(8)
    ]
    with pytest.raises(DataError, match="a system text or tools, and no chat template is applied"):
        build(corpus_file(tmp_path, rows, **content, strict=True), overwrite=True)
    with pytest.raises(
        ConfigError, match="samples.apply_chat_template is for plain prompts, and kind is chat"
    ):
        built(tmp_path, talks(2), samples={"apply_chat_template": True})


def test_a_table_without_the_optional_columns_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pairs = [
        {"chosen": [ASKED, SAID], "rejected": [ASKED, THEN]},
        {"chosen": [MORE, THEN], "rejected": [MORE, SAID]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), tmp_path / "rows.parquet")
    source = [{"path": str(tmp_path / "rows.parquet")}]
    assert built(tmp_path, [], kind="preference", sources=source).counts.documents_out == 2
