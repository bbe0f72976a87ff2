"""Conversations that are too long: where they may be cut, by a build and a run alike, and what is said."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from chat_proof import conversation
from chat_templates import CHATML, FAMILIES, REASONING, chat_folder
from test_chat_build import IM, built, corpus_file, talks

from data_prep.build import build
from data_prep.chat.encode import SampleEncoder
from data_prep.chat.records import Exchange
from data_prep.chat.settings import SamplesSection
from data_prep.documents import RejectedError
from data_prep.show import show
from llmtrain.config.schema import DataSection
from llmtrain.data.batches import Batches
from llmtrain.errors import ConfigError, DataError
from llmtrain.plan.prepared import prepare
from llmtrain.report.planned import planned

TURNS = tuple(
    {"role": role, "content": content}
    for role, content in [
        ("system", "Be kind."),
        *[("user", "a?"), ("assistant", "A."), ("user", "b?"), ("assistant", "B."), ("user", "c?")],
        ("assistant", "C."),
    ]
)
LONG = {"messages": [{"role": "user", "content": "legs " * 300}, {"role": "assistant", "content": "Eight."}]}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_leaves_what_the_template_writes_without_the_first_turns(tmp_path: Path, name: str) -> None:
    family, cuts, rng = FAMILIES[name], 0, random.Random(name)
    folder = chat_folder(tmp_path / "tokenizer", family.template, family.special)
    encode = SampleEncoder(folder, SamplesSection(), None).encode
    for _ in range(40):
        messages = conversation(rng, family.system)
        lead = messages[0]["role"] == "system"
        starts = [k for k, message in enumerate(messages) if message["role"] == "user"][1:]
        try:
            sample = encode(Exchange(tuple(messages)))
            shorter = [encode(Exchange((*messages[:lead], *messages[k:]))) for k in starts]
        except RejectedError:
            continue
        assert len(sample.restarts.places) == len(starts)
        for rest, expected in zip(sample.restarts.places, shorter, strict=True):
            left = np.r_[: sample.restarts.head, rest : len(sample.tokens)]
            assert sample.tokens[left].tolist() == expected.tokens.tolist()
            assert sample.mask[left].tolist() == expected.mask.tolist()
        cuts += len(starts)
    assert cuts > 10


def test_a_system_text_inside_the_first_user_s_turn_stays_there(tmp_path: Path) -> None:
    """Gemma's way: the head then ends in the midst of a turn."""
    merged = (
        "{%- set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{%- for m in messages if m.role != 'system' %}"
        "{{- '<|im_start|>' + m.role + '\\n' + (s + '\\n\\n' if loop.first and s else '') + m.content }}"
        "{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    folder = chat_folder(tmp_path / "tokenizer", merged, IM)
    encoder = SampleEncoder(folder, SamplesSection(), None)
    sample = encoder.encode(Exchange(TURNS))
    texts = []
    for rest in sample.restarts.places:
        left = np.r_[: sample.restarts.head, rest : len(sample.tokens)]
        texts.append(encoder.rendering.decode(sample.tokens[left].tolist(), skip_special_tokens=False))
    assert texts == [encoder.template.render([TURNS[0], *TURNS[k:]]).text for k in (3, 5)]


@pytest.mark.parametrize(("template", "turns"), [(CHATML, "all"), (REASONING, "last")])
def test_first_turns_go_until_the_rest_fits(tmp_path: Path, template: str, turns: str) -> None:
    folder = chat_folder(tmp_path / "tokenizer", template, IM)

    def encoded(messages: tuple, **more: object) -> list[int]:  # type: ignore[type-arg]
        settings = SamplesSection(turns=turns, **more)  # type: ignore[arg-type]
        return SampleEncoder(folder, settings, None).encode(Exchange(messages)).tokens.tolist()

    whole, two, one = (encoded((TURNS[0], *TURNS[k:])) for k in (1, 3, 5))
    sizes = {len(whole): whole, len(whole) - 1: two, len(two): two, len(two) - 1: one, len(one): one}
    for longest, expected in sizes.items():
        assert encoded(TURNS, max_tokens=longest, too_long="truncate_left") == expected
    with pytest.raises(RejectedError, match="too long, and not even its last turns fit"):
        encoded(TURNS, max_tokens=len(one) - 1, too_long="truncate_left")


def test_a_run_shortens_just_as_a_build_does(tmp_path: Path) -> None:
    """Also what is no conversation: a plain prompt is cut from its left, its answer never."""
    plain = [{"prompt": "how many legs " * (k % 9), "completion": f"{k} legs"} for k in range(60)]
    for kind, rows in (("chat", talks(80)), ("prompt_completion", plain)):
        where = tmp_path / kind
        where.mkdir()
        built(where, rows, kind=kind)
        samples = {"max_tokens": 40, "too_long": "truncate_left"}
        manifest = built(where, rows, kind=kind, samples=samples, output=str(where / "short"))
        runs = []
        for output, more in (("out", {"too_long": "truncate_left"}), ("short", {})):
            data = {"train": [{"path": str(where / output)}], "seq_len": 40, "packing": "best_fit", **more}
            runs.append(Batches.of_run(DataSection.model_validate(data), 4, 1, 1, {}))
        arrays = [run.rows(0, run.rows_per_epoch).read(0, run.rows_per_epoch) for run in runs]
        for name in ("tokens", "labels", "positions"):
            assert np.array_equal(*(getattr(each, name) for each in arrays))
        (excess,) = (dataset.excess for dataset in runs[0].datasets)
        assert excess is not None and excess.shortened > 5 and runs[0].notes != runs[1].notes == ()
        dropped = "too long, and not even its last turns fit"
        assert manifest.counts.rejected.get(dropped, 0) == excess.dropped


def test_the_build_and_show_say_what_is_longer_than_a_row(tmp_path: Path) -> None:
    report = build(corpus_file(tmp_path, [*talks(20), LONG]))
    assert "train: the longest document has 324 tokens; 1 of more than 256\n" in report.render()
    text = show(tmp_path / "out", rows=12, seq_len=128)
    assert f"{tmp_path / 'out'} (train): 1 of 21 conversations are longer than a row of 128 tokens" in text
    assert "── document, cut: tokens 58 to 97 of 97 ──" in text
    assert text.count(" of 324, longer than a row of 128 ──") == text.count("longer than a row") - 1 >= 3


def test_plan_and_start_count_them_and_a_run_without_a_policy_is_refused(tmp_path: Path) -> None:
    built(tmp_path, [LONG, *talks(40)], splits={"valid": 0.3})
    where = str(tmp_path / "out")
    content = {
        "name": "sft",
        "output_dir": str(tmp_path / "run"),
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
            }
        },
        "data": {
            "train": [{"path": where}],
            "eval": [{"path": where, "split": "valid"}],
            "seq_len": 128,
            "packing": "best_fit",
        },
        "batch": {"rows": 2},
        "schedule": {"steps": 2},
        "precision": "fp32",
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    ways = "set data.too_long: drop, or truncate_left"
    with pytest.raises(ConfigError, match=rf"data.seq_len = 128 \(.*run.yaml:\d+\): .*1 of \d+ conv.*{ways}"):
        planned(str(path), [], 1, "cpu")
    note = "the longest 324: 1 left out (data.too_long)"
    assert note in planned(str(path), ["data.too_long=drop"], 1, "cpu").as_text()
    prepared = prepare(path, ["data.too_long=drop"], 1, "cpu")
    assert any(note in each for each in prepared.batches.notes)  # which the run warns of when it starts
    swapped = ["data.train.0.split=valid", "data.eval.0.split=train"]
    with pytest.raises(DataError, match=rf"out \(train\): 1 of \d+ conversations .*{ways}"):
        prepare(path, swapped, 1, "cpu")
