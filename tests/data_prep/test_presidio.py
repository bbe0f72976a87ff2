"""The presidio step: a clear word where it is missing, and the real analyzer where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
from step_driver import pass_through

from data_prep.steps.presidio import Presidio, make
from llmtrain.errors import DataError

installed = importlib.util.find_spec("presidio_analyzer") is not None


def test_without_presidio_the_step_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^steps: presidio is not installed: pip install presidio-analyzer"):
        make(Presidio())


def test_a_model_that_is_missing_is_not_downloaded(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found("json") if "presidio" in name else None
    )
    with pytest.raises(
        DataError, match=r"^steps: presidio.model = 'xx_none' is neither an installed spaCy model"
    ):
        make(Presidio(model="xx_none"))


@pytest.mark.skipif(not installed, reason="needs presidio-analyzer")
def test_the_real_analyzer_finds_masks_drops_and_reports(tmp_path):
    import spacy

    nlp = spacy.blank("en")  # no names are known to it; a rule stands in for the model
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Grace Hopper"}])
    nlp.to_disk(tmp_path / "model")
    texts = ["Then Grace Hopper wrote to a@example.com.", "nobody"]
    settings = {"model": str(tmp_path / "model"), "entities": ("PERSON", "EMAIL_ADDRESS")}
    outcome = pass_through(make(Presidio(**settings)), texts)
    assert outcome.texts == ["Then <PERSON> wrote to <EMAIL_ADDRESS>.", "nobody"]
    assert outcome.tally.found == {"presidio: PERSON": 1, "presidio: EMAIL_ADDRESS": 1}
    dropped = pass_through(make(Presidio(mode="drop", **settings)), texts)
    assert dropped.texts == ["nobody"] and sum(dropped.tally.rejected.values()) == 1
    assert pass_through(make(Presidio(mode="report", **settings)), texts).texts == texts
