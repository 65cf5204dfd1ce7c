"""The ranks' side of test_train.py: whole runs of pipeline.train, and what may be broken in them on
purpose."""

import os
import resource
import sys
import time
from pathlib import Path

import torch

SPOILED_TOKEN = "%"


def runs(all_arguments: list[list[str]], before: str = "") -> None:
    """Several runs in one process, one after the other."""
    import transformers

    from pipeline.train import main

    transformers.utils.logging.disable_progress_bar()
    if before:
        globals()[before]()
    for arguments in all_arguments:
        main(arguments)


def spoil_candidates() -> None:
    """The scoring loss of a sample is NaN where it supervises SPOILED_TOKEN."""
    from pipeline.step.passes import Passes
    from tests.conftest import tokenizer

    original, token = Passes.losses, tokenizer().convert_tokens_to_ids(SPOILED_TOKEN)

    def spoil(passes, module, input_ids_BT, labels_BT, *more):
        return original(passes, module, input_ids_BT, labels_BT, *more) * torch.where(
            (labels_BT == token).any(1), torch.nan, 1.0
        )

    Passes.losses = spoil


def double_factors_on_one_rank() -> None:
    """The self-check of this rank finds gradients twice as large as autograd's."""
    from pipeline.training import self_check

    original = self_check.per_sample_gradient
    if os.environ["RANK"] == "1":
        self_check.per_sample_gradient = lambda *factors: 2 * original(*factors)


def raise_on_one_rank() -> None:
    """Rank 1 fails in the middle of a scoring pass, where the other waits for it."""
    from pipeline.step.scorer import Scorer

    original = Scorer.measure

    def measure(self, *arguments):
        if self.collectives.rank == 1 and self.engine.global_steps == 3:
            raise KeyError("only here")
        return original(self, *arguments)

    Scorer.measure = measure


def stall_on_one_rank() -> None:
    """Rank 1 stands still for ever in a scoring pass, and does not end when it is asked to."""
    from pipeline.step.scorer import Scorer

    original = Scorer.measure

    def measure(self, *arguments):
        while self.collectives.rank == 1 and self.engine.global_steps == 3:
            time.sleep(1)
        return original(self, *arguments)

    Scorer.measure = measure


def flip_a_bit_on_one_rank() -> None:
    """After the third update rank 1 holds one parameter that differs from rank 0's by its last bit."""
    from pipeline import train_step

    original = train_step.weighted_step

    def step(engine, *arguments):
        result = original(engine, *arguments)
        if os.environ["RANK"] == "1" and engine.global_steps == 3:
            parameter = next(p for p in engine.module.parameters() if p.requires_grad)
            parameter.data.view(torch.int32).flatten()[0] ^= 1
        return result

    train_step.weighted_step = step


def fill_the_disk() -> None:
    """In the middle of the line that records the fifth step."""
    from pipeline.reporting.records import Recorder
    from tests.training.checkpoint_cases import files_up_to

    original = Recorder.step

    def step(recorder, record):
        room = (
            os.stat(recorder.folder / "steps.jsonl").st_size + 10
            if record["step"] == 4
            else resource.RLIM_INFINITY
        )
        with files_up_to(room):
            original(recorder, record)

    Recorder.step = step


def fill_the_log() -> None:
    """From the third step on rank 0's standard output goes to a full disk."""
    from pipeline import train_step

    original = train_step.weighted_step

    def step(engine, *arguments):
        if os.environ["RANK"] == "0" and engine.global_steps == 2:
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        return original(engine, *arguments)

    train_step.weighted_step = step


def change_the_world() -> None:
    """In the third step the clock goes back by a day and the pool loses its second half; checkpoints hold a
    file that DeepSpeed copies."""
    import tqdm.std
    from deepspeed import DeepSpeedEngine

    from pipeline import train_step
    from pipeline.training import run

    now, original, read, save = (
        time.time,
        train_step.weighted_step,
        run.read,
        DeepSpeedEngine._save_zero_checkpoint,
    )
    seconds_back, names = [0.0], []

    def read_and_remember(name, tokenizer, config, say):
        names[:] = config.data.pool
        return read(name, tokenizer, config, say)

    def step(engine, *arguments):
        if engine.global_steps == 2 and not seconds_back[0]:
            seconds_back[0] = 86400.0
            if os.environ["RANK"] == "0":
                os.truncate(names[0], os.path.getsize(names[0]) // 2)
        return original(engine, *arguments)

    def save_and_copy(engine, folder, tag):
        save(engine, folder, tag)
        copied = Path(folder, tag, "offloaded_tensors", f"rank{os.environ['RANK']}")  # as under NVMe offload
        copied.mkdir(parents=True)
        (copied / "exp_avg.swp").write_bytes(b"moments")

    time.time = tqdm.std.time = lambda: now() - seconds_back[0]
    train_step.weighted_step, run.read, DeepSpeedEngine._save_zero_checkpoint = (
        step,
        read_and_remember,
        save_and_copy,
    )


if (
    __name__ == "__main__"
):  # for the deepspeed launcher: deepspeed --module tests.training.train_cases NAME [arguments of train]
    from pipeline.ranks.ending import end_together
    from pipeline.train import main

    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    globals()[arguments[0]]()
    end_together(lambda: main(arguments[1:]))
