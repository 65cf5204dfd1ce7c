# R candidates of a rank, C of all, W ranks, T tokens, O out_features, I in_features
"""The way from a layer's factors to its share of the Gram matrix, chosen by counting within a memory limit.

    way            operations of a rank                  largest temporary
    materialise    2 R T O I  +  2 (C + 1)^2 O I / W     R gradients, all rows (O, I)
    row_chunks     the same                              as many rows (o, I) as the limit allows, one at least
    token_token    2 R (C + 1) T^2 (O + I)               products of one sample's tokens with all tokens

X X' is symmetric, and a CPU makes little more than half of it (exact.py); it is counted whole.

token_token never forms a gradient:

    <G_i, G_j> = sum_st (output_grad_is . output_grad_jt) (activation_is . activation_jt)

It needs a metric that factors over the two sides, and is for short samples: its cost is quadratic in tokens.
"""

from collections import Counter
from dataclasses import dataclass

CACHE_BYTES = 4 << 20  # on CPU: rows that are written at a time, of a size at which BLAS is at its best


@dataclass(frozen=True)
class Contraction:
    """The way of one layer."""

    way: str
    rows: int
    """Output rows (o) of the gradients that exist at a time; 0 for token_token."""
    flops: int
    """Operations of one rank, at most."""


def choose(
    shape: tuple[int, int],
    num_rows: int,
    world_size: int,
    num_tokens: int,
    column_bytes: int,
    largest_slice: int,
    bound: int,
    is_separable: bool,
    forced: str = "auto",
) -> Contraction:
    """The contraction of one weight, equal on all ranks.

    Args:
        shape: (O, I) of the weight.
        num_rows: samples of a rank (R).
        world_size: ranks (W).
        num_tokens: tokens of the longest sample (T).
        column_bytes: size of one element of the weight for the candidates of all ranks.
        largest_slice: elements of the weight that its largest owner has.
        bound: bytes that an owner receives at a time, at most.
        is_separable: whether the metric factors over the two sides.
        forced: one of the ways, or auto.
    Raises:
        ValueError: token_token is forced where the metric does not factor.
    """
    out_features, in_features = shape
    num_candidates = num_rows * world_size
    by_rows = 2 * num_rows * num_tokens * out_features * in_features
    by_rows += 2 * (num_candidates + 1) ** 2 * out_features * in_features // world_size
    by_tokens = 2 * num_rows * (num_candidates + 1) * num_tokens**2 * (out_features + in_features)
    if forced == "token_token" and not is_separable:
        raise ValueError(
            "selection.contraction = token_token needs a metric that factors over tokens: selection.geometry "
            "= identity with selection.momentum = cancel and selection.backend = exact"
        )
    if forced == "token_token" or (forced == "auto" and is_separable and by_tokens < by_rows):
        return Contraction("token_token", 0, by_tokens)
    fits = column_bytes * largest_slice <= bound
    if forced == "materialise" or (forced == "auto" and fits):
        return Contraction("materialise", out_features, by_rows)
    limit = min(bound, CACHE_BYTES) if forced == "row_chunks" else bound
    return Contraction(
        "row_chunks", min(out_features, max(1, limit // (column_bytes * in_features))), by_rows
    )


def summary(plan: dict[str, Contraction]) -> str:
    """Numbers of layers that go each way and their operations together, as a sentence."""
    counts = Counter(contraction.way for contraction in plan.values())
    flops = sum(contraction.flops for contraction in plan.values())
    return (
        ", ".join(f"{way} {count} layers" for way, count in counts.most_common())
        + f"; {flops / 1e9:.1f} GFLOP a rank"
    )
