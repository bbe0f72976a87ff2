"""The numbers of a decoder-only Transformer that memory and compute follow from, without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Families whose MLP has two matrices; all others are taken as gated (three).
_PLAIN_MLP = ("gpt_neox", "gpt2", "gptj", "gpt_neo", "opt", "phi", "falcon", "bloom", "starcoder2")


@dataclass(frozen=True)
class ModelShape:
    """Sizes in elements. `windows` has one entry per layer: its attention span, None = all tokens before."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of one expert in a mixture
    vocab: int
    tied: bool = False
    gated: bool = True
    experts: int = 1
    active_experts: int = 1
    shared_intermediate: int = 0  # width of the experts that every token passes
    windows: tuple[int | None, ...] = ()

    @property
    def attention_width(self) -> int:
        """heads × head_dim; equals `hidden` in most families."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """kv_heads × head_dim."""
        return self.kv_heads * self.head_dim

    def _layer(self, experts: int) -> int:
        attention = self.hidden * (2 * self.attention_width + 2 * self.kv_width)
        matrices = 3 if self.gated else 2
        mlp = matrices * self.hidden * (experts * self.intermediate + self.shared_intermediate)
        router = self.hidden * self.experts if self.experts > 1 else 0
        return attention + mlp + router

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer with its two norms; biases and query/key norms not counted."""
        return self._layer(self.experts) + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding table; the head has as many."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        tables = 1 if self.tied else 2
        return self.layers * self.layer_parameters + tables * self.embedding_parameters + self.hidden

    @property
    def active_matmul_parameters(self) -> int:
        """What multiplies each token: active experts and the head, not the embedding lookup, no norms."""
        return self.layers * self._layer(self.active_experts) + self.embedding_parameters

    @property
    def widest_intermediate(self) -> int:
        """MLP width a token sees: of all experts it is sent to."""
        return self.active_experts * self.intermediate + self.shared_intermediate


def shape_of(config: Mapping[str, Any] | Any, vocab: int | None = None) -> ModelShape | None:
    """From a transformers config or a mapping with its names; None when a size is missing.

    vocab: of the dataset's tokenizer, when it decides instead of the config.
    """

    def read(*names: str, default: Any = None) -> Any:
        for name in names:
            value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
            if value is not None:
                return value
        return default

    layers = read("num_hidden_layers", "n_layer", "num_layers")
    hidden = read("hidden_size", "n_embd", "d_model")
    heads = read("num_attention_heads", "n_head")
    vocab = vocab or read("vocab_size")
    if not (layers and hidden and heads and vocab):
        return None
    experts = read("num_local_experts", "num_experts", "n_routed_experts", default=1)
    intermediate = read("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    kind = read("model_type", default="llama")
    shared = read("shared_expert_intermediate_size", default=0) if experts > 1 else 0
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=read("num_key_value_heads", default=heads),
        head_dim=read("head_dim", default=hidden // heads),
        intermediate=read("moe_intermediate_size", default=intermediate) if experts > 1 else intermediate,
        vocab=vocab,
        tied=bool(read("tie_word_embeddings", default=kind.startswith("gemma") or kind == "gpt2")),
        gated=kind not in _PLAIN_MLP,
        experts=experts,
        active_experts=read("num_experts_per_tok", "top_k", default=1) if experts > 1 else 1,
        shared_intermediate=shared,
        windows=_windows(read("layer_types"), read("sliding_window"), layers),
    )


def _windows(layer_types: Any, window: int | None, layers: int) -> tuple[int | None, ...]:
    """Per layer its attention span; a window without layer types is one that the family doesn't use."""
    if not window or not layer_types:
        return (None,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
