"""Folders of a tokenizer and of a data set as people have them: named templates, tokens that take in white
space, a README beside the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import CHATML, MARKED, chat_folder
from test_chat_build import IM, corpus_file, talks
from test_chat_dialects import ASKED, MORE, SAID, THEN, chat, encoder, read_and_learnt
from tokenizers import Tokenizer

from data_prep.build import build
from llmtrain.errors import DataError


def named_templates(folder: Path, **templates: str) -> Path:
    chat_folder(folder, CHATML, IM)
    for name, template in templates.items():
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(template)
    return folder


def test_tools_take_the_template_for_tools_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    with_tools = CHATML.replace("Tools:", "You may call:")
    folder = named_templates(
        tmp_path / "tokenizer", tool_use=with_tools, rag=CHATML.replace("brief", "wordy")
    )
    theirs, ours = AutoTokenizer.from_pretrained(folder), encoder(folder)
    for tools in (None, [{"type": "function", "function": {"name": "add"}}]):
        exchange = chat([ASKED, SAID], tools=tools)
        expected = theirs.apply_chat_template([ASKED, SAID], tools=tools)["input_ids"]
        assert ours.encode(exchange).tokens.tolist() == expected
        assert ("You may call:" in ours.rendering.decode(expected)) == (tools is not None)
    assert "Be wordy." in read_and_learnt(folder, chat([ASKED, SAID]), chat_template="rag")[0]
    with pytest.raises(
        DataError, match=r"samples.chat_template = 'rga': .* \(it has default, rag, tool_use\)"
    ):
        encoder(folder, chat_template="rga").check_template()


def test_named_templates_are_copied_told_of_and_part_of_what_a_dataset_is(tmp_path: Path) -> None:
    folder = named_templates(tmp_path / "tokenizer", rag=CHATML)
    report = build(corpus_file(tmp_path, talks(5)))
    assert (tmp_path / "out/tokenizer/additional_chat_templates/rag.jinja").read_text() == CHATML
    assert (
        "the chat template 'rag' of the tokenizer is not used (samples.chat_template names one)"
        in report.render()
    )
    (folder / "additional_chat_templates/rag.jinja").write_text(MARKED)
    with pytest.raises(DataError, match=r"holds another dataset \(it differs in tokenizer\)"):
        build(tmp_path / "corpus.yaml")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        DataError, match=r"has no default chat template \(it has rag\): name one in samples.chat_template"
    ):
        build(tmp_path / "corpus.yaml", overwrite=True)


PHI = """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}
"""


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("stripping", [{"rstrip": True}, {"lstrip": True}, {"rstrip": True, "lstrip": True}])
def test_tokens_that_take_in_white_space_are_learnt_by_their_own_place(
    tmp_path: Path, kind: str, stripping: dict[str, bool]
) -> None:
    """Phi-3's `<|end|>` takes in the line end behind it, which no model is to write."""
    from transformers import AutoTokenizer

    special = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    folder = chat_folder(tmp_path / "tokenizer", PHI, special, kind)
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token |= stripping if token["content"] in special else {}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    messages = [ASKED, SAID, MORE, {**THEN, "content": "Six, \n two wings"}]
    sample = encoder(folder).encode(chat(messages))
    assert (
        sample.tokens.tolist()
        == AutoTokenizer.from_pretrained(folder).apply_chat_template(messages)["input_ids"]
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    learnt = [tokenizer.id_to_token(number) for number in sample.tokens[sample.mask == 1].tolist()]
    assert learnt.count("<|end|>") == 2 and not {"<|assistant|>", "<|user|>"} & set(learnt)
    said = tokenizer.decode(sample.tokens[sample.mask == 1].tolist(), skip_special_tokens=False)
    said = said.replace("\n</s>", "</s>")  # the line end is a token where none takes it in
    assert (
        said.replace(" <|end|>", "<|end|>").replace("<|end|> ", "<|end|>")
        == "Eight.<|end|>Six, \n two wings<|end|></s>"
    )


def test_a_data_set_cloned_from_the_hub_is_read_beside_its_readme(tmp_path: Path) -> None:
    rows = talks(12)
    clone = tmp_path / "clone"
    (clone / "data").mkdir(parents=True)
    (clone / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("README.md", "LICENSE", "dataset_infos.json", ".gitattributes"):
        (clone / name).write_text("{}")
    for where in ("hub", "path"):
        output = str(tmp_path / where)
        report = build(corpus_file(tmp_path, [], sources=[{where: str(clone)}], output=output))
        assert report.manifest.counts.documents_in == report.manifest.counts.documents_out == 12
        assert "no records are read from LICENSE, README.md, dataset_infos.json" in report.render()
