"""What is proven about a family before it is trained: its cut, its head, its masking of documents.

The proofs run on CPU in milliseconds, on the real model without its layers (`hollow`) or on a narrow copy
of the configuration (`narrow`).
"""

from __future__ import annotations

import copy
import functools
import json
import logging
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from llmtrain.errors import ConfigError, Problem
from llmtrain.model.assembly import assemble
from llmtrain.model.initialise import initialise, materialise
from llmtrain.model.kernels import Kernels, fit
from llmtrain.model.loss import HeadFormula
from llmtrain.model.stages import Cut, PassThrough, StageModel, cut_model
from llmtrain.model.structure import CUTTABLE, body, find_layers, read_structure, skeleton

LOG = logging.getLogger(__name__)
SMALL = 20_000_000  # parameters: a model that a probe may build as it is

WIDTHS = {
    "num_key_value_heads": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
# Left as they are, one set after the other, where the width is a sum, a product or a property.
DEPENDENT_WIDTHS = ({"head_dim"}, {"head_dim", "num_attention_heads", "num_key_value_heads", "hidden_size"})


def head_formula(config: Any) -> HeadFormula | None:
    """How this family's logits follow from its head's linear map; None when that is not understood.

    The family's own forward pass is run without its layers and compared: a constant factor is looked for
    among the configuration's numbers, a soft cap among those that are named so.
    """
    return _head_formula(_key(config))


def proves_cut(config: Any) -> bool:
    """Two stages of a narrow copy equal the whole, and a stage without layers changes nothing."""
    return _proves_cut(_key(config))


def proves_document_masking(config: Any, attention: str = "sdpa") -> bool:
    """No gradient flows from one document to another in the same row (on a narrow copy, on CPU)."""
    return _proves_document_masking(_key(config), attention)


def require_cut(config: Any) -> None:
    """ConfigError unless this family is proven to survive being cut into stages."""
    if not proves_cut(config):
        family = config.model_type
        raise ConfigError(
            Problem(
                "parallel.pipeline",
                None,
                f"model_type {family}",
                f"{family} carries more than hidden states from layer to layer, or changes its embeddings "
                "outside its embedding module, so stages would not equal the whole model; use "
                f"parallel.pipeline: 1 with ZeRO-3, or a family such as {', '.join(CUTTABLE)}",
            )
        )


def require_document_masking(config: Any, attention: str) -> None:
    """ConfigError unless this family is proven to keep documents apart."""
    if not proves_document_masking(config, attention):
        family = config.model_type
        raise ConfigError(
            Problem(
                "data.mask_documents",
                True,
                f"model_type {family}",
                f"{family} is not proven to keep the documents of a row apart; set data.mask_documents: "
                "false to let every token see the whole row before it",
            )
        )


def narrow(config: Any) -> Any | None:
    """A copy of the configuration with the same kinds of layers and few parameters; None if there is none.

    The first that runs counts: the real widths when they are small, else smaller ones; what of them depends
    on what differs between families, so some are left as they are in turn.
    """
    key = _narrow(_key(config))
    return None if key is None else _config(key)


@functools.lru_cache(maxsize=64)
def _narrow(key: str) -> str | None:
    for changed in ((), tuple(WIDTHS), *(tuple(set(WIDTHS) - left) for left in DEPENDENT_WIDTHS)):
        try:
            candidate = _narrower(fewer_layers(_config(key)), changed)
            if _size(skeleton(candidate, torch.float32)) <= SMALL and _runs(candidate):
                return _key(candidate)
        except Exception:  # whatever a family says of such a configuration
            LOG.debug("a proof could not be run", exc_info=True)
            continue
    return None


def _runs(config: Any) -> bool:
    stage = _small_stage(config, Cut(0, 1, 0, config.num_hidden_layers), "sdpa")
    with torch.no_grad():
        out = stage.hidden(torch.arange(4)[None], input_ids=torch.arange(4)[None])
    return bool(out.isfinite().all())


def _small_stage(config: Any, cut: Cut, attention: str) -> StageModel:
    kernels = fit(Kernels(attention=attention), skeleton(config, torch.float32))
    return assemble(config, cut, torch.float32, "cpu", 0, kernels, stand_in=0.5).eval()


def _size(hf: nn.Module) -> int:
    return sum(p.numel() for p in hf.parameters())


def _key(config: Any) -> str:
    return json.dumps({**config.to_dict(), "model_type": config.model_type}, sort_keys=True, default=str)


def _config(key: str) -> Any:
    values = json.loads(key)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def fewer_layers(config: Any) -> Any:
    """A copy with a layer of each kind, two at least, and a small vocabulary."""
    few = copy.deepcopy(config)
    layers = few.num_hidden_layers
    kinds = getattr(few, "layer_types", None) or ["same"] * layers
    needed = max(kinds.index(kind) for kind in set(kinds)) + 1
    kept = min(layers, max(2, needed))
    for name, value in list(vars(few).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(few, name, value[:kept])
    few.num_hidden_layers = kept
    few.vocab_size = min(few.vocab_size, 64)
    few.pad_token_id, few.bos_token_id, few.eos_token_id = None, 0, 1
    return few


def few_or_all_layers(config: Any) -> Any:
    """`fewer_layers` where a model can be made so; a family that is cut otherwise keeps all it has."""
    try:
        few = fewer_layers(config)
        skeleton(few, torch.float32)
    except Exception:  # it counts its layers in its own way
        LOG.debug("a proof could not be run", exc_info=True)
        return config
    return few


def _narrower(config: Any, changed: tuple[str, ...]) -> Any:
    grouped = getattr(config, "num_key_value_heads", None) != config.num_attention_heads
    for name in changed:
        now = getattr(config, name, None)
        value = 4 if name == "num_key_value_heads" and not grouped else WIDTHS[name]
        if isinstance(now, int):
            setattr(config, name, min(now, value))
    return config


@functools.lru_cache(maxsize=64)
def _head_formula(key: str) -> HeadFormula | None:
    config = _config(key)
    hf = skeleton(config, torch.float32)
    head, layers = hf.get_output_embeddings(), find_layers(hf)
    if type(head) is not nn.Linear or layers is None:
        return None
    width, rows = head.in_features, 64
    blocks = hf.get_submodule(layers)
    for index in range(len(blocks)):
        blocks[index] = PassThrough()
    hf.set_input_embeddings(nn.Embedding(rows, width, device="meta"))
    hf.set_output_embeddings(nn.Linear(width, rows, head.bias is not None, device="meta"))
    if _size(hf) > 3 * SMALL:
        return None  # parameters outside embedding, layers, norm and head
    raw: list[torch.Tensor] = []
    try:
        materialise(hf, torch.device("cpu"))
        initialise(hf, layers, 0)
        head = hf.get_output_embeddings()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head.weight.normal_(std=width**-0.5)
            head.register_forward_hook(lambda module, given, out: raw.append(out * 1.0))
            logits = hf.eval()(input_ids=torch.arange(rows)[None], use_cache=False).logits
    except Exception:  # a family whose forward pass needs more is handled whole
        LOG.debug("a proof could not be run", exc_info=True)
        return None
    return _fit_formula(config, raw[-1].float(), logits.float()) if raw else None


def _fit_formula(config: Any, raw: torch.Tensor, logits: torch.Tensor) -> HeadFormula | None:
    numbers = {
        name: float(value)
        for name, value in vars(config.get_text_config()).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value
    }
    caps = [None, *(value for name, value in numbers.items() if "cap" in name)]
    scaled = [value for name, value in numbers.items() if "logit" in name or "mult" in name or "scal" in name]
    scales = [1.0, *scaled, *(1 / value for value in scaled)]
    for cap in caps:
        for scale in scales:
            formula = HeadFormula(scale, cap)
            if torch.allclose(formula.apply(raw), logits, rtol=1e-5, atol=1e-6):
                return formula
    return None


@functools.lru_cache(maxsize=64)
def _proves_cut(key: str) -> bool:
    config = _config(key)
    return _keeps_embeddings(config) and _stages_equal_whole(config)


def _keeps_embeddings(config: Any) -> bool:
    """A middle stage without a layer of its own, at the model's full width, returns what it is given."""
    hf = skeleton(config, torch.float32)
    structure = read_structure(hf)
    cut_model(hf, Cut(1, 3, 0, 0), structure)
    if _size(hf) > SMALL:
        return False  # parameters outside embedding, layers, norm and head
    given = torch.linspace(-2, 2, 8 * config.get_text_config().hidden_size).view(1, 8, -1)
    try:
        materialise(hf, torch.device("cpu"))
        initialise(hf, structure.layers, 0)
        with torch.no_grad():
            positions = torch.arange(8)[None]
            out = body(hf.eval())(
                inputs_embeds=given, position_ids=positions, use_cache=False
            ).last_hidden_state
    except Exception:  # it needs what a later stage does not have
        LOG.debug("a proof could not be run", exc_info=True)
        return False
    return torch.equal(out, given)


def _stages_equal_whole(config: Any) -> bool:
    small = narrow(config)
    if small is None:
        return False
    layers = small.num_hidden_layers
    tokens, positions = torch.arange(12)[None] % small.vocab_size, torch.arange(12)[None]
    cuts = [Cut(0, 1, 0, layers), Cut(0, 2, 0, layers - 1), Cut(1, 2, layers - 1, layers)]
    try:
        whole, first, last = (_small_stage(small, cut, "sdpa") for cut in cuts)
        with torch.no_grad():
            expected = whole.hidden(positions, input_ids=tokens)
            found = last.hidden(positions, inputs_embeds=first.hidden(positions, input_ids=tokens))
    except Exception:  # a stage lacks what a layer of it needs
        LOG.debug("a proof could not be run", exc_info=True)
        return False
    return torch.equal(found, expected)


@functools.lru_cache(maxsize=64)
def _proves_document_masking(key: str, attention: str) -> bool:
    small = narrow(_config(key))
    if small is None:
        return False
    try:
        grads = _gradients_of_second_documents(small, attention)
    except Exception:  # it can't take positions or embeddings, so nothing is proven
        LOG.debug("a proof could not be run", exc_info=True)
        return False
    leaks = any(bool(grad[:first].any()) for grad, first in grads)
    return not leaks and all(bool(grad[first].any()) for grad, first in grads)


def _gradients_of_second_documents(config: Any, attention: str) -> list[tuple[torch.Tensor, int]]:
    """Of two rows of two documents: the gradient, by its row's embeddings, of the second; where it begins.

    In training mode, as in training: an attention without dropout shows only there that it lacks it.
    """
    lengths = ((5, 7), (9, 3))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    stage = _small_stage(config, Cut(0, 1, 0, config.num_hidden_layers), attention).train()
    noise = torch.Generator().manual_seed(0)
    given = torch.randn(2, 12, config.hidden_size, generator=noise).requires_grad_()
    weights = torch.randn(2, 12, config.hidden_size, generator=noise)
    for row, (first, _) in enumerate(lengths):
        weights[row, :first] = 0
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        out = stage.hidden(positions, inputs_embeds=given)
        (grad,) = torch.autograd.grad((out * weights).sum(), given)
    return [(grad[row], first) for row, (first, _) in enumerate(lengths)]
