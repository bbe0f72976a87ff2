"""Secrets that people wrote down are refused without being repeated, and never said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml

from llmtrain.config.load import load_run
from llmtrain.config.secrets import HIDDEN, RedactingFormatter, redact
from llmtrain.config.template import load_template
from llmtrain.errors import ConfigError

RUN = {
    "name": "x",
    "model": {"config": {"model_type": "llama"}},
    "data": {"train": [{"path": "d"}]},
    "schedule": {"steps": 1},
}
TOKENS = [
    "hf_" + "aB3dE6gH9j" * 3,
    "sk-" + "aB3dE6gH9j" * 3,
    "ghp_" + "aB3dE6gH9j" * 4,
    "AKIA" + "ABCD2345" * 2,
    "xoxb-" + "1234567890ab",
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_in_a_run_file_or_on_the_command_line_is_refused_and_not_repeated(
    tmp_path: Path, token: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | {"output_dir": f"runs/{token}"}))
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert "output_dir (" in str(caught.value) and "run.yaml:" in str(caught.value)
    assert "looks like a secret" in str(caught.value) and "HF_TOKEN" in str(caught.value)
    assert token not in str(caught.value)
    path.write_text(yaml.safe_dump(RUN))
    for override in (f"model.source={token}", f"model.sorce={token}", f"optimizer.lr={token}"):
        with pytest.raises(ConfigError, match=r"command line\): looks like a secret") as caught:
            load_run(path, [override])
        assert token not in str(caught.value)


def test_a_key_that_is_named_as_a_secret_is_refused_in_a_deepspeed_file(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"comet": {"enabled": True, "api_key": "plain-looking"}}))
    with pytest.raises(ConfigError, match=r"comet\.api_key .*looks like a secret") as caught:
        load_template(str(path))
    assert "plain-looking" not in str(caught.value)


def test_what_only_looks_a_little_like_one_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for harmless in ("hf_home", "sk-learn", "runs/2026-11-25", "a" * 40, "https://host:8080/x"):
        path.write_text(yaml.safe_dump(RUN | {"output_dir": harmless}))
        assert load_run(path).config.folder == harmless


def test_what_is_said_holds_no_secret() -> None:
    told = redact("pushing with hunter2hunter2 to https://me:pw12345@host", {"HF_TOKEN": "hunter2hunter2"})
    assert told == f"pushing with {HIDDEN} to https://{HIDDEN}@host"
    assert redact("path", {"TOKENIZERS_PARALLELISM": "path", "SHORT_TOKEN": "path"}) == "path"
    try:
        raise ValueError(TOKENS[0])
    except ValueError:
        import sys

        record = logging.LogRecord("x", 40, "f", 1, "failed: %s", (TOKENS[1],), sys.exc_info())
    line = RedactingFormatter("%(message)s").format(record)
    assert "ValueError" in line
    assert TOKENS[0] not in line and TOKENS[1] not in line
