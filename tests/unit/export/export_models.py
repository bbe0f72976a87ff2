"""Tiny transformers models and the checkpoints that a two-rank run of them would have left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.append(str(Path(__file__).parents[1] / "checkpoint"))
from fake_engine import make_facts, save_on  # noqa: E402

from llmtrain.checkpoint import Probe  # noqa: E402
from llmtrain.checkpoint.probe import loss_of, taken_otherwise  # noqa: E402

VOCAB = 48
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "use_cache": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 8},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 3},
    "hrm_text": {"model_type": "hrm_text"},  # several tensors become one
    "gpt_neox": {"model_type": "gpt_neox", "num_key_value_heads": 2},
}


def build_model(family: str) -> Any:
    """A model whose logits tell one weight from another."""
    torch.manual_seed(7)
    changes = {**_COMMON, **CONFIGS[family]}
    config = transformers.AutoConfig.for_model(changes.pop("model_type"), **changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def probe_rows() -> dict[str, Any]:
    """Two rows: the first holds two documents, and a label that does not count."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB, (2, 12), generator=generator)
    labels = torch.randint(0, VOCAB, (2, 12), generator=generator)
    labels[0, 4] = -100
    positions = torch.stack([torch.cat([torch.arange(5), torch.arange(7)]), torch.arange(12)])
    return {"tokens": tokens.tolist(), "labels": labels.tolist(), "positions": positions.tolist()}


def write_tokenizer(folder: Path) -> None:
    """48 words; `<eos>` is 5 and not what any config takes for granted."""
    words = [f"w{index}" for index in range(VOCAB)]
    words[5] = "<eos>"
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(
        folder
    )


def save_model(model: Any, run_folder: Path, **changes: Any) -> Path:
    """A committed checkpoint of the model, saved by two ranks, with the loss it has."""
    write_tokenizer(run_folder / "tokenizer")
    state: dict[str, Any] = {}
    buffers = dict(model.named_buffers())
    for name, parameter in model.named_parameters():  # a tied head comes once, as the embedding
        values = parameter.detach().float()
        state[name] = {"fp32": values, "exp_avg": values * 0, "exp_avg_sq": values * 0}
    for name in model.state_dict():
        if name in buffers:
            state[name] = {"buffer": buffers[name]}
    rows = probe_rows()
    loss = loss_of(model, Probe(**rows, loss=0.0))
    facts = make_facts(
        **{
            "config": model.config.to_dict(),
            "tokenizer_folder": run_folder / "tokenizer",
            "probe": {**rows, "loss": loss},
            "run_yaml": "name: tiny\nseed: 1234\n",
            "vocab_size": VOCAB,
            **changes,
        }
    )
    return save_on(2, run_folder, state, facts)


def reload_here(monkeypatch: Any) -> None:
    """The export's own check in this process, where something else is tested: a process costs seconds."""
    from llmtrain.export import hub_folder

    def reloaded(folder: Path, probe: Probe) -> float:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert not taken_otherwise(folder, model)
        return loss_of(model.eval(), probe)

    monkeypatch.setattr(hub_folder, "_reloaded_loss", reloaded)
