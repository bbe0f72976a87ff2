"""The order of rows: bijective, seekable, and in proportion at every prefix."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmtrain.data.order import LONGEST_PERIOD, Mixture, Permutation, derive


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10, 100, 1000, 65536, 99991])
def test_a_permutation_hits_every_element_once(n):
    for seed in (0, 1, 2**63 + 5):
        assert np.array_equal(np.sort(Permutation(n, seed)(np.arange(n))), np.arange(n))


def test_a_permutation_of_a_thousand_million_is_free_to_seek():
    permutation = Permutation(10**9, 42)
    positions = np.array([0, 5, 999_999_999, 123_456_789])
    together = permutation(positions)
    assert len(set(together.tolist())) == 4 and together.max() < 10**9
    assert [int(permutation(positions[k : k + 1])[0]) for k in range(4)] == together.tolist()


def test_a_permutation_looks_shuffled():
    n = 20000
    order = Permutation(n, 7)(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.03
    assert (order == np.arange(n)).sum() < 10
    assert (np.diff(order) == 1).sum() < 10


def test_seeds_and_paths_give_different_keys():
    keys = {derive(seed, *path) for seed in (0, 1) for path in [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]}
    assert len(keys) == 12


def test_the_permutation_does_not_change_between_versions():
    assert Permutation(1000, 1234)(np.arange(6)).tolist() == [376, 219, 824, 270, 932, 220]


def check_prefixes(mixture: Mixture, shares: np.ndarray, length: int) -> None:
    source, rank = mixture(np.arange(length))
    for number, share in enumerate(shares):
        mine = source == number
        error = np.cumsum(mine) - share * np.arange(1, length + 1)
        assert np.abs(error).max() < 1
        assert np.array_equal(rank[mine], np.arange(mine.sum()))


@pytest.mark.parametrize(
    "weights",
    [[1], [1, 1], [2, 1], [0.7, 0.2, 0.1], [0.5, 0.3, 0.15, 0.04, 0.01], [1, 1, 1, 97], [1e-3, 1.0]],
)
def test_weights_as_written_are_exact_to_one_row_at_every_prefix(weights):
    shares = np.array(weights) / sum(weights)
    check_prefixes(Mixture(weights), shares, 30_000)


def test_random_mixtures_are_exact_to_one_row_at_every_prefix():
    rng = random.Random(5)
    for _ in range(60):
        weights = [rng.randint(1, 400) for _ in range(rng.randint(2, 9))]
        mixture = Mixture(weights)
        check_prefixes(mixture, np.array(weights) / sum(weights), 2 * mixture.period + 3)


def test_weights_without_a_short_common_fraction_are_resolved_to_65536_parts():
    weights = [0.123456789, 0.5, 1e-9, 0.31415926]
    mixture = Mixture(weights)
    assert abs(mixture.period - LONGEST_PERIOD) <= len(weights) and min(mixture.parts) >= 1
    shares = np.array(mixture.parts) / mixture.period
    assert np.abs(shares - np.array(weights) / sum(weights)).max() < 2 / LONGEST_PERIOD
    check_prefixes(mixture, shares, mixture.period)


def test_a_mixture_is_found_at_any_position_without_the_ones_before():
    mixture = Mixture([0.7, 0.2, 0.1])
    whole = mixture(np.arange(5000))
    picked = np.array([4999, 0, 1234, 10**12])
    source, rank = mixture(picked)
    assert source[:3].tolist() == whole[0][picked[:3]].tolist()
    assert rank[:3].tolist() == whole[1][picked[:3]].tolist()
    assert abs(rank[3] - 10**12 * [0.7, 0.2, 0.1][source[3]]) < 1
