"""What ends a turn stands in the manifest of fine-tuning data, so that an export can say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import CHATML, FAMILIES, REASONING, SENTENCES, chat_folder
from test_chat_build import built, talks

from data_prep.chat.settings import SamplesSection
from data_prep.chat.turn_ends import turn_ends
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import MANIFEST
from llmtrain.data.verify import verify

IM = ("<|im_start|>", "<|im_end|>")
# Llama 3.1's way: a turn that waits for a tool's answer has an end of its own.
CALLS = CHATML.replace(
    "{{- '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_gen", "{{- end }}\n{%- endfor %}\n{%- if add_gen"
)
CALLS = CALLS.replace(
    "{{- '<|im_start|>' + message.role",
    "{%- set end = '<|eom|>\\n' if message.tool_calls else '<|im_end|>\\n' %}\n"
    "{{- '<|im_start|>' + message.role",
)


@pytest.mark.parametrize(
    "template, special, turns, ends",
    [
        (FAMILIES["chatml"].template, IM, "all", ["<|im_end|>"]),
        (FAMILIES["marked"].template, IM, "all", ["<|im_end|>"]),
        (FAMILIES["headers"].template, FAMILIES["headers"].special, "all", ["<|eot_id|>"]),
        (FAMILIES["turns"].template, FAMILIES["turns"].special, "all", ["<end_of_turn>"]),
        (FAMILIES["closed"].template, FAMILIES["closed"].special, "all", ["</s>", "<|end|>"]),
        (REASONING, (*IM, "<think>", "</think>"), "last", ["<|im_end|>"]),
        (SENTENCES, ("<s>",), "all", ["</s>"]),
        (CALLS, (*IM, "<|eom|>"), "all", ["<|eom|>", "<|im_end|>"]),
    ],
)  # fmt: skip
def test_each_way_in_which_a_turn_that_is_learnt_ends(
    tmp_path: Path, template: str, special: tuple[str, ...], turns: str, ends: list[str]
) -> None:
    folder = chat_folder(tmp_path / "t", template, special)
    found = turn_ends(folder, SamplesSection(turns=turns))
    assert sorted(found) == ends
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert found == {token["content"]: token["id"] for token in added if token["content"] in ends}


def test_the_manifest_says_it_and_one_that_does_not_is_read_off_its_masks(tmp_path: Path) -> None:
    manifest = built(tmp_path, talks(30))
    assert list(manifest.turn_ends) == ["<|im_end|>"]
    verify(tmp_path / "out")
    (end,) = manifest.turn_ends.values()
    assert open_dataset(tmp_path / "out", "train").turn_ends == [end]
    path = tmp_path / "out" / MANIFEST
    content = json.loads(path.read_text())
    del content["turn_ends"]  # as 0.3 wrote it
    path.write_text(json.dumps(content))
    assert open_dataset(tmp_path / "out", "train").turn_ends == [end]


def test_plain_text_and_plain_completions_say_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": f"{k} legs", "completion": "Eight."} for k in range(20)]
    (tmp_path / "tokenizer").mkdir()
    chat_folder(tmp_path / "tokenizer", "", IM)
    (tmp_path / "tokenizer" / "chat_template.jinja").unlink()
    manifest = built(tmp_path, rows, kind="prompt_completion")
    assert manifest.turn_ends == {} and "turn_ends" not in json.loads(
        (tmp_path / "out" / MANIFEST).read_text()
    )
