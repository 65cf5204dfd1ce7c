# C candidates, R of one rank, B samples of a micro-batch, T tokens, O out_features, I in_features,
# P scored elements, k features, W ranks, e bytes of an element
"""Counted operations of the Gram backends and of norms alone, on one rank, from factors to the Gram matrix.

Each function returns its work by stage: contraction (of factors to gradients or features), metric (passes
that apply Adam's moments), gram, exchange. The target's work is one stage of its own, as in the step records.
"""

from math import ceil

from pipeline.planning.model_shapes import Linear, ModelShapes
from pipeline.planning.passes import Run
from pipeline.planning.work import Compute, Transfer, Work, product
from pipeline.scoring.contraction import choose
from pipeline.scoring.metric import SCALE_BYTES
from pipeline.scoring.projection import RANDOM_BYTES

FLOAT32 = 4


def stages(shapes: ModelShapes, run: Run) -> dict[str, Work]:
    """The work on the candidates."""
    return {"exact": _exact, "projected": _projected, "factored": _factored}[run.selection.backend](
        shapes, run
    )


def target(shapes: ModelShapes, run: Run) -> Work:
    """The work on the target's factors after its forward and backward; a micro-batch is one long sample."""
    work: Work = []
    scored = shapes.scored(run.selection.last_blocks)
    for num_samples in run.target_passes:
        tokens = num_samples * run.tokens
        # Layers that go by tokens keep the target's factors until the candidates come.
        if run.selection.backend == "exact":
            by_rows, _ = ways(shapes, run)
            numel = sum(layer.numel for layer in by_rows)
            work += [
                product(layer.out_features, tokens, layer.in_features, run.factor_size) for layer in by_rows
            ]
            work += [
                Compute(memory_bytes=float(numel) * (4 * run.factor_size + 2 * FLOAT32)),
                *_to_owners(numel, 1, run),
            ]
        elif run.selection.backend == "projected":
            for layer in scored:
                scale = _whole_scale(layer, run) if run.geometry.scales_target else []
                work += [*_project_gradients(layer, run, 1, tokens), *scale]
        else:
            for layer in scored:
                work += _project_factors(layer, run, 1, tokens)
    return work


def norms(shapes: ModelShapes, run: Run) -> dict[str, Work]:
    """The work that ``needs="norm"`` adds to the passes: gradients, cast, squared and summed in place."""
    scored, e = shapes.scored(run.selection.last_blocks), run.factor_size
    cast = e + FLOAT32 if e < FLOAT32 else 0
    return {
        "contraction": [
            product(layer.out_features, run.tokens, layer.in_features, e, run.rows) for layer in scored
        ],
        "gram": [
            Compute(memory_bytes=float(cast + FLOAT32) * run.rows * sum(layer.numel for layer in scored))
        ],
    }


def around(run: Run) -> dict[str, Work]:
    """The work of every look besides its backend: signals gathered, the solve, its outcome sent."""
    ranks, rows, kept = run.world_size, run.rows, run.selection.keep_per_step
    own_bytes = 4 if run.method.needs_reference else 8 if run.method.needs_norms else 0
    gathered = rows * (8 + 4 + own_bytes) * (ranks - 1)  # order, int64; losses, float32; norms, float64
    summed = _all_reduced(4 * 8, ranks) + (_all_reduced(8, ranks) if run.needs_moments else 0)
    return {
        "exchange": [Transfer(gathered + summed, 4, "ring")],
        # Row sums of the filter, O(C K); the factorisation of nnls, O(K^3).
        # Then the selection is broadcast, and its hash gathered.
        "solve": [
            Compute(flops=4.0 * run.selection.candidates_per_step * kept + kept**3, rate="host"),
            Transfer(0.0, 5, "ring"),
        ],
    }


# -- exact --


def ways(shapes: ModelShapes, run: Run) -> tuple[list[Linear], list[Linear]]:
    """Scored layers whose gradients are formed, and those that go by products of tokens.

    scoring/contraction.py decides. Raises ValueError where selection.contraction = token_token is asked of a
    metric that does not factor.
    """
    selection = run.selection
    is_separable = not (run.geometry.needs_moments or selection.compensates_momentum)
    whole_layers = run.zero_stage in (1, 2)
    by_rows, by_tokens = list[Linear](), list[Linear]()
    for layer in shapes.scored(selection.last_blocks):
        found = choose(
            (layer.out_features, layer.in_features),
            run.rows,
            run.world_size,
            run.tokens,
            run.world_size * run.rows * run.factor_size,
            layer.numel if whole_layers else ceil(layer.numel / run.world_size),
            selection.exchange_mib << 20,
            is_separable,
            selection.contraction,
        )
        (by_tokens if found.way == "token_token" else by_rows).append(layer)
    return by_rows, by_tokens


def own_tokens(run: Run) -> int:
    """Tokens of this rank's candidates and its part of the target, padded."""
    return (run.rows + sum(run.target_passes)) * run.tokens


def _token_products(layers: list[Linear], run: Run) -> Work:
    """The work of TokenProducts: own tokens times all, on both sides; multiplied and summed."""
    own, e = own_tokens(run), run.factor_size
    total = run.world_size * own
    sides = [features for layer in layers for features in (layer.in_features, layer.out_features)]
    passes = Compute(memory_bytes=4.0 * e * own * total * len(layers))
    return [*(product(own, features, total, e) for features in sides), passes]


def _gathered_tokens(layers: list[Linear], run: Run) -> Work:
    others = run.world_size - 1
    return [
        Transfer(
            float(
                others * (own_tokens(run) * (layer.out_features + layer.in_features) * run.factor_size + 16)
            ),
            3,
            "ring",
        )
        for layer in layers
        if others
    ]


def num_exchanges(run: Run, numel: int, num_rows: int) -> int:
    """Exchanges until all rows are with their owners, each of whom receives ``num_rows * numel`` elements.

    Stages 0 and 3 split every layer over all ranks, and each exchange fills all owners' buffers. Stages 1 and
    2 give a rank whole layers, and the backward comes to one rank's layers after the other's: an exchange is
    due when one owner's buffer is full, and brings to the next owner no more than has come up since. The
    first carries what is left over to the next owner's, so there are

        1 + W (ceil(x) - 1)    with x buffers to each owner.
    """
    buffers = max(1, ceil(num_rows * numel * run.factor_size / (run.selection.exchange_mib << 20)))
    return 1 + run.world_size * (buffers - 1) if run.zero_stage in (1, 2) else buffers


def turns(run: Run, numel: int, num_rows: int) -> float:
    """The time as a multiple of that with all owners at work at once.

    It is 1, or up to W where owners receive one after the other.
    """
    buffers = num_rows * numel * run.factor_size / (run.selection.exchange_mib << 20)
    return num_exchanges(run, numel, num_rows) / buffers if run.zero_stage in (1, 2) and buffers > 1 else 1.0


def _exact(shapes: ModelShapes, run: Run) -> dict[str, Work]:
    e, ranks, rows = run.factor_size, run.world_size, run.rows
    by_rows, by_tokens = ways(shapes, run)
    numel, num_candidates = sum(layer.numel for layer in by_rows), run.selection.candidates_per_step
    # Rows of several micro-batches are joined; between ranks they are cut by owner and laid out to be sent.
    copies = (2 if len(run.passes) > 1 else 0) + (4 if ranks > 1 else 0)
    owned, in_turn = numel / ranks, turns(run, numel, rows)
    scaling = SCALE_BYTES if run.geometry.needs_moments else 0
    return {
        "contraction": [
            *(product(layer.out_features, run.tokens, layer.in_features, e, rows) for layer in by_rows),
            Compute(memory_bytes=float(copies) * e * rows * numel),
        ],
        "metric": [
            Compute(
                memory_bytes=owned * (scaling + num_candidates * (e + FLOAT32) + 2 * FLOAT32),
                host_bytes=FLOAT32 * owned if run.offloads_optimizer and scaling else 0.0,
                turns=in_turn,
            )
        ],
        "gram": [_gram(num_candidates, owned, in_turn), *_token_products(by_tokens, run)],
        "exchange": [*_to_owners(numel, rows, run), *_gathered_tokens(by_tokens, run), _sum_gram(run)],
    }


def _to_owners(numel: int, num_rows: int, run: Run) -> Work:
    if run.world_size == 1 or not numel:
        return []
    sent, in_turn = num_rows * numel * run.factor_size, turns(run, numel, num_rows)
    count = num_exchanges(run, numel, num_rows)
    return [Transfer(sent * (run.world_size - 1) / run.world_size, count, "all_to_all", in_turn)]


# -- projected --


def _projected(shapes: ModelShapes, run: Run) -> dict[str, Work]:
    scored = shapes.scored(run.selection.last_blocks)
    metric = [item for _ in run.passes for layer in scored for item in _whole_scale(layer, run)]
    contraction = [
        item
        for num_samples in run.passes
        for layer in scored
        for item in _project_gradients(layer, run, num_samples, run.tokens)
    ]
    features = _features(scored, run)
    return {
        "contraction": contraction,
        "metric": [item for item in metric if isinstance(item, Compute)],
        "gram": features["gram"],
        "exchange": [*(item for item in metric if isinstance(item, Transfer)), *features["exchange"]],
    }


def _project_gradients(layer: Linear, run: Run, num_samples: int, tokens: int) -> Work:
    """The work of P (D . G_i) Q for each sample, with the projection in float32."""
    k_out, k_in = _sizes(layer, run)
    elements = float(num_samples * layer.numel)
    cast = run.factor_size + FLOAT32 if run.factor_size < FLOAT32 else 0
    scaling = 2 * FLOAT32 if run.geometry.needs_moments else 0
    work: Work = [
        product(layer.out_features, tokens, layer.in_features, run.factor_size, num_samples),
        Compute(memory_bytes=elements * (cast + scaling) + _random_bytes(layer, run)),
    ]
    if k_in < layer.in_features:
        work.append(
            product(num_samples * layer.out_features, layer.in_features, k_in, FLOAT32, rate="float32")
        )
    if k_out < layer.out_features:
        work.append(product(k_out, layer.out_features, k_in, FLOAT32, num_samples, rate="float32"))
    return work


def _whole_scale(layer: Linear, run: Run) -> Work:
    """The work to bring D of a layer from its owners, in bfloat16, for every micro-batch."""
    if not run.geometry.needs_moments:
        return []
    ranks, owned = run.world_size, layer.numel / run.world_size
    host = FLOAT32 * owned if run.offloads_optimizer else 0.0
    compute = Compute(
        memory_bytes=SCALE_BYTES * owned + (6 * layer.numel if ranks > 1 else FLOAT32 * layer.numel),
        host_bytes=host,
    )
    return [compute, Transfer(2 * owned * (ranks - 1), 1, "ring")]


# -- factored --


def _factored(shapes: ModelShapes, run: Run) -> dict[str, Work]:
    scored = shapes.scored(run.selection.last_blocks)
    features = _features(scored, run)
    sums = sum(layer.out_features + layer.in_features for layer in scored)
    owned = sum(layer.numel for layer in scored) / run.world_size
    has_metric = run.geometry.needs_moments
    metric = Compute(  # cast or padded copy 8, two sums 8; then float64 factors
        memory_bytes=16 * owned + 80.0 * sums, host_bytes=FLOAT32 * owned if run.offloads_optimizer else 0.0
    )
    return {
        "contraction": [
            item
            for num_samples in run.passes
            for layer in scored
            for item in _project_factors(layer, run, num_samples, run.tokens)
        ],
        "metric": [metric] if has_metric else [],
        "gram": features["gram"],
        "exchange": [
            *([Transfer(_all_reduced(8 * sums, run.world_size), 1, "ring")] if has_metric else []),
            *features["exchange"],
        ],
    }


def _project_factors(layer: Linear, run: Run, num_samples: int, tokens: int) -> Work:
    """The work of (output_grad . u P')' (activation . v Q) for each sample; short sides are only scaled."""
    e, sizes = run.factor_size, _sizes(layer, run)
    work: Work = [Compute(memory_bytes=_random_bytes(layer, run))]
    for features, size in zip((layer.out_features, layer.in_features), sizes):
        if size < features:
            work.append(product(num_samples * tokens, features, size, e))
        else:
            work.append(Compute(memory_bytes=2.0 * e * num_samples * tokens * features))
    return [*work, product(sizes[0], tokens, sizes[1], e, num_samples)]


# -- shared --


def feature_width(scored: list[Linear], run: Run) -> int:
    return sum(k_out * k_in for k_out, k_in in (_sizes(layer, run) for layer in scored))


def _features(scored: list[Linear], run: Run) -> dict[str, Work]:
    """The work of FeatureGram.finish: every rank takes an equal share of the columns."""
    width, num_rows, ranks = feature_width(scored, run), run.rows + 1, run.world_size
    sent = FLOAT32 * num_rows * width
    count = ceil(sent / (run.selection.exchange_mib << 20))
    return {
        "gram": [_gram(run.selection.candidates_per_step, width / ranks)],
        "exchange": [Transfer(sent * (ranks - 1) / ranks, count, "all_to_all"), _sum_gram(run)],
    }


def _gram(num_candidates: int, columns: float, in_turn: float = 1.0) -> Compute:
    return product(num_candidates + 1, columns, num_candidates + 1, FLOAT32, rate="float32", turns=in_turn)


def _sum_gram(run: Run) -> Transfer:
    return Transfer(_all_reduced(8 * (run.selection.candidates_per_step + 1) ** 2, run.world_size), 1, "ring")


def _all_reduced(num_bytes: int, ranks: int) -> int:
    """Bytes as ``Collectives.sum`` counts them."""
    return 2 * num_bytes * (ranks - 1) // ranks


def _sizes(layer: Linear, run: Run) -> tuple[int, int]:
    return min(run.selection.projection_size, layer.out_features), min(
        run.selection.projection_size, layer.in_features
    )


def _random_bytes(layer: Linear, run: Run) -> float:
    k_out, k_in = _sizes(layer, run)
    sides = ((layer.out_features, k_out), (layer.in_features, k_in))
    return float(sum(RANDOM_BYTES * features * size for features, size in sides if size < features))
