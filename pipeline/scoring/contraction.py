# R candidates of a rank, C of all, W ranks, T tokens, O out_features, I in_features
"""Which way a layer's factors become entries of the Gram matrix: counted operations decide, within a memory
limit.

    way            operations of a rank                                  largest temporary
    materialise    2 R T O I  +  2 (C + 1)^2 O I / W                     all rows of R gradients (O, I)
    row_chunks     the same                                              as many rows (o, I) as the limit allows, at least one
    token_token    2 R (C + 1) T^2 (O + I)                               products of one sample's tokens with all tokens

token_token never forms a gradient: <G_i, G_j> = sum_st (output_grad_is . output_grad_jt) (activation_is .
activation_jt).  It needs a metric that factors over the two sides, and is for short samples and wide layers:
it is quadratic in tokens.
"""

from collections import Counter
from dataclasses import dataclass

CACHE_BYTES = 4 << 20  # on CPU: rows are written, scaled and multiplied while still in cache


@dataclass(frozen=True)
class Contraction:
    """The choice for one layer."""

    way: str
    rows: int
    """Output rows (o) of the gradients that exist at a time; 0 for token_token."""
    flops: int
    """Of one rank."""


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
    """The contraction of a weight of ``shape`` (O, I) for R = ``num_rows`` samples of up to ``num_tokens``;
    equal on all ranks.

    Args:
        column_bytes: what one element of the weight takes for the candidates of all ranks.
        largest_slice: elements of the weight that its largest owner has; nobody receives more at a time than
            ``bound`` bytes.
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
    """For people: how many layers go which way, and the operations of it."""
    counts = Counter(contraction.way for contraction in plan.values())
    flops = sum(contraction.flops for contraction in plan.values())
    return (
        ", ".join(f"{way} {count} layers" for way, count in counts.most_common())
        + f"; {flops / 1e9:.1f} GFLOP a rank"
    )
