"""One rank of a node works, the others wait for as long as it goes on; all of them get what it got, or its
error."""

import os
import re

import pytest

from pipeline.config import DataConfig
from pipeline.data.chat import tokenize_all
from pipeline.data.sample import digest
from pipeline.data.sources import read
from tests.conftest import tokenizer
from tests.ranks.once_cases import TIMEOUT


@pytest.fixture(scope="module")
def outcomes(run_ranks):
    return run_ranks("tests.ranks.once_cases:outcomes", 2)


@pytest.mark.parametrize(
    "case, results, workers",
    [
        ("one node", [0, 0], [[0], []]),
        ("long", [0, 0], [[0], []]),
        ("two nodes", [0, 1], [[0], [1]]),
        ("afterwards", [0, 0], [[0], []]),
    ],
)
def test_the_first_rank_of_a_node_works_for_all(outcomes, case, results, workers):
    assert [found[case][0] for found in outcomes] == results
    assert [found[case][1] for found in outcomes] == workers


def test_ranks_wait_longer_than_the_timeout_while_work_goes_on(outcomes):
    assert all(found["long"][2] > 1.9 * TIMEOUT for found in outcomes)


def test_an_error_of_one_rank_is_everybodys(outcomes):
    assert [found["an error"][0] for found in outcomes] == ["RuntimeError: Odd: this and that"] * 2
    assert [found["an error on the other node"][0] for found in outcomes] == ["ValueError: no room"] * 2
    assert outcomes[0]["an error on the other node"][2] < 20, "the first node worked on"


def test_work_without_a_sign_of_life_ends_all_ranks_and_names_the_place(outcomes):
    for found in outcomes:
        assert re.match(
            r"RuntimeError: the work: no sign for 1\.5 s that the work goes on \(rank 0 on .+\): look",
            found["no sign"][0],
        )


def test_one_rank_tokenises_and_all_map_the_file(run_ranks, data_folder, tmp_path):
    """The second start tokenises nothing; a temporary file is gone once it is mapped; what is refused is
    refused everywhere."""
    data = DataConfig(
        pool=[f"{data_folder}/pool.jsonl"], max_tokens=60, cache_folder=str(tmp_path / "tokens")
    )
    others = {"temporary": {"cache_folder": ""}, "refused": {"max_tokens": 2, "on_long": "drop"}}
    ranks = run_ranks("tests.ranks.once_cases:read", 2, data=data, others=others, temporary=str(tmp_path))
    samples, _ = tokenize_all(read(data.pool, "error")[0], tokenizer(), data)
    for rank, found in enumerate(ranks):
        for name, is_kept in (("first", True), ("second", True), ("temporary", False)):
            num_encoded, result, said = found[name]
            assert num_encoded == (len(samples) if rank == 0 and name != "second" else 0), (rank, name)
            assert result == (samples, digest(samples), is_kept), (rank, name)
            assert said[-1].startswith("data.pool: samples 48") and (", from the cache (" in said[-1]) is (
                name == "second"
            )
        assert (
            found["refused"][1] == ranks[0]["refused"][1]
            and "none of the 48 samples is left" in found["refused"][1]
        )
        assert found["left"] == []
    assert os.listdir(tmp_path / "tokens") != []
