# C candidates, m scored elements
import numpy as np
import pytest

from pipeline.selection.halves import Halves

RNG = np.random.default_rng(0)
ROWS_Cm, TARGETS_2m = RNG.normal(size=(5, 4)), RNG.normal(size=(2, 4))
HALVES = Halves(TARGETS_2m @ ROWS_Cm.T, TARGETS_2m @ TARGETS_2m.T)
WEIGHTS_2C = RNG.dirichlet(np.ones(5), size=2)


@pytest.mark.parametrize("mixed", [0.0, 0.25, 1.0])
def test_each_update_is_judged_by_the_half_that_it_was_not_made_for(mixed):
    wanted = []
    for own, other in ((0, 1), (1, 0)):
        update = (1 - mixed) * WEIGHTS_2C[own] @ ROWS_Cm + mixed * TARGETS_2m[own]
        wanted.append(update @ TARGETS_2m[other] / np.linalg.norm(update) / np.linalg.norm(TARGETS_2m[other]))
    assert HALVES.cosine(ROWS_Cm @ ROWS_Cm.T, WEIGHTS_2C, mixed) == pytest.approx(np.mean(wanted))


def test_candidates_without_weight_need_not_be_finite():
    weights_2C = np.array([[0.5, 0.5, 0, 0, 0], [0, 1.0, 0, 0, 0]])
    gram_CC, alignment_2C = ROWS_Cm @ ROWS_Cm.T, HALVES.alignment_2C.copy()
    wanted = HALVES.cosine(gram_CC, weights_2C)
    gram_CC[4], gram_CC[:, 4], alignment_2C[:, 4] = np.nan, np.inf, np.nan
    assert Halves(alignment_2C, HALVES.products_22).cosine(gram_CC, weights_2C) == pytest.approx(wanted)


def test_what_is_zero_or_not_finite_has_no_cosine():
    gram_CC = ROWS_Cm @ ROWS_Cm.T
    assert HALVES.cosine(np.zeros((5, 5)), WEIGHTS_2C) is None
    assert HALVES.cosine(np.full((5, 5), np.inf), WEIGHTS_2C) is None
    assert Halves(HALVES.alignment_2C, np.zeros((2, 2))).cosine(gram_CC, WEIGHTS_2C) is None
    assert Halves(HALVES.alignment_2C, np.full((2, 2), np.nan)).cosine(gram_CC, WEIGHTS_2C) is None
