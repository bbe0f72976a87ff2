"""What the ranks of the parity tests run: llmtrain, and one plain PyTorch process beside it."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from llmtrain.config.load import load_run
from llmtrain.config.world import World
from llmtrain.data.rows import IGNORED, RowArrays

SEQ_LEN, VOCAB, ROWS = 24, 96, 8

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "micro": {
        "model_type": "llama",
        **_SMALL,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "llama": {"model_type": "llama", **_SMALL},
    "llama-tied": {"model_type": "llama", **_SMALL, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **_SMALL, "head_dim": 8},
    "gemma3": {
        "model_type": "gemma3_text",
        **_SMALL,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "tie_word_embeddings": True,
    },
    "mixtral": {"model_type": "mixtral", **_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {"model_type": "olmo2", **_SMALL},
    "gpt_neox": {
        "model_type": "gpt_neox",
        **{k: v for k, v in _SMALL.items() if k != "num_key_value_heads"},
        "intermediate_size": 64,
    },
    # Frequencies by length: documents of 24-token rows lie on both sides of 8 tokens.
    "longrope": {
        "model_type": "phi3",
        **_SMALL,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [3.0, 5.0, 7.0, 9.0],
            "original_max_position_embeddings": 8,
        },
        "original_max_position_embeddings": 8,
        "pad_token_id": 0,
    },
    "dynamic": {
        "model_type": "llama",
        **_SMALL,
        "max_position_embeddings": 8,
        "initializer_range": 0.3,  # attention that sees where a token stands
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
}


@dataclass(frozen=True)
class RandomRows:
    """Rows drawn from (seed, step): a noisy rule to learn, a few documents in each row."""

    seed: int
    step: int
    count: int = ROWS
    seq_len: int = SEQ_LEN

    def _all(self) -> RowArrays:
        draw = np.random.default_rng([self.seed, self.step])
        stream = draw.integers(0, VOCAB, (self.count, self.seq_len + 1))
        follows = draw.random(stream.shape) < 0.9
        for place in range(1, self.seq_len + 1):
            rule = (stream[:, place - 1] * 3 + 1) % VOCAB
            stream[:, place] = np.where(follows[:, place], rule, stream[:, place])
        starts = draw.random((self.count, self.seq_len + 1)) < 0.12
        starts[:, 0] = True
        index = np.arange(self.seq_len + 1)
        positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
        labels = np.where(starts[:, 1:], IGNORED, stream[:, 1:])
        return RowArrays(stream[:, :-1].copy(), labels, positions[:, :-1].copy())

    @property
    def valid_tokens(self) -> int:
        return int((self._all().labels != IGNORED).sum())

    def read(self, start: int, stop: int) -> RowArrays:
        whole = self._all()
        return RowArrays(whole.tokens[start:stop], whole.labels[start:stop], whole.positions[start:stop])


def run_file(folder: str, model: str, steps: int, **sections: Any) -> Path:
    """A run file for `model`; `sections` replace or add top-level keys."""
    content = {
        "name": "parity",
        "seed": 7,
        "model": {"config": {**MODELS[model], "vocab_size": VOCAB}},
        "data": {"train": [{"path": "unused"}], "seq_len": SEQ_LEN},
        "batch": {"rows": ROWS, "micro": 2},
        "schedule": {"steps": steps, "warmup": 2},
        "optimizer": {"lr": 3e-3, "clip": 0.5},
        "precision": "fp32",
        **sections,
    }
    path = Path(folder) / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def open_run(world: World, model: str, steps: int, **sections: Any) -> tuple[Any, Any]:
    """(plan, engine) for a small model."""
    from llmtrain.engine import open_engine
    from llmtrain.model.build import hf_config
    from llmtrain.plan.plan import make_plan

    with tempfile.TemporaryDirectory() as folder:
        loaded = load_run(run_file(folder, model, steps, **sections))
        plan = make_plan(loaded, world.size, "cpu", environ={}, goes_on=True)
    return plan, open_engine(plan, hf_config(plan.run.model, VOCAB), world)


def train(world: World, model: str, steps: int, detail: bool = False, **sections: Any) -> dict[str, Any]:
    """Losses and gradient norms of `steps` steps, the loss on held-out rows before and after.

    `detail`: as with TORCH_DISTRIBUTED_DEBUG=DETAIL, where torch compares the collectives of all ranks.
    """
    if detail:
        torch.distributed.set_debug_level(torch.distributed.DebugLevel.DETAIL)
    plan, engine = open_run(world, model, steps, **sections)
    held_out = RandomRows(seed=99, step=0, count=7)
    before = engine.evaluate(held_out)
    rounded = _watch_sums(engine) if sections.get("precision") == "bf16" else []
    results = [engine.train_step(RandomRows(5, step), plan.schedule.lr(step)) for step in range(steps)]
    after = engine.evaluate(held_out)
    engine.close()
    return {
        "losses": [result.loss for result in results],
        "norms": [result.grad_norm for result in results],
        "eval": [before.loss, after.loss],
        "optimizer": type(engine.deepspeed.optimizer).__name__,
        "rounded": rounded[:1],
    }


def documents(*rows: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """(tokens, positions, labels) of each document, the shortest first: frequencies that grew stay grown."""
    pieces = []
    for row in zip(*rows, strict=True):
        starts = [*(row[1] == 0).nonzero().flatten().tolist(), len(row[1])]
        pieces += [[part[a:b][None] for part in row] for a, b in itertools.pairwise(starts)]
    return sorted(pieces, key=lambda piece: piece[0].numel())


def alone(net: Any, tokens: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss sum of a document that nothing is beside."""
    logits = net(input_ids=tokens, position_ids=positions, use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum")


def _watch_sums(engine: Any) -> list[float]:
    """Which share of a step's summed gradients bf16 could hold, noted before each update."""
    from deepspeed.utils import safe_get_full_grad

    rounded: list[float] = []
    update = engine.deepspeed._take_model_step

    def watched(*args: Any, **kwargs: Any) -> None:
        if not rounded:
            whole = [p for p in engine.stage.parameters() if not hasattr(p, "ds_id") or p.ds_numel]
            sums = [each for p in whole if (each := safe_get_full_grad(p)) is not None]
            values = torch.cat([each.flatten().float() for each in sums])
            values = values[values != 0]
            rounded.append(float((values.bfloat16().float() == values).float().mean()))
        update(*args, **kwargs)

    engine.deepspeed._take_model_step = watched
    return rounded


def plain(world: World, model: str, steps: int, precision: str = "fp32") -> dict[str, Any]:
    """The same training by nothing but PyTorch and transformers: whole model, one process, whole logits."""
    from transformers import AutoModelForCausalLM

    from llmtrain.model.build import build_stage, hf_config
    from llmtrain.model.kernels import choose_kernels
    from llmtrain.model.stages import plan_cuts
    from llmtrain.plan.plan import make_plan

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(load_run(run_file(folder, model, steps, precision=precision)), 1, "cpu", environ={})
    config = hf_config(plan.run.model, VOCAB)
    device = torch.device("cpu")
    kernels = choose_kernels("auto", "cpu", precision, True)
    start = build_stage(config, plan_cuts(config, 1)[0], dtype, device, plan.run.seed, None, kernels)
    net = AutoModelForCausalLM.from_config(config, dtype=dtype)
    net.load_state_dict(start.hf.state_dict())
    masters = {name: p.detach().float().clone() for name, p in net.named_parameters()}
    section = plan.run.optimizer
    groups = [
        {"params": [m for m in masters.values() if m.dim() >= 2], "weight_decay": section.weight_decay},
        {"params": [m for m in masters.values() if m.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=section.betas, eps=section.eps, foreach=False)

    def loss_sum(rows: RandomRows) -> torch.Tensor:
        arrays = rows.read(0, rows.count)
        tokens, positions = torch.from_numpy(arrays.tokens), torch.from_numpy(arrays.positions)
        labels = torch.from_numpy(arrays.labels)
        if model in ("longrope", "dynamic"):
            return sum(alone(net, *piece) for piece in documents(tokens, positions, labels))
        logits = net(input_ids=tokens, position_ids=positions, use_cache=False).logits.float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    def held_out() -> float:
        with torch.no_grad():
            rows = RandomRows(seed=99, step=0, count=7)
            return float(loss_sum(rows)) / rows.valid_tokens

    losses, norms, evals = [], [], [held_out()]
    for step in range(steps):
        rows = RandomRows(5, step)
        loss = loss_sum(rows) / rows.valid_tokens
        loss.backward()
        for name, parameter in net.named_parameters():
            masters[name].grad = parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(masters.values(), section.clip)
        for group in optimizer.param_groups:
            group["lr"] = plan.schedule.lr(step)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(masters[name])
        losses.append(float(loss.detach()))
        norms.append(float(norm))
    return {"losses": losses, "norms": norms, "eval": [*evals, held_out()]}
