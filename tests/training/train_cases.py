"""The ranks' side of test_train.py: whole runs of pipeline.train, and what may be broken in them on purpose."""

import os
import sys

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
    from pipeline import hook
    from tests.conftest import tokenizer

    original, token = hook.SelectionHook._losses, tokenizer().convert_tokens_to_ids(SPOILED_TOKEN)

    def spoil(hook, module, input_ids_BT, labels_BT, *more):
        return original(hook, module, input_ids_BT, labels_BT, *more) * torch.where((labels_BT == token).any(1), torch.nan, 1.0)

    hook.SelectionHook._losses = spoil


def double_factors_on_one_rank() -> None:
    """The self-check of this rank finds gradients twice as large as autograd's."""
    from pipeline.training import self_check

    original = self_check.per_sample_gradient
    if os.environ["RANK"] == "1":
        self_check.per_sample_gradient = lambda *factors: 2 * original(*factors)


def raise_on_one_rank() -> None:
    """Rank 1 fails in the middle of a scoring pass, where the other waits for it."""
    from pipeline import hook

    original = hook.SelectionHook._score

    def score(self, *arguments):
        if self.collectives.rank == 1 and self.engine.global_steps == 3:
            raise KeyError("only here")
        return original(self, *arguments)

    hook.SelectionHook._score = score


if (
    __name__ == "__main__"
):  # for the deepspeed launcher: deepspeed --module tests.training.train_cases NAME [arguments of train]
    from pipeline.train import main
    from pipeline.training.ending import end_together

    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    globals()[arguments[0]]()
    end_together(lambda: main(arguments[1:]))
