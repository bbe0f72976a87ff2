"""Of a multimodal checkpoint its text part is what every verb takes; what has none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import packed_rows, whole_model

from llmtrain.config.schema import ModelSection
from llmtrain.errors import ConfigError, InputError
from llmtrain.evaluate import Subject, model_config
from llmtrain.model.build import hf_config
from llmtrain.model.kernels import Kernels
from llmtrain.model.weights import WeightFiles

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WIDE = {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
EXPERTS = {"num_local_experts": 4, "intermediate_size_mlp": 48, "moe_layers": [0, 1]}
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({"model_type": "gemma3_text"}, {"model_type": "siglip_vision_model"}),
    "llama4": ({"model_type": "llama4_text", **EXPERTS}, WIDE),
    "mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral"}),
}


@pytest.mark.parametrize("family", PARTS)
def test_the_text_part_is_taken_with_its_weights(family: str, tmp_path: Path) -> None:
    text, vision = PARTS[family]
    parts = {"text_config": {**TEXT, **text}, "vision_config": {**VISION, **vision}}
    config = transformers.AutoConfig.for_model(family, **parts)
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    found = hf_config(ModelSection(source=str(tmp_path)), 97)
    assert found.model_type == text["model_type"]
    assert model_config(Subject(str(tmp_path), None, None)).model_type == found.model_type
    ours = whole_model(found, weights=WeightFiles(str(tmp_path)), kernels=Kernels(documents=False)).eval()
    assert not [name for name, _ in ours.named_parameters() if "vision" in name or "projector" in name]
    whole = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    tokens, labels = packed_rows()[0], packed_rows()[2]
    with torch.no_grad():
        logits = whole(input_ids=tokens).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        loss = ours(tokens, torch.arange(16).repeat(2, 1), labels)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_a_text_part_that_is_no_model_is_named_by_every_verb(tmp_path: Path) -> None:
    transformers.Qwen2_5_VLConfig().save_pretrained(tmp_path)
    why = (
        "model_type qwen2_5_vl is multimodal, and its text part, qwen2_5_vl_text, is no causal language model"
    )
    with pytest.raises(ConfigError, match=f"model.source.*{why}"):
        hf_config(ModelSection(source=str(tmp_path)), 97)
    with pytest.raises(InputError, match=f"can't be evaluated or completed: its {why}"):
        model_config(Subject(str(tmp_path), None, None))


def test_a_new_multimodal_model_is_pointed_to_its_text_part() -> None:
    given = {"model_type": "gemma3", "text_config": TEXT}
    with pytest.raises(ConfigError, match="text trains its text part alone: write model_type: gemma3_text"):
        hf_config(ModelSection(config=given), 97)
