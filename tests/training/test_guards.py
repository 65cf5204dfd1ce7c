"""What goes wrong without an error is noticed, and what is well is left alone."""

import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

from pipeline.training.checksum import checksum
from pipeline.training.guards import MOST_TIMES, WINDOW, WINDOW_OF_PREDICTIONS, Watch, check_replicas
from tests.processes import tails


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_checksum_ignores_order_and_sees_every_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(5, 3, generator=generator).to(dtype),
        torch.randn(7, generator=generator).to(dtype),
    ]
    whole = checksum(parameters)
    pieces = [piece for parameter in parameters for piece in parameter.flatten().split(4)]
    assert checksum(reversed(pieces)) == whole
    bits = parameters[1].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    for bit in range(8 * dtype.itemsize - 1):
        bits[3] ^= 1 << bit
        assert checksum(parameters) != whole, f"bit {bit}"
        bits[3] ^= 1 << bit
    assert checksum(parameters) == whole


def replicas() -> tuple[str, str]:
    """What three ranks hear before and after one bit of one of them has changed."""
    from pipeline.ranks.collectives import Collectives
    from pipeline.training.engine import start_process_group

    rank, _, device = start_process_group(60)
    torch.manual_seed(0)
    module, collectives = torch.nn.Linear(4, 4), Collectives(torch.distributed.group.WORLD, device)
    heard = []
    for step in (1, 2):
        try:
            check_replicas(module, collectives, step)
            heard.append("")
        except RuntimeError as error:
            heard.append(str(error))
        if rank == 1:
            module.weight.data.view(torch.int32)[2, 3] ^= 1
    return tuple(heard)


def test_a_bit_that_flips_in_one_replica_ends_all_ranks_and_names_it(run_ranks):
    for before, after in run_ranks("tests.training.test_guards:replicas", 3):
        assert before == ""
        assert "after step 2 ranks [1] hold other parameters than the 2 ranks that agree" in after


def record(step: int, **changes) -> dict:
    usual = {
        "train_loss": 2.0 + 0.1 * (step % 3),
        "residual": 0.5,
        "fallback": 0,
        "target_dropped": 0,
        "num_kept": 8,
        "effective_kept": 8.0,
        "target_loss": 2.0 - 0.01 * step,
        "num_candidates": CANDIDATES,
        "window": CANDIDATES,
        "predicted_correlation": None,
        "cosine_of_proposed": None,
    }
    return {"step": step, **usual, **changes}


def unscored(step: int, **changes) -> dict:
    """The record of a step that trains on what was proposed."""
    return record(
        step, **{"residual": None, "target_loss": None, "num_candidates": KEPT, "window": KEPT, **changes}
    )


POOL, CANDIDATES, KEPT = 320, 32, 8


def positions(step: int) -> np.ndarray:
    """Candidates of a step: every epoch of ten steps in another order."""
    epoch, place = divmod(step, POOL // CANDIDATES)
    return np.random.default_rng((0, epoch)).permutation(POOL)[place * CANDIDATES :][:CANDIDATES]


def draw(step: int) -> np.ndarray:
    return np.random.default_rng((1, step)).permutation(CANDIDATES)[:KEPT]


def first_of_the_pool(step: int) -> np.ndarray:
    """Those candidates that stand first in the pool."""
    return np.argsort(positions(step))[:KEPT]


def said(records: list[dict], kept=draw) -> list[str]:
    watch = Watch(POOL)
    return [
        sentence for line in records for sentence in watch(line, positions(line["step"]), kept(line["step"]))
    ]


def test_a_healthy_run_hears_nothing():
    rng = np.random.default_rng(0)
    noisy = [
        record(step, residual=rng.uniform(0.3, 0.7), target_loss=rng.uniform(1, 3)) for step in range(WINDOW)
    ]
    assert said(noisy) == []
    assert said([record(step) for step in range(5 * WINDOW)]) == []
    assert said([unscored(step) for step in range(5 * WINDOW)]) == []
    rarely = [record(step) if step % 4 == 0 else unscored(step) for step in range(5 * WINDOW)]
    assert said(rarely) == []
    falling = [record(step, train_loss=4 * 0.95**step * rng.uniform(0.7, 1.4)) for step in range(5 * WINDOW)]
    assert said(falling) == []


def test_a_loss_that_jumps_is_named_with_what_was_usual():
    calm = [record(step) for step in range(WINDOW)]
    assert said([*calm, record(WINDOW, train_loss=4.1)]) == [], "not twice as much"
    (found,) = said([*calm, record(WINDOW, train_loss=4.3), record(WINDOW + 1, train_loss=9.0)])
    assert found.startswith(
        f"WARNING after step {WINDOW}: its loss is 4.300, and 2.100 was the median of the {WINDOW} steps "
        "before"
    )
    plain = [unscored(step) for step in range(WINDOW)]
    assert len(said([*plain, unscored(WINDOW, train_loss=4.3)])) == 1, "of any method, scored or not"


def test_samples_that_are_trained_on_over_and_over_are_named_at_every_doubling():
    """A few of the pool, 8 a step: each is trained on once in every four steps."""
    few = 32
    same = lambda step: np.arange(few)[step * KEPT % few :][:KEPT]
    watch, heard = Watch(POOL), []
    for step in range(22 * few // KEPT):
        heard += [(step, text) for text in watch(unscored(step, window=50), same(step), np.arange(KEPT))]
    first, second = heard
    # The median of a window's steps is behind the last of them by half a window.
    times = [(step + 1) * KEPT / few for step, _ in heard]
    assert MOST_TIMES < times[0] < MOST_TIMES + 4 and 2 * MOST_TIMES < times[1] < 2 * MOST_TIMES + 4
    assert f"have been trained on more than {MOST_TIMES} times" in first[1]
    assert "the same few of data.pool; raise selection.pool_share" in first[1]
    assert f"have been trained on more than {2 * MOST_TIMES} times" in second[1]


def test_a_sample_of_the_whole_pool_in_turn_is_no_reason_to_warn_before_many_epochs():
    steps = [unscored(step) for step in range(MOST_TIMES * POOL // CANDIDATES)]
    assert said(steps, kept=lambda step: np.arange(CANDIDATES)) == [], "every epoch takes each sample once"
    more = [unscored(step) for step in range(MOST_TIMES * POOL // CANDIDATES + 2 * WINDOW)]
    (found,) = said(more, kept=lambda step: np.arange(CANDIDATES))
    assert "the run trains on the same few of data.pool; add samples to it, or stop" in found


def test_counts_of_times_do_not_start_again_at_the_end_of_a_byte():
    watch = Watch(1)
    for step in range(300):
        watch(unscored(step), np.zeros(1, int), np.zeros(1, int))
    assert watch.times_trained.tolist() == [255]


def test_predictions_that_tell_nothing_are_named_and_those_that_tell_something_are_not():
    rng = np.random.default_rng(0)
    chance = rng.normal(0, 0.05, 3 * WINDOW)
    blind = [record(step, predicted_correlation=r, cosine_of_proposed=0.1) for step, r in enumerate(chance)]
    between = [unscored(step) for step in range(3 * WINDOW)]
    rarely = [blind[step] if step % 4 == 0 else between[step] for step in range(3 * WINDOW)]
    found = said(rarely)[0]
    assert found.startswith(f"WARNING after step {4 * (WINDOW_OF_PREDICTIONS - 1)}: over 10 scored steps")
    assert "correlate at -0.0" in found or "correlate at 0.0" in found
    assert "set selection.proposal to uniform" in found
    assert said(blind[: WINDOW_OF_PREDICTIONS - 1]) == [], "too few"
    seeing = [{**line, "predicted_correlation": line["predicted_correlation"] + 0.3} for line in blind]
    assert said(seeing) == []
    given_up = [{**line, "cosine_of_proposed": None} for line in blind]
    assert said(given_up) == [], "all are taken at random, whatever was predicted"


def test_what_is_watched_goes_on_where_another_watch_stopped():
    """As from a checkpoint: the same sentences at the same steps."""
    steps = [
        record(
            step,
            fallback=int(step > 5),
            train_loss=9.0 if step == 45 else 2.0,
            predicted_correlation=0.0,
            cosine_of_proposed=0.0,
        )
        for step in range(6 * WINDOW)
    ]
    hear = lambda watch, lines: [
        s for line in lines for s in watch(line, positions(line["step"]), first_of_the_pool(line["step"]))
    ]
    undisturbed = hear(Watch(POOL), steps)
    assert len({sentence.split(": ")[1][:9] for sentence in undisturbed}) > 3, "several kinds"
    first, second = Watch(POOL), Watch(POOL)
    before = hear(first, steps[:37])
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert before + hear(second, steps[37:]) == undisturbed


def test_a_dead_filter_is_named_once_in_a_window():
    found = said([record(step, fallback=1) for step in range(2 * WINDOW)])
    assert len(found) == 2 and f"in {WINDOW} scored steps no candidate was aligned" in found[0]
    assert said([record(step, fallback=int(step != 5)) for step in range(WINDOW)]) == []
    rarely = [record(step, fallback=1) if step % 3 == 0 else unscored(step) for step in range(3 * WINDOW)]
    (found,) = said(rarely)
    assert found.startswith(f"WARNING after step {3 * (WINDOW - 1)}: "), "unscored steps do not count"


def test_collapsed_weights_are_named():
    found = said([record(step, effective_kept=1.06) for step in range(WINDOW)])
    assert "8.0 samples were kept, and their weights amount to 1.1 of equal weight" in found[0]


def test_a_target_that_is_missed_though_the_match_improves_is_named():
    rising = [record(step, target_loss=2 + 0.05 * step, residual=0.9 - 0.02 * step) for step in range(WINDOW)]
    assert "the target's loss has risen (2.225 -> 2.725) while the match has become better" in said(rising)[0]
    assert said([{**line, "residual": 0.5} for line in rising]) == []
    assert said([{**line, "target_loss": 2.0} for line in rising]) == []


def meet(how: str) -> None:
    """Rank 1 does not come to the second meeting of three ranks."""
    import torch.distributed as dist

    from pipeline.ranks.ending import end_together
    from pipeline.training.engine import start_process_group

    def main():
        rank, _, _ = start_process_group(5)
        dist.all_reduce(torch.zeros(1))
        if rank == 1 and how == "dies":
            os._exit(9)
        if rank == 1 and how == "stalls":
            time.sleep(40)
        if rank == 1 and how == "raises":
            raise KeyError("only here")
        dist.all_reduce(torch.zeros(1))

    end_together(main)


@pytest.mark.parametrize(
    "how, message",
    [
        ("dies", "no word from rank 1 in"),
        ("stalls", "no word from rank 1 in"),
        ("raises", "rank 1 failed with KeyError: 'only here'"),
    ],
)
def test_a_rank_that_does_not_answer_ends_the_others_and_is_named(launch, how, message):
    ended = launch("tests.training.test_guards:meet", 3, how=how)
    for rank in (0, 2):
        assert ended[rank].code == 1, tails(ended)
        assert message in ended[rank].output or "rank 0 is gone" in ended[rank].output, tails(ended)
    assert message in ended[0].output, tails(ended)


def freeze_rank_0():
    """Rank 0, which keeps the notes, answers nothing more but is not gone: as behind a network that swallows
    everything."""
    import subprocess

    import torch.distributed as dist

    from pipeline.ranks import ending
    from pipeline.training.engine import start_process_group

    def main():
        rank, _, _ = start_process_group(5)
        dist.all_reduce(torch.zeros(1))
        if rank == 0:
            subprocess.Popen(["sh", "-c", f"sleep 25; kill -KILL {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.zeros(1))

    ending.SECONDS_FOR_NOTES = 2
    ending.end_together(main)


def test_a_rank_0_that_answers_nothing_does_not_keep_the_others(launch):
    ended = launch("tests.training.test_guards:freeze_rank_0", 2)
    assert ended[1].code == 1, tails(ended)
    assert "no word from rank 0 in 4 s" in ended[1].output, tails(ended)
