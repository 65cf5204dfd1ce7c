from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from pipeline.data.mixture import Mixture, mixture_of
from pipeline.data.sample import Sample
from pipeline.data.stream import CandidateStream

SIZES, WEIGHTS = [40, 7, 13], [1, 3, 2]


def stream(sizes, weights, candidates=4, seed=0):
    pool = [Sample([i, i], [i, i], id=str(i)) for i in range(sum(sizes))]
    mixture = mixture_of([f"name {s}" for s in range(len(sizes))], sizes, weights) if weights else None
    return CandidateStream(pool, candidates, seed, mixture)


def drawn(stream, num_epochs):
    """Positions of whole epochs, one row each."""
    num_steps = num_epochs * len(stream.pool) // stream.candidates_per_step
    return np.concatenate([stream.positions(step) for step in range(num_steps)]).reshape(
        num_epochs, len(stream.pool)
    )


def name_of(positions, sizes):
    return np.searchsorted(np.cumsum(sizes), positions, side="right")


@pytest.mark.parametrize(
    "sizes, weights, places",
    [
        (SIZES, WEIGHTS, [10, 30, 20]),
        ([10, 10], [3, 1], [15, 5]),
        ([3, 3], [1, 1], [3, 3]),
        ([5, 5, 1], [1, 1, 1], [4, 4, 3]),
        ([1, 9], [0.1, 0.9], [1, 9]),
        ([100, 100], [1e-2, 1e300], None),
        ([3, 7], [1e-300, 1e-300], [5, 5]),
    ],
)
def test_places_are_the_nearest_whole_shares(sizes, weights, places):
    if places is None:
        with pytest.raises(
            ValueError, match=r"gives name 0, 0\.01, a share of 1e-300 %, less than one of the 200 places"
        ):
            stream(sizes, weights)
        return
    mixture = mixture_of(sizes, sizes, weights)
    assert list(mixture.places) == places and sum(places) == sum(sizes)
    shares = [sum(sizes) * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    assert all(abs(count - share) < 1 for count, share in zip(places, shares))


def test_every_epoch_has_the_exact_shares_scattered_over_all_of_it():
    epochs = drawn(stream(SIZES, WEIGHTS), 8)
    for epoch in epochs:
        assert np.bincount(name_of(epoch, SIZES)).tolist() == [10, 30, 20]
    first_halves = name_of(epochs[:, :30], SIZES)
    assert 0.4 < (first_halves == 1).mean() < 0.6 and len({tuple(epoch) for epoch in epochs.tolist()}) == 8


def test_no_sample_of_a_name_comes_again_before_all_of_the_name_have_come():
    positions = drawn(stream(SIZES, WEIGHTS), 28).ravel()
    for name, (size, first) in enumerate(zip(SIZES, np.cumsum([0, *SIZES]))):
        own = positions[name_of(positions, SIZES) == name]
        rounds = [own[start : start + size] for start in range(0, len(own), size)]
        assert all(sorted(part.tolist()) == list(range(first, first + size)) for part in rounds[:-1])
        assert len(set(rounds[-1].tolist())) == len(rounds[-1])
        assert all(one.tolist() != other.tolist() for one, other in pairwise(rounds[:-1]))
        if len(own) % size == 0:
            assert set(Counter(own.tolist()).values()) == {len(own) // size}


@pytest.mark.parametrize("weights", [None, [40, 7, 13], [4, 0.7, 1.3]])
def test_without_weights_or_with_the_sizes_the_order_is_a_shuffle_of_the_pool(weights):
    """As it has always been: another would change runs that are continued."""
    expected = [np.random.default_rng((3, epoch)).permutation(60) for epoch in range(3)]
    assert drawn(stream(SIZES, weights, seed=3), 3).tolist() == np.stack(expected).tolist()


def test_what_has_no_share_or_nothing_to_fill_it_with_is_refused():
    """Also where the weights' sum is no float any more."""
    with pytest.raises(ValueError, match=r"gives c, 1e-300, a share of 0 %, less than one of the 15 places"):
        mixture_of(["a", "b", "c"], [5, 5, 5], [1e308, 1e308, 1e-300])
    with pytest.raises(ValueError, match="gives b a share, and none of its samples is left after tokenising"):
        mixture_of(["a", "b"], [20, 0], [1, 1])


def test_positions_are_a_pure_function_of_seed_and_step():
    forward, backward = stream(SIZES, WEIGHTS, candidates=7), stream(SIZES, WEIGHTS, candidates=7)
    ahead = [forward.positions(step).tolist() for step in range(40)]
    assert ahead == [backward.positions(step).tolist() for step in reversed(range(40))][::-1]
    assert ahead != [
        stream(SIZES, WEIGHTS, candidates=7, seed=1).positions(step).tolist() for step in range(40)
    ]
    assert ahead != [stream(SIZES, [1, 3, 1], candidates=7).positions(step).tolist() for step in range(40)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_a_mixture_does_not_depend_on_the_number_of_ranks(world_size):
    mixed = stream(SIZES, WEIGHTS, candidates=6)
    for step in (0, 9, 23):
        together = [
            int(sample.id) for rank in range(world_size) for sample in mixed.shard(step, rank, world_size)
        ]
        assert together == mixed.positions(step).tolist()


def test_a_name_with_fewer_samples_than_its_share_of_a_step_comes_several_times_in_it():
    mixed = stream([2, 38], [1, 1], candidates=20)
    epoch = drawn(mixed, 1)[0]
    assert Counter(epoch[epoch < 2].tolist()) == {0: 10, 1: 10}
    assert mixed.mixture == Mixture((2, 38), (20, 20)) and mixed.epochs(40) == 1.0
