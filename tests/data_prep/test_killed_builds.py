"""A build that is ended by a signal leaves nothing that could be taken for a dataset."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
from corpora import corpus_file, files_of
from test_build import jsonl, small_chunks

from data_prep.build import build
from llmtrain.data.manifest import read_manifest
from llmtrain.data.verify import verify
from llmtrain.errors import DataError

SLOW_BUILD = textwrap.dedent(
    """
    import sys, time
    from data_prep import build, files, sources

    sources.LEAST_CHUNK_BYTES = files.CHUNK_BYTES = 20_000
    build.ALONE_BELOW_BYTES = 0

    def slowly(what, done, total, dropped=0):
        if what == "tokenizing":
            print("tokenizing", flush=True)
            time.sleep(20)  # the signal finds it here

    if __name__ == "__main__":
        build.build(sys.argv[1], ["workers=2"], slowly)
    """
)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_killed_leaves_no_dataset_and_the_next_one_is_as_if_it_never_was(
    tmp_path, monkeypatch, how
):
    jsonl(tmp_path / "a.jsonl", 1500)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.jsonl")}], splits={"valid": 0.1})
    (tmp_path / "slow.py").write_text(SLOW_BUILD)
    command = [sys.executable, str(tmp_path / "slow.py"), str(path)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    assert running.stdout is not None and running.stdout.readline() == "tokenizing\n"
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    for process in (str(running.pid), *children):
        assert "/sem." not in Path(f"/proc/{process}/maps").read_text(), "a semaphore outlives the killed"
    running.send_signal(how)
    running.communicate(timeout=30)
    assert running.returncode != 0
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="unfinished|does not exist"):
        verify(tmp_path / "out.partial")
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children), "workers outlived their build"
    small_chunks(monkeypatch, 20_000)
    build(path)
    build(path, [f"output={tmp_path}/undisturbed"])
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")
    assert not (tmp_path / "out.partial").exists()
    assert read_manifest(tmp_path / "out").counts.documents_in == 1500
