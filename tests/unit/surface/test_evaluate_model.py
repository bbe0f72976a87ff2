from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from small_runs import SHAPE

from llmtrain.config.schema import DataSource
from llmtrain.data.batches import held_out
from llmtrain.data.dataset import open_dataset
from llmtrain.data.rows import IGNORED
from llmtrain.errors import CheckpointError, ConfigError, DataError, InputError
from llmtrain.evaluate import Reading, evaluate_folder, unigram_loss_sum
from llmtrain.generate import Sampling, generate
from llmtrain.trained import find_subject


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory, own_dataset: Path) -> Path:
    """A small random Llama with the dataset's tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("hf")
    values = {**SHAPE, "vocab_size": open_dataset(own_dataset, "valid").vocab_size, "initializer_range": 0.3}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{k: v for k, v in values.items() if k != "model_type"})
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(own_dataset / "tokenizer").save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_scores_what_transformers_says(hf_folder: Path, own_dataset: Path) -> None:
    found = evaluate_folder(str(hf_folder), str(own_dataset), reading=Reading(rows=6, seq_len=32))
    rows = held_out([DataSource(path=str(own_dataset), split="valid")], 32, 6, True).read(0, 6)
    assert (rows.positions[:, 0] == 0).all()
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_folder)
    total, count = 0.0, 0
    for tokens, labels, positions in zip(rows.tokens, rows.labels, rows.positions, strict=True):
        bounds = [*np.flatnonzero(positions == 0).tolist(), len(tokens)]
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):  # each document by itself
            with torch.no_grad():
                logits = model(torch.tensor(tokens[None, start:stop])).logits[0]
            wanted = torch.tensor(labels[start:stop])
            loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
            total += float(loss)
            count += int((wanted != IGNORED).sum())
    assert found.scores.eval_tokens == count
    assert found.scores.eval_loss == pytest.approx(total / count, rel=1e-5)
    assert json.loads(found.as_json())["rows"] == 6
    assert "6 rows × 32 tokens" in found.as_text()


def rolling_by_transformers(folder: Path, documents: list[list[int]], prefix: int, most: int) -> float:
    """The sum of losses by lm-evaluation-harness's definition of loglikelihood_rolling, document by document.

    Windows of `most` predictions, each after one token that the window before ended with; the last one keeps
    as much as it can read before what it predicts.
    """
    model, total = transformers.AutoModelForCausalLM.from_pretrained(folder), 0.0
    for tokens in documents:
        done, stream = 0, [prefix, *tokens]
        while done < len(tokens):
            wanted = min(most, len(tokens) - done)
            given = stream[max(done + wanted - most, 0) : done + wanted]
            with torch.no_grad():
                logits = model(torch.tensor([given])).logits[0, -wanted:]
            labels = torch.tensor(tokens[done : done + wanted])
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            done += wanted
    return total


def test_rolling_scores_every_token_of_every_document_as_the_harness_does(
    hf_folder: Path, own_dataset: Path
) -> None:
    dataset = open_dataset(own_dataset, "valid")
    documents = [shard.document(n).tolist() for shard in dataset.shards for n in range(shard.documents)]
    assert all(tokens[-1] == dataset.eos_id for tokens in documents)
    texts = [tokens[:-1] for tokens in documents]
    assert max(map(len, texts)) > 2 * 256 and len(texts) > 1, "nothing long, so no windows were compared"
    found = evaluate_folder(str(hf_folder), str(own_dataset), reading=Reading(rolling=True))
    expected = rolling_by_transformers(hf_folder, texts, dataset.eos_id, 256)
    assert found.scores.eval_tokens == sum(map(len, texts))
    assert found.scores.eval_loss * found.scores.eval_tokens == pytest.approx(expected, rel=1e-5)
    written = len(
        "".join(transformers.AutoTokenizer.from_pretrained(hf_folder).decode(t) for t in texts).encode()
    )
    assert written == dataset.entry.text_bytes
    assert found.scores.bits_per_byte == pytest.approx(expected / math.log(2) / written, rel=1e-5)
    assert f"{len(texts)} whole documents, rolling" in found.as_text()
    one = evaluate_folder(str(hf_folder), str(own_dataset), reading=Reading(None, 64, True, 1))
    assert json.loads(one.as_json())["documents"] == 1 and one.scores.eval_tokens == len(texts[0])
    first = rolling_by_transformers(hf_folder, texts[:1], dataset.eos_id, 64)
    assert one.scores.eval_loss * len(texts[0]) == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("family", ["bloom", "gpt_oss", "mamba"])
def test_a_family_that_mixes_documents_is_evaluated_rolling(
    family: str, hf_folder: Path, own_dataset: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
    if family == "gpt_oss":
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16, "num_local_experts": 4}
    config = transformers.AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"model_type {family}.*not proven to keep .*apart; add --rolling"):
        evaluate_folder(str(tmp_path), str(own_dataset), reading=Reading(rows=1, seq_len=32))
    found = evaluate_folder(str(tmp_path), str(own_dataset), reading=Reading(None, 64, True, 1))
    text = open_dataset(own_dataset, "valid").shards[0].document(0).tolist()[:-1]
    expected = rolling_by_transformers(tmp_path, [text], open_dataset(own_dataset, "valid").eos_id, 64)
    assert found.scores.eval_loss * found.scores.eval_tokens == pytest.approx(expected, rel=1e-4)


def test_what_rolling_does_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--rows = 4 .*say --documents N"):
        Reading(rows=4, rolling=True)
    with pytest.raises(ConfigError, match=r"--documents = 4 .*say --rows N, or add --rolling"):
        Reading(documents=4)


def test_all_rows_are_taken_unless_said_otherwise(hf_folder: Path, own_dataset: Path) -> None:
    found = evaluate_folder(str(hf_folder), str(own_dataset))
    dataset = open_dataset(own_dataset, "valid")
    assert found.seq_len == 256
    assert found.rows == (dataset.tokens - 1) // 256


def test_the_unigram_model_is_add_one_counts(own_dataset: Path) -> None:
    train = open_dataset(own_dataset, "train")
    rows = held_out([DataSource(path=str(own_dataset), split="valid")], 32, 4, True)
    stream = np.concatenate([shard.tokens for shard in train.shards]).tolist()
    labels = rows.read(0, 4).labels.reshape(-1)
    expected = -sum(
        math.log((stream.count(label) + 1) / (len(stream) + train.vocab_size))
        for label in labels[labels != IGNORED].tolist()
    )
    assert unigram_loss_sum(train, rows) == pytest.approx(expected)


def test_a_dataset_of_more_tokens_than_the_model_is_refused(
    hf_folder: Path, own_dataset: Path, tmp_path: Path
) -> None:
    config = json.loads((hf_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="token ids up to 399, .* knows 300"):
        evaluate_folder(str(tmp_path), str(own_dataset))


def test_what_is_no_model_is_named(tmp_path: Path, own_dataset: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist: no such file or folder"):
        find_subject(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="neither a run folder, nor a checkpoint, nor a Hugging Face"):
        find_subject(str(own_dataset))
    with pytest.raises(InputError, match="no/such-model is no model that transformers can read"):
        evaluate_folder("no/such-model", str(own_dataset))


def test_greedy_text_is_what_transformers_generates(hf_folder: Path) -> None:
    pieces = list(generate(str(hf_folder), "def f", Sampling(max_new_tokens=12, temperature=0.0)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf_folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_folder)
    given = tokenizer("def f", return_tensors="pt")
    out = model.generate(
        given.input_ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id
    )
    assert pieces[0] == "def f"
    assert "".join(pieces) == "def f" + tokenizer.decode(
        out[0, given.input_ids.shape[1] :], skip_special_tokens=True
    )


def test_a_seed_decides_what_is_drawn(hf_folder: Path) -> None:
    def text(seed: int) -> str:
        return "".join(generate(str(hf_folder), "", Sampling(max_new_tokens=20, temperature=2.0, seed=seed)))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_wrong_sampling_is_refused(hf_folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-1, top_p=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(
        ConfigError, match=r"--max-new-tokens = 5000 .*reads at most 256 tokens .* use 25\d or less"
    ):
        list(generate(str(hf_folder), "def", Sampling(max_new_tokens=5000)))
    with pytest.raises(ConfigError, match=r"the prompt has \d+; shorten the prompt"):
        list(generate(str(hf_folder), "x = 1\n" * 100, Sampling()))
