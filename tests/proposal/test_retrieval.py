import numpy as np

from pipeline.data.stream import CandidateStream
from pipeline.proposal.retrieval import Retrieval


def test_the_best_of_the_ranking_come_in_the_plain_order_each_once_an_epoch():
    order = np.random.default_rng(1).permutation(40)
    stream, place = CandidateStream(range(40), 1, seed=2), 0

    def upcoming(count):
        nonlocal place
        place += count
        return stream.order(place - count, count)

    proposal, found, windows = Retrieval(order, 12), [], 0
    for step in range(6):
        proposed = proposal.propose(upcoming, 4, step % 2 == 0, np.random.default_rng(0))
        found += proposed.positions_n.tolist()
        windows += proposed.window
    best = set(order[:12].tolist())
    assert set(found[:12]) == set(found[12:]) == best and found[:12] != found[12:]
    plain = [position for position in stream.order(0, place).tolist() if position in best]
    assert found == plain[:24] and windows == place and proposal.share == 0.3


def test_no_update_has_a_sample_twice_where_an_epoch_ends_inside():
    stream, place = CandidateStream(range(20), 1, seed=2), 0

    def upcoming(count):
        nonlocal place
        place += count
        return stream.order(place - count, count)

    proposal = Retrieval(np.arange(20), 7)
    for _ in range(40):
        found = proposal.propose(upcoming, 5, False, np.random.default_rng(0)).positions_n
        assert len(set(found.tolist())) == 5 and found.max() < 7


def test_the_state_holds_what_is_taken():
    one, other = Retrieval(np.arange(20), 7), Retrieval(np.arange(20)[::-1], 7)
    other.load_state_dict(one.state_dict())
    assert other.is_taken_N.tolist() == one.is_taken_N.tolist()
