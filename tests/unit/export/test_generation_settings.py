"""Generation by an export stops where training taught it to, and keeps what the source said besides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from export_models import VOCAB, build_model, reload_here, save_model, write_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "data"))
from dataset_folders import make_dataset  # noqa: E402

from llmtrain.cli import main  # noqa: E402
from llmtrain.config.schema import ModelSection  # noqa: E402
from llmtrain.data.dataset import Dataset, open_dataset  # noqa: E402
from llmtrain.data.manifest import MANIFEST  # noqa: E402
from llmtrain.export import export  # noqa: E402
from llmtrain.generate import Sampling, generate  # noqa: E402
from llmtrain.model.configuration import hf_config  # noqa: E402
from llmtrain.model.generation import settings_of_run  # noqa: E402

EOS, TURN_END = 5, 7
RUN = "name: t\nmodel: {config: {model_type: llama}}\ndata: {train: [{path: d}]}\nschedule: {steps: 3}\n"
SAID = {"eos_token_id": [40, 42], "temperature": 0.6, "top_k": 20, "do_sample": True, "bos_token_id": 9}


def conversations(folder: Path) -> Dataset:
    """Fine-tuning data whose turns end with TURN_END, whose documents end with EOS."""
    masks = {"train": [[[0, 1, 1]] * 4]}
    make_dataset(folder, {"train": [[[1, 3, TURN_END]] * 4]}, VOCAB, kind="chat", masks=masks)
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    content["tokenizer"] |= {"eos_id": EOS, "special": {"<eos>": EOS, "<end>": TURN_END}}
    path.write_text(json.dumps(content | {"turn_ends": {"<end>": TURN_END}}))
    return open_dataset(folder, "train")


def source(folder: Path, said: dict[str, Any] | None, **config: Any) -> ModelSection:
    folder.mkdir()
    content = {"model_type": "llama", "vocab_size": VOCAB, **config}
    (folder / "config.json").write_text(json.dumps(content))
    if said is not None:
        (folder / "generation_config.json").write_text(json.dumps(said))
    return ModelSection(source=str(folder))


@pytest.mark.parametrize(
    "said, config, ends",
    [
        (SAID, {}, [40, 42, EOS, TURN_END]),
        ({"eos_token_id": EOS}, {"eos_token_id": 3}, [EOS, TURN_END]),
        # what nobody chose: the family's default, which is some word here
        ({"eos_token_id": 2, "bos_token_id": 1, "_from_model_config": True}, {}, [EOS, TURN_END]),
        (None, {}, [EOS, TURN_END]),
        (None, {"eos_token_id": [TURN_END, EOS]}, [TURN_END, EOS]),
    ],
)
def test_ends_are_those_of_the_source_of_a_document_and_of_a_turn(
    tmp_path: Path, said: dict[str, Any] | None, config: dict[str, Any], ends: list[int]
) -> None:
    section = source(tmp_path / "hub", said, **config)
    settings = settings_of_run(section, hf_config(section, VOCAB), [conversations(tmp_path / "data")])
    assert settings.pop("eos_token_id") == ends
    assert settings == ({key: SAID[key] for key in SAID if key != "eos_token_id"} if said is SAID else {})


def test_a_new_model_ends_where_its_documents_and_turns_do(tmp_path: Path) -> None:
    section = ModelSection(config={"model_type": "llama"})
    config = hf_config(section, VOCAB, EOS)
    settings = settings_of_run(section, config, [conversations(tmp_path / "data")])
    assert settings == {"eos_token_id": [EOS, TURN_END]}


def talker(cycle: list[int]) -> Any:
    """A model that says the words of a cycle one after another, for ever."""
    model = build_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # what comes out depends on the last word alone
        embedding = model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.zero_()
        for now, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            model.lm_head.weight[after] += 9 * embedding[now] / embedding[now].norm()
        model.model.norm.weight.fill_(1.0)
    return model


CYCLE = [11, 12, TURN_END, 13, 14, EOS, 15, 42, 16]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on conversations, from a source with two ends of its own."""
    folder = tmp_path_factory.mktemp("tuned")
    section = source(folder / "hub", SAID)
    settings = settings_of_run(section, hf_config(section, VOCAB), [conversations(folder / "data")])
    save_model(talker(CYCLE), folder / "run", generation=settings, run_yaml=RUN)
    return folder


def said_after(folder: Path, word: int, **how: Any) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    grown = model.generate(torch.tensor([[word]]), max_new_tokens=9, do_sample=False, **how)
    return list(map(int, grown[0, 1:]))


def test_transformers_and_its_pipeline_stop_at_each_end(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reload_here(monkeypatch)
    done = export(tuned / "run", tuned / "out")
    content = json.loads((tuned / "out/generation_config.json").read_text())
    assert content.pop("transformers_version")
    assert content == {**SAID, "eos_token_id": [40, 42, EOS, TURN_END], "pad_token_id": EOS}
    config = json.loads((tuned / "out/config.json").read_text())
    assert config["eos_token_id"] == [40, 42, EOS, TURN_END], "for servers that read nothing else"
    assert [said_after(done.path, word)[-1] for word in (11, 13, 15)] == [TURN_END, EOS, 42]
    assert len(said_after(done.path, 11, eos_token_id=-1)) == 9, "it would go on by itself"
    talk = transformers.pipeline("text-generation", model=str(done.path))
    (said,) = talk("w11", max_new_tokens=9, do_sample=False, return_full_text=False)
    assert said["generated_text"].split() == ["w12", "w7"]
    again = ModelSection(source=str(done.path))  # and a run that goes on from it knows them
    ends = settings_of_run(again, hf_config(again, VOCAB), [conversations(tuned / "more")])["eos_token_id"]
    assert ends == [40, 42, EOS, TURN_END]


def test_generate_stops_there_for_a_run_and_for_its_export(tuned: Path) -> None:
    for what in (tuned / "run", tuned / "out"):
        assert "".join(generate(str(what), "w11", Sampling(9, temperature=0.0))) == "w11w12 w7", what


def test_generate_answers_a_message_by_the_chat_template(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--chat", "--greedy", "--max-new-tokens", "9", "w3"]
    assert main(["generate", str(tuned / "run"), *how]) == 2
    assert "--chat = True (command line): " in (said := capsys.readouterr().err)
    assert "has no chat template: leave --chat out, and it goes on with the text" in said
    write_tokenizer(tuned / "chat")
    (tuned / "chat/chat_template.jinja").write_text("{{ messages[0].content }} w11")
    taught = {"generation": {"eos_token_id": [TURN_END]}, "tokenizer_folder": tuned / "chat"}
    save_model(talker(CYCLE), tuned / "talks", run_yaml=RUN, **taught)
    assert main(["generate", str(tuned / "talks"), *how]) == 0
    assert capsys.readouterr().out == "w12 w7\n"


def test_generate_stops_at_an_end_that_the_tokenizer_does_not_name(tmp_path: Path) -> None:
    talker(CYCLE).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    for name in ("generation_config.json", "config.json"):  # either says it
        content = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(content | {"eos_token_id": TURN_END}))
        assert "".join(generate(str(tmp_path), "w11", Sampling(9, temperature=0.0))) == "w11w12 w7", name
        (tmp_path / "generation_config.json").unlink(missing_ok=True)


def test_a_checkpoint_of_an_older_version_ends_where_its_tokenizer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload_here(monkeypatch)
    save_model(talker(CYCLE), tmp_path / "run")  # its config has Llama's default end, which is a word here
    export(tmp_path / "run", tmp_path / "out")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == EOS
    assert np.ndim(transformers.AutoConfig.from_pretrained(tmp_path / "out").eos_token_id) == 0


def test_old_settings_that_transformers_would_not_save_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 2 came with a temperature and without do_sample, which save_pretrained refuses."""
    reload_here(monkeypatch)
    save_model(
        talker(CYCLE), tmp_path / "run", generation={"eos_token_id": 7, "temperature": 0.9, "top_p": 0.6}
    )
    export(tmp_path / "run", tmp_path / "out")
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.temperature, found.top_p, found.eos_token_id) == (0.9, 0.6, [7, EOS])
