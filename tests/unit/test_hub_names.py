"""What looks like a path is never asked of the Hub, and a missing path is answered with what lies near it."""

import pytest

from llmtrain.config.hub_names import looks_like_a_path, no_such_path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models--Qwen--Fetched").mkdir(parents=True)
    for name in ("work/runs-of-may/demo", "work/Qwen/local", "work/tokenizer"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.parametrize(
    "name",
    [
        *("./x", "../x", "~/x", "/no/such", "a/b/c", "a/b/", "..", "a\\b", "corpus.jsonl", "me/cfg.yaml"),
        *("runs/nosuch", "data/stdlib", "runs-of-may/dmeo", "Qwen/Other", "tokeniser", "tokenizer"),
    ],
)
def test_what_is_meant_as_a_path(name):
    assert looks_like_a_path(name)


@pytest.mark.parametrize(
    "name", ["gpt2", "openai-community/gpt2", "Qwen/Fetched", "HuggingFaceFW/fineweb-edu"]
)
def test_what_is_meant_as_a_repository(name):
    assert not looks_like_a_path(name)


def test_a_missing_path_names_what_lies_near(tmp_path):
    work = tmp_path / "work"
    assert no_such_path("runs-of-may/dmeo") == (
        f"no such file or folder (seen from {work}), did you mean 'runs-of-may/demo'?; "
        "for the Hub's repository of that name, fetch it first: hf download runs-of-may/dmeo"
    )
    assert no_such_path("Qwen/x/y") == f"no such file or folder (seen from {work}); Qwen/ holds local"
    assert "did you mean 'tokenizer'?" in no_such_path("./tokeniser/tokenizer.json")
    assert no_such_path(str(work / "nothing-like-it")).endswith(f"{work}/ holds Qwen, runs-of-may, tokenizer")
