import numpy as np
import pytest

from pipeline.data.sample import Sample
from pipeline.data.stream import CandidateStream


def pool(num_samples):
    return [Sample([i, i], [i, i], id=str(i)) for i in range(num_samples)]


def test_each_epoch_holds_every_sample_once_in_its_own_order():
    stream = CandidateStream(pool(12), 4, seed=3)
    epochs = [np.concatenate([stream.positions(step) for step in range(3 * e, 3 * e + 3)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_steps_straddle_epochs_without_losing_a_sample():
    stream = CandidateStream(pool(10), 4, seed=0)
    order = np.concatenate([stream.positions(step) for step in range(5)])
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))
    assert stream.epochs(0) == 0 and stream.epochs(20) == 2 and stream.epochs(12) == pytest.approx(1.2)


def test_a_step_is_a_pure_function_of_seed_and_step():
    forward, backward = CandidateStream(pool(10), 4, seed=1), CandidateStream(pool(10), 4, seed=1)
    ahead = [forward.positions(step).tolist() for step in range(40)]
    assert ahead == [backward.positions(step).tolist() for step in reversed(range(40))][::-1]
    other = CandidateStream(pool(10), 4, seed=2)
    assert ahead != [other.positions(step).tolist() for step in range(40)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_candidates_do_not_depend_on_the_number_of_ranks(world_size):
    stream = CandidateStream(pool(14), 6, seed=0)
    for step in range(5):
        together = [sample for rank in range(world_size) for sample in stream.shard(step, rank, world_size)]
        assert [int(sample.id) for sample in together] == stream.positions(step).tolist()


def test_a_pool_smaller_than_a_step_is_refused_with_both_numbers():
    assert sorted(CandidateStream(pool(4), 4, seed=0).positions(9).tolist()) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"3 usable samples, fewer than selection\.candidates_per_step = 4"):
        CandidateStream(pool(3), 4, seed=0)


@pytest.mark.parametrize("place, count", [(0, 0), (0, 10), (3, 4), (8, 25), (29, 1)])
def test_any_stretch_of_the_order_is_a_part_of_the_epochs_behind_each_other(place, count):
    stream = CandidateStream(pool(10), 4, seed=0)
    whole = np.concatenate([stream.order(10 * epoch, 10) for epoch in range(5)])
    assert stream.order(place, count).tolist() == whole[place : place + count].tolist()
