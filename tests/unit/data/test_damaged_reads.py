"""What is damaged or leads elsewhere is noticed where it is read, not only by `verify`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_folders import make_dataset

from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches
from llmtrain.data.dataset import open_dataset
from llmtrain.data.links import refuse_link_out
from llmtrain.errors import DataError


def folder_of(tmp_path: Path, vocab_size: int) -> Path:
    return make_dataset(tmp_path / "data", {"train": [[[1, 2, 3, 4, 0]] * 20]}, vocab_size)


@pytest.mark.parametrize(
    ("vocab_size", "wrong"), [(1000, 1000), (1000, 65_535), (70_000, 70_000), (70_000, -7)]
)
@pytest.mark.parametrize("place", [0, 37, 95, 96])  # the last is read as a label only
def test_an_id_outside_the_vocabulary_is_refused_by_the_row_that_has_it(tmp_path, vocab_size, wrong, place):
    folder = folder_of(tmp_path, vocab_size)
    tokens = np.memmap(folder / "train/00000.bin", "<u2" if vocab_size < 65_500 else "<i4", "r+")
    tokens[place] = wrong
    tokens.flush()
    batches = Batches([DataSource(path=str(folder))], 8, 4, seed=1, mask_documents=True)
    said = (
        rf"data split 'train' holds token id {wrong}, outside its vocabulary of {vocab_size}: .* data verify"
    )
    with pytest.raises(DataError, match=said):
        for step in range(3):
            batches.at(step).read(0, 4)


def test_bounds_that_were_moved_are_found_when_the_dataset_is_opened(tmp_path):
    folder = folder_of(tmp_path, 1000)
    path = folder / "train/00000.idx"
    raw = bytearray(path.read_bytes())
    raw[-16:-8] = (18).to_bytes(8, "little")  # the last but one document ends a sequence earlier
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"train/00000\.idx is damaged \(its sha256 differs"):
        open_dataset(folder, "train")


def test_a_link_is_followed_inside_its_folder_and_into_the_cache_that_made_it(tmp_path):
    snapshot, blobs = tmp_path / "models--x/snapshots/1a", tmp_path / "models--x/blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "77").write_text("{}")
    (tmp_path / "elsewhere").write_text("secret")
    (snapshot / "plain").write_text("{}")
    (snapshot / "cached").symlink_to("../../blobs/77")
    (snapshot / "near").symlink_to("plain")
    for name in ("plain", "cached", "near"):
        refuse_link_out(snapshot / name)
    (snapshot / "far").symlink_to("../../../elsewhere")
    (snapshot / "further").symlink_to("far")
    for name in ("far", "further"):
        with pytest.raises(
            DataError, match=rf"{name} is a link that leads out of its folder, to .*elsewhere"
        ):
            refuse_link_out(snapshot / name)
