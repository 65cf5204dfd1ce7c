"""Flat arrays hold what the samples hold, from a list as from a token file."""

import numpy as np
import pytest

from pipeline.data.flat import sources_and_damages, token_blocks
from pipeline.data.sample import IGNORED
from tests.proposal.rankings.pools import as_file, pool


@pytest.mark.parametrize("num_samples", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("block", [1, 100, 300, 4096])
def test_blocks_hold_all_tokens_in_order(num_samples, block, tmp_path):
    samples = pool(num_samples)
    for kept in (samples, as_file(samples, tmp_path)):
        blocks = list(token_blocks(kept, block))
        ids = np.concatenate([found.ids_T for found in blocks])
        lengths = np.concatenate([found.lengths_n for found in blocks])
        assert ids.dtype == lengths.dtype == np.int64
        assert ids.tolist() == [token for sample in samples for token in sample.input_ids]
        flags = np.concatenate([found.is_supervised_T for found in blocks])
        assert flags.tolist() == [label != IGNORED for sample in samples for label in sample.labels]
        assert lengths.tolist() == [len(sample.input_ids) for sample in samples]
        for found in blocks:
            assert (
                np.bincount(found.sample_T, minlength=len(found.lengths_n)).tolist()
                == found.lengths_n.tolist()
            )
        assert max(len(found.lengths_n) for found in blocks) <= -(-block // 256) * 256


def test_texts_hold_sources_and_damages(tmp_path):
    samples = pool(300)
    expected = [(sample.source, sample.damage) for sample in samples]
    assert (
        list(sources_and_damages(samples))
        == list(sources_and_damages(as_file(samples, tmp_path)))
        == expected
    )
