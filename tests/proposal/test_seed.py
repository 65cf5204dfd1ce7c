# N samples, d features
"""Scores of pipeline.score, found again in the pool, and what the learned proposal makes of them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.datastore import parts
from pipeline.datastore.scorer import Scored, Target
from pipeline.proposal.features import NUM_FEATURES, SIMILARITIES
from pipeline.proposal.learned import Learned
from pipeline.proposal.ridge import FORGETTING, Ridge
from pipeline.proposal.seed import read_scores
from tests.proposal.rankings.pools import as_file, pool

N = 400
RNG = np.random.default_rng(5)
FEATURES_Nd = RNG.normal(size=(N, NUM_FEATURES)).astype(np.float16)
WORTH_N = FEATURES_Nd[:, SIMILARITIES + 10].astype(float)  # a feature that the prior does not know
EVERY_N = np.arange(N)


def scored(samples, folder, squared_norm_N, per_part=7):
    """A folder as pipeline.score leaves it, in which sample i has the cosine (i + 1) / 1000."""
    store = parts.Parts(folder, len(samples), per_part)
    alignment_N = (np.arange(len(samples)) + 1) / 1000 * np.sqrt(squared_norm_N)
    target = Target(1.0, 1.0, None)
    folder.mkdir()
    for number in range(len(store)):
        rows = store.positions(number)
        found = Scored(np.ones(len(rows)), squared_norm_N[rows], alignment_N[rows], None)
        parts.write(store.path(number), rows, [samples[i] for i in rows], found, target)
    parts.write_target(folder, target, 1)  # beside the parts, with other columns
    return folder


def by_position(found) -> dict[int, float]:
    return dict(zip(found[0].tolist(), found[1].tolist()))


def test_scores_are_found_by_source_and_id_whatever_their_order(tmp_path):
    samples = pool(20)
    folder = scored(samples[::-1][:15], tmp_path / "scores", np.full(15, 4.0))
    found = by_position(read_scores(folder, as_file(samples, tmp_path)))
    assert found == pytest.approx({19 - i: (i + 1) / 1000 for i in range(15)})
    one = by_position(read_scores(folder / "parts" / "part-00001.parquet", as_file(samples, tmp_path)))
    assert one == pytest.approx({19 - i: (i + 1) / 1000 for i in range(7, 14)})


def test_samples_without_a_cosine_and_names_that_stand_twice_are_left_out(tmp_path):
    samples = pool(20)
    squared_norm_N = np.ones(20)
    squared_norm_N[3] = np.nan
    folder = scored(samples, tmp_path / "scores", squared_norm_N)
    samples[9] = replace(samples[9], id=samples[5].id, source=samples[5].source)
    found = by_position(read_scores(folder, as_file(samples, tmp_path)))
    assert sorted(found) == [i for i in range(20) if i not in (3, 5, 9)]


def test_scores_of_another_pool_are_refused(tmp_path):
    folder = scored(pool(20), tmp_path / "scores", np.ones(20))
    others = [replace(sample, id=f"{sample.id}x") for sample in pool(20)]
    with pytest.raises(ValueError, match=r"among 20 samples of .*parts none with a cosine is one of the 20"):
        read_scores(folder, as_file(others, tmp_path))


def test_a_file_of_something_else_is_refused(tmp_path):
    pa.parquet.write_table(pa.table({"id": ["0"]}), tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match=r"selection\.seed_scores: .*odd\.parquet cannot be read"):
        read_scores(tmp_path / "odd.parquet", as_file(pool(3), tmp_path))


def test_few_seeds_are_one_batch_of_the_regression(monkeypatch):
    monkeypatch.setattr("pipeline.proposal.learned.SEEDED_AT_ONCE", 64)  # in seven pieces
    learned = Learned(FEATURES_Nd, 0.25, has_prior=True)
    learned.seed(EVERY_N, WORTH_N, batch=N)
    value_N = np.clip(WORTH_N / np.sqrt(np.mean(WORTH_N**2)), -1, 2)
    ridge = Ridge(learned.ridge.prior_d, learned.ridge.strength)
    ridge.observe(FEATURES_Nd, value_N)
    assert np.allclose(learned.ridge.weights_d, ridge.weights_d, atol=1e-9)
    assert learned.observed == dict(enumerate(value_N))


def test_many_seeds_count_as_much_as_steady_observation_would():
    """The identity behind the bound: batches that all see the same add up to batch / (1 - FORGETTING)."""
    steady, seeded = Ridge(np.zeros(NUM_FEATURES), 1.0), Learned(FEATURES_Nd, 0.25, has_prior=False)
    value_N = np.clip(WORTH_N / np.sqrt(np.mean(WORTH_N**2)), -1, 2)
    for _ in range(700):  # 4 of the N on average
        steady.observe(FEATURES_Nd, value_N, weight=4 / N)
    seeded.seed(EVERY_N, WORTH_N, batch=4)
    assert 4 / (1 - FORGETTING) < N
    assert np.allclose(seeded.ridge.products_dd, steady.products_dd, rtol=1e-5, atol=1e-4)
    assert np.allclose(seeded.ridge.weights_d, steady.weights_d, atol=1e-5)


def test_what_is_observed_later_overrules_the_seed():
    learned, draws = Learned(FEATURES_Nd, 0.25, has_prior=True), np.random.default_rng(0)
    learned.seed(EVERY_N, WORTH_N, batch=16)
    assert np.corrcoef(learned.predict(EVERY_N), WORTH_N)[0, 1] > 0.9
    for _ in range(100):
        found = learned.propose(lambda count: draws.permutation(N)[:count], 16, True, draws)
        learned.observe(found, -WORTH_N[found.positions_n])
    assert np.corrcoef(learned.ridge.predict(FEATURES_Nd), -WORTH_N)[0, 1] > 0.8


def test_a_seed_is_part_of_the_state():
    """So a run that goes on needs no second look at the file, and would not be moved by another one."""
    learned, other = (Learned(FEATURES_Nd, 0.25, has_prior=True) for _ in range(2))
    learned.seed(EVERY_N[:100], WORTH_N[:100], batch=16)
    other.seed(EVERY_N[50:], -WORTH_N[50:], batch=16)
    other.load_state_dict(learned.state_dict())
    assert np.array_equal(other.predict(EVERY_N), learned.predict(EVERY_N))
