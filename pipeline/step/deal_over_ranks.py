# K kept samples, S slots of a rank, T tokens, W ranks
"""The deal of a step's kept samples over ranks and micro-batches, by their tokens."""

import torch

from pipeline.data.sample import Sample
from pipeline.ranks.collectives import Collectives
from pipeline.selection.contract import Selection


def fetch_kept(candidates: list[Sample], selection: Selection, collectives: Collectives) -> list[Sample]:
    """The kept samples in the order of ``selection``, on every rank; ranks may bring unequal shares.

    Token ids are small, so every rank writes those it has into one (2, K, T) tensor of zeros, which is
    summed.
    """
    counts = collectives.gather(torch.tensor(len(candidates), device=collectives.device)).tolist()
    first = sum(counts[: collectives.rank])
    own = {
        k: candidates[i - first]
        for k, i in enumerate(selection.indices.tolist())
        if first <= i < first + len(candidates)
    }
    lengths_K = torch.zeros(len(selection.indices), dtype=torch.int64, device=collectives.device)
    for k, sample in own.items():
        lengths_K[k] = len(sample.input_ids)
    lengths = collectives.sum(lengths_K).tolist()
    tokens_2KT = torch.zeros(2, len(lengths), max(lengths), dtype=torch.int64, device=collectives.device)
    for k, sample in own.items():
        tokens_2KT[0, k, : lengths[k]] = torch.tensor(sample.input_ids)
        tokens_2KT[1, k, : lengths[k]] = torch.tensor(sample.labels)
    input_ids, labels = collectives.sum(tokens_2KT).tolist()
    return [Sample(input_ids[k][:length], labels[k][:length]) for k, length in enumerate(lengths)]


def deal_over_ranks(
    num_tokens_K: list[int], world_size: int, micro_steps: int, micro_batch_size: int
) -> list[list[list[int]]]:
    """Positions of kept samples for each rank and micro-step: ``deal_over_ranks(...)[rank][micro_step]``.

    Longest first, each to the rank with the fewest tokens that has a free slot; within a rank sorted by
    length, so that a micro-batch holds samples alike. Fewer samples than slots leave the last micro-batches
    short or empty, not missing: every rank takes the same number of micro-steps. Raises ValueError for more
    samples than slots.
    """
    num_slots = micro_steps * micro_batch_size
    if len(num_tokens_K) > world_size * num_slots:
        raise ValueError(
            f"{len(num_tokens_K)} kept samples do not fit into {world_size} ranks x {micro_steps} "
            f"micro-steps x {micro_batch_size} samples"
        )
    shares: list[list[int]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for k in sorted(range(len(num_tokens_K)), key=lambda k: (-num_tokens_K[k], k)):
        rank = min((r for r in range(world_size) if len(shares[r]) < num_slots), key=lambda r: (tokens[r], r))
        shares[rank].append(k)
        tokens[rank] += num_tokens_K[k]
    return [
        [share[m * micro_batch_size : (m + 1) * micro_batch_size] for m in range(micro_steps)]
        for share in shares
    ]
