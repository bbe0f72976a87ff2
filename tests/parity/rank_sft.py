"""Rank side of test_sft: a run on conversations, and the same by hand with transformers, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmtrain.config.load import load_run
from llmtrain.config.world import World
from llmtrain.data.batches import Batches
from llmtrain.data.rows import IGNORED


def train(world: World, run: str) -> list[float]:
    """`llmtrain train` on this rank; the losses it wrote."""
    from llmtrain.report.metrics import read_metrics
    from llmtrain.stopping import StopRequest
    from llmtrain.train import run as train_run

    train_run(run, [], "never", world, StopRequest())
    folder = Path(load_run(run).config.folder)
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]


def by_hand(world: World, run: str) -> list[float]:
    """Each conversation of a row goes through the transformers model alone, its labels -100 by its mask.

    Nothing of llmtrain's reading of rows is used but which rows a step has.
    """
    from transformers import AutoModelForCausalLM

    config = load_run(run).config
    batches = Batches.of_run(config.data, config.batch.rows, config.seed, config.schedule.steps or 0, {})
    net = AutoModelForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
    section = config.optimizer
    groups = [
        {"params": [p for p in net.parameters() if p.dim() >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in net.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, foreach=False)
    (dataset,) = batches.datasets
    losses = []
    for step in range(config.schedule.steps or 0):
        pieces = [piece for row in batches.at(step).row for piece in conversations(dataset, int(row), config)]
        valid = sum(int((labels[1:] != IGNORED).sum()) for _, labels in pieces)
        total = 0.0
        for tokens, labels in pieces:
            loss = net(input_ids=tokens[None], labels=labels[None], num_items_in_batch=valid).loss
            if (labels[1:] != IGNORED).any():
                loss.backward()
                total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(net.parameters(), section.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def conversations(dataset: Any, row: int, config: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(tokens, labels) of each conversation in a row of consecutive tokens, cut where the row is.

    A row's last token has one to predict as well, so a piece goes one token further than the row.
    """
    first, last = row * config.data.seq_len, (row + 1) * config.data.seq_len
    found, start = [], 0
    for whole in shortened(dataset, config.data.seq_len):
        end = start + len(whole)
        low, high = max(start, first), min(end, last + 1)
        if low < high:
            tokens, marks = torch.tensor(whole[low - start : high - start]).T
            found.append((tokens, torch.where(marks % 2 == 1, tokens, IGNORED)))
        start = end
    return found


def shortened(dataset: Any, longest: int) -> list[list[list[int]]]:
    """[token, mark] of each conversation; one that is too long without its first turns, one by one."""
    (shard,) = dataset.shards
    found = []
    for start, end in zip([0, *shard.ends[:-1].tolist()], shard.ends.tolist(), strict=True):
        whole = list(
            map(list, zip(shard.tokens[start:end].tolist(), shard.mask[start:end].tolist(), strict=True))
        )
        head = next((at for at, (_, mark) in enumerate(whole) if mark & 2), 0)
        places = [0, *(at for at, (_, mark) in enumerate(whole) if mark & 4)]
        fitting = [left for at in places if len(left := whole[:head] * (at > 0) + whole[at:]) <= longest]
        found += fitting[:1]
    return found


def make_model(world: World, folder: str, vocab_size: int) -> None:
    """A tiny Llama beside the tokenizer in `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
