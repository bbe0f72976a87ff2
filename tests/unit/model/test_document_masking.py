"""No token sees another document of its row: values, gradients, through stages, with and without a mask."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, packed_rows, stage_models, tiny_config, whole_model
from transformers import AutoConfig

from llmtrain.errors import ConfigError
from llmtrain.model.attention import reference_varlen
from llmtrain.model.documents import documents_of, known
from llmtrain.model.kernels import Kernels
from llmtrain.model.probes import proves_document_masking

ATTENTIONS = ["sdpa", "math", "varlen", "eager"]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_changing_one_document_leaves_the_others_as_they_are(family: str, attention: str) -> None:
    whole = whole_model(tiny_config(family), kernels=Kernels(attention=attention)).eval()
    assert whole.kernels.attention == attention
    tokens, positions, _ = packed_rows()
    changed = tokens.clone()
    changed[0, :5] = (changed[0, :5] + 1) % VOCAB
    changed[1, :6] = (changed[1, :6] + 1) % VOCAB
    with torch.no_grad():
        before, after = (whole.hidden(positions, input_ids=ids) for ids in (tokens, changed))
    torch.testing.assert_close(before[0, 5:], after[0, 5:], rtol=0, atol=1e-6)
    torch.testing.assert_close(before[1, 6:], after[1, 6:], rtol=0, atol=1e-6)
    assert not torch.allclose(before[0, :5], after[0, :5])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_crosses_a_boundary_through_stages(family: str, attention: str) -> None:
    first, last = stage_models(tiny_config(family), 2, kernels=Kernels(attention=attention))
    _, positions, labels = packed_rows()
    labels[0, :5], labels[1, :6] = -100, -100  # only the second documents are trained on
    given = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    last.loss(last(first.hidden(positions, inputs_embeds=given), positions), labels).backward()
    assert not given.grad[0, :5].any() and not given.grad[1, :6].any()
    assert given.grad[0, 5].any() and given.grad[1, 6].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_in_a_packed_row_is_as_if_alone(family: str) -> None:
    for attention in ("sdpa", "varlen"):
        whole = whole_model(tiny_config(family), kernels=Kernels(attention=attention)).eval()
        tokens, positions, _ = packed_rows()
        with torch.no_grad():
            packed = whole.hidden(positions, input_ids=tokens)[0, 5:]
            alone = whole.hidden(positions[:1, 5:], input_ids=tokens[:1, 5:])[0]
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_without_masking_positions_run_on_and_documents_see_each_other() -> None:
    whole = whole_model(tiny_config("llama"), kernels=Kernels(documents=False)).eval()
    tokens, _, _ = packed_rows()
    positions = torch.arange(16).repeat(2, 1)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    with torch.no_grad():
        before, after = (whole.hidden(positions, input_ids=ids) for ids in (tokens, changed))
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mixtral", "olmo2", "gpt_neox"])
def test_the_families_of_the_parity_table_are_proven(family: str) -> None:
    config = AutoConfig.for_model(family)  # the family's own sizes: billions of parameters
    assert proves_document_masking(config) and proves_document_masking(config, "varlen")


@pytest.mark.parametrize("family", ["gpt_oss", "bloom", "mamba", "qwen3_next"])
def test_a_family_that_leaks_is_found(family: str) -> None:
    assert not proves_document_masking(AutoConfig.for_model(family))


def test_a_family_that_leaks_is_refused_with_the_way_out() -> None:
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=2, vocab_size=50)
    with pytest.raises(ConfigError, match="data.mask_documents = True .*bloom.*data.mask_documents: false"):
        whole_model(config)
    assert whole_model(config, kernels=Kernels(documents=False)).cut.count == 1


def test_masks_are_made_without_asking_the_device() -> None:
    from transformers import masking_utils

    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]])
    asked = masking_utils.find_packed_sequence_indices.__wrapped__
    for positions in (rows, rows[:1]):
        documents = documents_of(positions)
        assert documents.alone == (asked(positions) is None)
        with known(documents):
            found = masking_utils.find_packed_sequence_indices(positions)
        assert found is None if documents.alone else torch.equal(found, asked(positions))
    assert (documents_of(rows).bounds.tolist(), documents_of(rows).longest) == ([0, 4, 6, 8], 4)


def test_reference_varlen_knows_sliding_windows_and_grouped_heads() -> None:
    noise = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(9, heads, 8, generator=noise) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
    found = reference_varlen(query, key, value, bounds, 9, None, 2)
    k, v = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    scores = torch.einsum("qhd,khd->hqk", query, k) / 8**0.5
    at = torch.arange(9)
    document = (at >= 4).long()
    seen = (document[:, None] == document[None]) & (at[:, None] >= at) & (at[:, None] - at < 2)
    expected = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    torch.testing.assert_close(found, expected)
