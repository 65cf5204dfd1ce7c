import numpy as np
import pytest

from pipeline.proposal.width import BINS, MOST_EPOCHS, WITHIN, pool_share

RNG = np.random.default_rng(0)


def two_groups(share, num_samples=2000):
    low = RNG.normal(0.05, 0.02, int(num_samples * (1 - share)))
    return np.concatenate([low, RNG.normal(0.3, 0.05, num_samples - len(low))])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.5, 0.8])
def test_a_group_that_stands_apart_is_found_whatever_its_size(share):
    assert pool_share(two_groups(share), 0) == pytest.approx(share, rel=0.1)


def test_the_cut_is_the_best_of_all_bins():
    """Against a loop over thresholds, over samples that are put into the middle of their bins."""
    values = RNG.gamma(1.5, 0.1, 500)
    counts, edges = np.histogram(np.clip(values, *np.quantile(values, WITHIN)), BINS)
    binned = np.repeat((edges[1:] + edges[:-1]) / 2, counts)
    best, wanted = -1.0, None
    for edge in edges[1:-1]:
        below, above = binned[binned < edge], binned[binned >= edge]
        if len(below) and len(above):
            spread = len(below) * len(above) * (below.mean() - above.mean()) ** 2
            if spread > best * (1 + 1e-12):
                best, wanted = spread, len(above) / len(values)
    assert pool_share(values, 0) == pytest.approx(wanted)


def test_one_odd_sample_does_not_stretch_the_bins():
    assert pool_share(np.append(two_groups(0.1), 50.0), 0) == pytest.approx(0.1, rel=0.1)


def test_a_long_run_takes_a_wider_share():
    """So that no sample is trained on more than MOST_EPOCHS times on average."""
    values = two_groups(0.02)
    assert pool_share(values, 100) == pytest.approx(0.02, rel=0.1)
    assert pool_share(values, 4000) == pytest.approx(4000 / MOST_EPOCHS / 2000)
    assert pool_share(values, 10**6) == 1


def test_samples_count_as_often_as_they_come_in_an_epoch():
    """Every one three times is a pool three times as large; the similar ones alone are a wider share."""
    values = two_groups(0.1)
    assert pool_share(values, 0, np.full(len(values), 3.0)) == pool_share(np.repeat(values, 3), 0)
    places_N = np.where(values > 0.17, 9.0, 1.0)
    assert pool_share(values, 0, places_N) == pytest.approx(0.5, rel=0.05)


def test_samples_that_are_all_alike_are_all_taken():
    assert pool_share(np.full(50, 0.2), 0) == 1 == pool_share(np.array([0.3]), 0)
