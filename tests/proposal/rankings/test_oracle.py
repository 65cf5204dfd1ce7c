"""The oracle knows kind and damage, and says where the data do not."""

import pytest

from pipeline.data.sample import Sample
from pipeline.proposal.rankings import oracle
from pipeline.proposal.rankings.contract import Context
from tests.proposal.rankings.pools import pool, targets


def test_good_samples_come_first_and_are_counted():
    samples = pool()
    ranked = oracle.rank(samples, targets(), Context())
    good = {
        position
        for position, sample in enumerate(samples)
        if sample.source == "a" and sample.damage in ("none", "", "duplicate")
    }
    assert 0 < len(good) < len(samples)
    assert ranked.num_good == len(good) and set(ranked.order_N[: len(good)].tolist()) == good


def test_the_seed_decides_the_order_of_equally_good_ones():
    orders = [oracle.rank(pool(), targets(), Context(seed)).order_N.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and orders[0] != sorted(orders[0])


def of(kind: str, damage: str = "none") -> Sample:
    return Sample([1, 2], [1, 2], source=kind, damage=damage)


@pytest.mark.parametrize("samples", [[of("pool")] * 3, [of("a", "gibberish")] * 3, [of("a")] * 3])
def test_a_pool_that_tells_nothing_is_refused(samples):
    with pytest.raises(ValueError, match=r"(none|3) of 3 samples .* source of the target examples \(a\)"):
        oracle.rank(samples, [of("a")], Context())
