"""What is in the shards is what was in the sources: any text comes back, and no id wraps (rows D5, D6)."""

from __future__ import annotations

import random

import pytest
import rows_of_data as rows


def test_ten_thousand_texts_of_any_code_points_come_back_once_each(tmp_path):
    assert not rows.round_trip(tmp_path, 0, random.Random(7))


@pytest.mark.parametrize("number", range(len(rows.SIZES)), ids=map(str, rows.SIZES))
def test_no_id_wraps_at_any_size_of_vocabulary(tmp_path, number):
    assert not rows.vocabulary(tmp_path, number, random.Random(number))
