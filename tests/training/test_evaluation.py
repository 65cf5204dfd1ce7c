"""Answers are decoded as one would by hand, on every stage, and compared by what counts of them."""

import pytest

from pipeline.data.sample import IGNORED, Sample
from pipeline.training.evaluation import answer_span, questions, result_of
from tests import selected
from tests.scoring.engine_cases import Case
from tests.training.evaluation_cases import NUM_TOKENS

CASES = [Case(2, "lora"), Case(3), Case(3, "lora")]


@pytest.fixture(scope="module")
def found(request, run_ranks, model_folder, tmp_path_factory):
    places = dict(model_folder=model_folder, folder=str(tmp_path_factory.mktemp("deepspeed")))
    arguments = dict(cases=selected.cases(request, "case", CASES), **places)
    return run_ranks("tests.training.evaluation_cases:exact_matches", 2, **arguments)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batched_answers_on_two_ranks_equal_those_decoded_one_token_at_a_time(found, case):
    for rank in found:
        share, expected, one_by_one, right, lengths, is_training = rank[str(case)]
        assert share == pytest.approx(expected)
        assert case.stage == 3 or one_by_one == [float(hit) for hit in right]
        assert min(lengths) < NUM_TOKENS == max(lengths), (
            "no answer ends early, so the end token is not tested"
        )
        assert is_training, "the model was left in another mode"


@pytest.mark.parametrize(
    "answer, result",
    [
        ("  Forty Two \n", "forty two"),
        ("6 * 7 = <<6*7=42>>42\n#### 42", "42"),
        ("#### 1 #### 2", "2"),
        ("(B)", "(b)"),
        ("", ""),
    ],
)
def test_what_counts_of_an_answer(answer, result):
    assert result_of(answer) == result


def sample(num_prompt: int, num_answer: int, num_rest: int = 0) -> Sample:
    length = num_prompt + num_answer + num_rest
    labels = [IGNORED] * num_prompt + list(range(num_prompt, num_prompt + num_answer)) + [IGNORED] * num_rest
    return Sample(list(range(length)), labels)


def test_the_answer_is_the_last_supervised_run():
    two_turns = Sample(list(range(9)), [IGNORED, 1, 2, IGNORED, IGNORED, 5, 6, 7, IGNORED])
    assert answer_span(two_turns) == (5, 8)
    assert answer_span(sample(3, 4)) == (3, 7)


def test_only_whole_samples_with_a_prompt_are_asked():
    whole, cut, plain = sample(3, 4, 1), sample(5, 5), sample(0, 4)
    assert questions([cut, plain, whole, whole], 1, max_tokens=10) == [whole]
    assert questions([cut, plain], 0, max_tokens=10) == []
    with pytest.raises(ValueError, match=r"none of the 2 samples of data.test can be asked"):
        questions([cut, plain], 3, max_tokens=10)
