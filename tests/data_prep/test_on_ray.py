"""The chunks of a build as tasks of a local Ray: the same bytes as without it."""

from __future__ import annotations

import json
import sys

import pytest
from corpora import corpus_file, files_of

from data_prep.build import build
from llmtrain.errors import ConfigError, DataError


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.LEAST_CHUNK_BYTES", 6_000)
    monkeypatch.setattr("data_prep.files.CHUNK_BYTES", 6_000)
    rows = "".join(json.dumps({"text": f"{number % 700} some text"}) + "\n" for number in range(1500))
    (tmp_path / "a.jsonl").write_text(rows)
    return corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}], steps=[{"dedup": {}}])


def test_ray_tasks_give_the_same_bytes_and_tell_what_was_wrong(tmp_path, chunks, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        report = build(chunks, on="ray")
        with open(tmp_path / "a.jsonl", "a") as file:
            file.write("{broken\n")
        with pytest.raises(DataError, match=r"^a\.jsonl:1501: broken JSON"):
            build(chunks, ["strict=true", f"output={tmp_path}/strict"], on="ray")
    finally:
        ray.shutdown()
    assert report.manifest.counts.documents_out == 700
    built = json.loads((tmp_path / "out/build.json").read_text())
    assert built["chunks_taken"] == 2 * built["chunks"] >= 8
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes().removesuffix(b"{broken\n"))
    build(chunks, [f"output={tmp_path}/plain"])
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain")


def test_ray_that_is_not_installed_is_asked_for(chunks, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--on.*pip install ray"):
        build(chunks, on="ray")
