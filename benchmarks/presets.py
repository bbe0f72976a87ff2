"""The models and shapes that the benchmarks train: dense Llamas of the sizes people compare at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One model and the shape of a step: `rows` of `seq` tokens, `micro` of them per forward pass."""

    config: dict[str, Any]
    seq: int
    rows: int
    micro: int


def llama(
    layers: int, width: int, ffn: int, heads: int, kv_heads: int, vocab: int, tied: bool = True
) -> dict[str, Any]:
    """Llama's configuration by its shape; SwiGLU, so `ffn` is about 8/3 of the width."""
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
        "use_cache": False,
    }


PRESETS = {
    "cpu": Preset(llama(6, 384, 1024, 6, 6, 8192), seq=256, rows=16, micro=8),
    "tiny": Preset(llama(2, 64, 128, 4, 2, 512), seq=64, rows=4, micro=2),
    "125m": Preset(llama(12, 768, 2048, 12, 12, 50304), seq=2048, rows=64, micro=32),
    "350m": Preset(llama(24, 1024, 2816, 16, 16, 50304), seq=2048, rows=32, micro=16),
    "1.3b": Preset(llama(24, 2048, 5504, 16, 16, 50304), seq=2048, rows=32, micro=8),
    "3b": Preset(llama(28, 3072, 8192, 24, 8, 128256), seq=2048, rows=16, micro=4),
}
