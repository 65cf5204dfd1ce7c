# N samples, M targets, V buckets, S sketch size
"""Features against a dense reference that goes sample by sample and gram by gram."""

import math

import numpy as np
import pytest

from pipeline.data import flat, token_file
from pipeline.data.sample import IGNORED
from pipeline.data.token_file import TokenFile
from pipeline.proposal import features
from pipeline.proposal.features import BUCKETS, LENGTHS, SIMILARITIES, SKETCH
from tests.proposal.samples import pool_of_two_kinds, sample

POOL, IS_FIRST = pool_of_two_kinds(60, seed=1)
TARGETS = [
    one
    for one, is_first in zip(pool_of_two_kinds(40, seed=2)[0], pool_of_two_kinds(40, seed=2)[1])
    if is_first
]


def hashed(field: int, tokens: list[int]) -> int:
    """The bucket of an n-gram, with whole numbers of Python."""
    mix, found = 0x9E3779B97F4A7C15, (field * 0x9E3779B97F4A7C15) % 2**64
    for token in tokens:
        found = ((found ^ token) * mix) % 2**64
        found ^= found >> 29
    return found % BUCKETS


def grams(one) -> list[int]:
    """Buckets of all n-grams of a sample, as often as they come."""
    found, is_answer = [], [label != IGNORED for label in one.labels]
    for place, token in enumerate(one.input_ids):
        found.append(hashed(2 if is_answer[place] else 1, [token]))
        if place and is_answer[place] == is_answer[place - 1]:
            found.append(hashed((2 if is_answer[place] else 1) + 8, [one.input_ids[place - 1], token]))
    answer = [token for token, counts in zip(one.input_ids, is_answer) if counts]
    return (
        found + [hashed(3, [token]) for token in answer[:2]] + [hashed(4, [token]) for token in answer[-2:]]
    )


def dense(samples, frequency, num_samples) -> np.ndarray:
    """TF-IDF rows of length 1, (B, V)."""
    rows = np.zeros((len(samples), BUCKETS))
    for row, one in zip(rows, samples):
        for bucket in set(grams(one)):
            row[bucket] = (1 + math.log(grams(one).count(bucket))) * math.log(
                (num_samples + 1) / (frequency[bucket] + 1)
            )
        row /= max(math.sqrt((row**2).sum()), 1e-12)
    return rows


@pytest.fixture(scope="module")
def expected():
    frequency = np.zeros(BUCKETS)
    for one in POOL:
        frequency[list(set(grams(one)))] += 1
    return dense(POOL, frequency, len(POOL)), dense(TARGETS, frequency, len(POOL))


@pytest.fixture(scope="module")
def table():
    return features.make(POOL, TARGETS)


def z_scored(values):
    return (values - values.mean(0)) / values.std(0)


def test_similarities_are_mean_and_largest_cosine_to_the_target_examples(table, expected):
    rows_NV, targets_MV = expected
    cosine_NM = rows_NV @ targets_MV.T
    wanted = np.stack([cosine_NM.mean(1), cosine_NM.max(1)], axis=1)
    assert np.allclose(table.similarity_N, wanted[:, 0], atol=1e-6)
    assert np.allclose(table.features_Nd[:, :SIMILARITIES], z_scored(wanted), atol=2e-3)  # float16


def test_the_sketch_adds_each_bucket_with_its_sign_to_one_number(table, expected):
    sketch_VS = features._sketch().toarray()
    assert np.array_equal(np.abs(sketch_VS).sum(1), np.ones(BUCKETS))
    assert np.allclose(table.features_Nd[:, -SKETCH:], expected[0] @ sketch_VS, atol=1e-3)


def test_lengths_are_those_of_sample_and_answer(table):
    logs = np.log1p([[len(one.input_ids), sum(label != IGNORED for label in one.labels)] for one in POOL])
    wanted = np.concatenate([z_scored(logs), z_scored(logs) ** 2], axis=1)
    assert np.allclose(table.features_Nd[:, SIMILARITIES : SIMILARITIES + LENGTHS], wanted, atol=5e-3)
    assert np.array_equal(table.features_Nd[:, SIMILARITIES + LENGTHS], np.ones(len(POOL)))


def test_a_file_of_tokens_gives_the_table_of_its_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "token_blocks", lambda samples: flat.token_blocks(samples, 256))
    many = [*POOL] * 6  # more than a batch of the file
    token_file.write(tmp_path / "pool.json", [many], dict, lambda: None)
    found, wanted = features.make(TokenFile(tmp_path / "pool.json"), TARGETS), features.make(many, TARGETS)
    for name in ("features_Nd", "similarity_N"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name


def test_prompt_and_answer_are_told_apart():
    """The same tokens in the other half are no likeness."""
    pool = [sample([11, 12, 13], [21, 22, 23]), sample([21, 22, 23], [11, 12, 13]), *POOL]
    found = features.make(pool, [sample([11, 12, 13], [21, 22, 23])] * 2)
    assert found.similarity_N[0] == pytest.approx(1, abs=1e-6) and found.similarity_N[1] == 0


def test_one_odd_sample_among_very_many_alike_is_no_infinite_feature():
    """Its square would be beyond float16: the deviation of one among N is the root of N."""
    values = np.zeros((100_000, 1))
    values[7] = 1.0
    found = features._z_scored(values)
    assert found.max() == features.LARGEST and np.isfinite(np.square(found).astype(np.float16)).all()


@pytest.mark.parametrize("at_once", [1, 3])
def test_targets_some_at_a_time_are_all_of_them(table, monkeypatch, at_once):
    monkeypatch.setattr(features, "TARGETS_AT_ONCE", at_once)
    assert np.array_equal(features.make(POOL, TARGETS).features_Nd, table.features_Nd)


def test_odd_samples_have_finite_features():
    """One token, no answer, no prompt, all alike, one target example alone."""
    pool = [sample([5], []), sample([], [5]), sample([5], [5]), sample([5], [5])]
    found = features.make(pool, [sample([], [6])])
    assert np.isfinite(found.features_Nd).all() and not found.similarity_N.any()
    with pytest.raises(ValueError, match="need target examples"):
        features.make(pool, [])
