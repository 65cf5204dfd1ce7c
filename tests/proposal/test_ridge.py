"""The online regression against one that keeps all observations and solves anew."""

import numpy as np
import pytest

from pipeline.proposal.ridge import FORGETTING, Ridge

RNG = np.random.default_rng(0)
PRIOR, STRENGTH = np.array([1.0, 0.0, -0.5, 0.0]), 3.0
BATCHES = [(RNG.normal(size=(n, 4)), RNG.normal(size=n)) for n in (5, 1, 8, 3)]


def solved(batches) -> np.ndarray:
    """argmin of sum_b gamma^age |y - X w|^2 + strength |w - mu|^2, by stacked least squares."""
    rows, values = [np.sqrt(STRENGTH) * np.eye(4)], [np.sqrt(STRENGTH) * PRIOR]
    for age, (features, value) in enumerate(reversed(batches)):
        rows.append(FORGETTING ** (age / 2) * features)
        values.append(FORGETTING ** (age / 2) * value)
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)[0]


def test_weights_are_those_of_all_observations_with_their_ages():
    ridge = Ridge(PRIOR, STRENGTH)
    for number, batch in enumerate(BATCHES, start=1):
        ridge.observe(*batch)
        assert np.allclose(ridge.weights_d, solved(BATCHES[:number]), atol=1e-10)


def test_before_any_observation_the_prior_predicts_and_never_fades():
    ridge, new = Ridge(PRIOR, STRENGTH), RNG.normal(size=(6, 4))
    assert np.array_equal(ridge.predict(new), new @ PRIOR)
    for _ in range(2000):
        ridge.observe(np.zeros((1, 4)), np.zeros(1))
    assert np.allclose(ridge.weights_d, PRIOR)


def test_the_state_comes_back_bit_for_bit():
    ridge, other = Ridge(PRIOR, STRENGTH), Ridge(PRIOR, STRENGTH)
    ridge.observe(*BATCHES[0])
    other.load_state_dict(ridge.state_dict())
    for one in (ridge, other):
        one.observe(*BATCHES[1])
    assert np.array_equal(ridge.weights_d, other.weights_d)


def test_noise_in_many_directions_does_not_drown_a_linear_rule():
    features = RNG.normal(size=(400, 4))
    value = features @ np.array([0.0, 2.0, 0.0, 1.0]) + 0.1 * RNG.normal(size=400)
    ridge = Ridge(np.zeros(4), 1.0)
    for first in range(0, 400, 40):
        ridge.observe(features[first : first + 40], value[first : first + 40])
    assert ridge.weights_d == pytest.approx([0, 2, 0, 1], abs=0.05)
