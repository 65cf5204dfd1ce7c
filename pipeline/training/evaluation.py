# B samples, T tokens
"""Held-out loss, and exact-match accuracy of greedily decoded answers."""

from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GenerationConfig

from pipeline.data.collate import to_batch
from pipeline.data.sample import IGNORED, Sample
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.loss import causal_logits, evaluating, per_sample_loss

ANY_KERNEL = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
RESULT_MARK = "####"  # stands before the result of a worked answer in GSM8K (Cobbe et al., arXiv 2110.14168)


def held_out_loss(
    engine, samples: Sequence[Sample], pad_token_id: int, micro_batch_size: int, is_packed: bool = False
) -> float:
    """Mean of the samples' losses, over all ranks; every part of the model keeps its mode.

    Every rank runs the same number of forwards, as ZeRO-3 requires; short ranks bring blank rows.
    """
    collectives = Collectives(engine.seq_data_parallel_group, engine.device)
    # Samples alike in length share a micro-batch.
    ordered = sorted(samples, key=lambda sample: len(sample.input_ids))
    own = ordered[collectives.rank :: collectives.world_size]
    per_rank = -(-len(samples) // collectives.world_size)
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    with evaluating(engine.module):
        for first in range(0, per_rank, micro_batch_size):
            num_rows = min(micro_batch_size, per_rank - first)
            micro_batch = own[first : first + num_rows]
            input_ids_BT, labels_BT, lengths = to_batch(
                micro_batch, pad_token_id, num_rows, engine.device, is_packed
            )
            total += (
                per_sample_loss(causal_logits(engine.module, input_ids_BT, lengths), labels_BT, lengths)
                .double()
                .sum()
            )
    return collectives.sum(total).item() / len(samples)


def questions(samples: Sequence[Sample], num_answers: int, max_tokens: int) -> list[Sample]:
    """The first ``num_answers`` samples with a prompt and an answer that was not cut at ``max_tokens``.

    Raises ValueError where answers are wanted and no sample can be asked.
    """
    able = [sample for sample in samples if len(sample.input_ids) < max_tokens and answer_span(sample)[0] > 0]
    if num_answers and not able:
        raise ValueError(
            f"training.evaluation_answers = {num_answers}: none of the {len(samples)} samples of data.test "
            f"can be asked; they need a prompt, and fewer than data.max_tokens = {max_tokens} tokens with "
            "their answer"
        )
    return able[:num_answers]


def answer_span(sample: Sample) -> tuple[int, int]:
    """Tokens [start, stop) of the last answer: the last run of supervised ones."""
    supervised = [t for t, label in enumerate(sample.labels) if label != IGNORED]
    start = stop = supervised[-1] + 1
    while start > 0 and sample.labels[start - 1] != IGNORED:
        start -= 1
    return start, stop


@torch.no_grad()
def exact_match(engine, samples: list[Sample], tokenizer, micro_batch_size: int) -> float:
    """Share of ``samples`` whose greedy answer equals the reference in ``result_of``.

    The prompt is all that precedes the answer, and the model writes at most as many tokens as the longest
    reference, end token included. All ranks come with the same samples and leave with the same share. Under
    ZeRO-3 every rank makes the same number of forwards: each brings equally many batches (blank rows where it
    is short), and goes on until all have ended theirs.
    """
    collectives = Collectives(engine.seq_data_parallel_group, engine.device)
    asked = [
        (sample.input_ids[:start], sample.input_ids[start:stop])
        for sample in samples
        for start, stop in [answer_span(sample)]
    ]
    asked.sort(key=lambda pair: len(pair[0]))  # prompts alike in length within a batch
    own = asked[collectives.rank :: collectives.world_size]
    per_rank = -(-len(asked) // collectives.world_size)
    greedy = GenerationConfig(
        max_new_tokens=max(len(reference) for _, reference in asked),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    num_right = torch.zeros((), dtype=torch.float64, device=engine.device)
    was_training = {child: child.training for child in engine.module.modules()}
    engine.module.eval()
    for first in range(0, per_rank, micro_batch_size):
        batch = own[first : first + micro_batch_size]
        num_rows = min(micro_batch_size, per_rank - first)
        prompts = [prompt for prompt, _ in batch] + [[tokenizer.pad_token_id]] * (num_rows - len(batch))
        input_ids_BT, mask_BT = _pad_left(prompts, tokenizer.pad_token_id, engine.device)
        # Training may have left only the flash kernel, which takes no mask on GPUs.
        with sdpa_kernel(ANY_KERNEL):
            written_BT = engine.module.generate(
                input_ids=input_ids_BT,
                attention_mask=mask_BT,
                generation_config=greedy,
                synced_gpus=engine.zero_optimization_partition_weights() and collectives.world_size > 1,
            )
        for (_, reference), answer in zip(batch, written_BT[:, input_ids_BT.shape[1] :].tolist()):
            wanted, found = (
                result_of(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (reference, answer)
            )
            num_right += found == wanted
    for child, training in was_training.items():
        child.training = training
    return collectives.sum(num_right).item() / len(samples)


def result_of(answer: str) -> str:
    """The part of an answer that counts: the text behind the last '####' or all, trimmed, without case."""
    return answer.rsplit(RESULT_MARK, 1)[-1].strip().casefold()


def _pad_left(
    prompts: list[list[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(input_ids_BT, mask_BT)``, int64, the mask 0 at pads: every answer begins in the same column."""
    num_tokens = max(map(len, prompts))
    input_ids_BT = torch.full((len(prompts), num_tokens), pad_token_id)
    mask_BT = torch.zeros_like(input_ids_BT)
    for row, prompt in enumerate(prompts):
        input_ids_BT[row, num_tokens - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, num_tokens - len(prompt) :] = 1
    return input_ids_BT.to(device), mask_BT.to(device)
