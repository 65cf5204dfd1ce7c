# B samples, T tokens, O out_features, I in_features, V vocabulary, k features, W ranks, e bytes of an element
"""Peak memory of one rank, in bytes: what stays (weights, Adam state), and what a pass adds.

Temporaries of a backend are bounded rather than counted: its buffers never exceed a few times
``selection.exchange_mib``. Fragmentation, CUDA's context and the communication library's buffers come on top.
"""

from typing import Optional

from pipeline.planning.backends import FLOAT32, feature_width, own_tokens, ways
from pipeline.planning.model_shapes import Linear, ModelShapes
from pipeline.planning.passes import Run, logit_chunks
from pipeline.scoring.exact import held_bytes
from pipeline.scoring.token_products import BLOCK_ELEMENTS

MAX_LIVE_PARAMETERS = 1e9
"""DeepSpeed's default of stage3_max_live_parameters."""


def states(shapes: ModelShapes, run: Run) -> float:
    """Weights and Adam state.

    In 16 bit they take 2 bytes of weight, and 12 of master weight and moments where trained; stages from 1 on
    split these over ranks, stage 3 the weights too (S. Rajbhandari et al., ZeRO, arXiv 1910.02054, section
    3.1). In float32 stage 0 needs no master weight.
    """
    ranks = run.world_size
    weights = shapes.parameters * run.element_size / (ranks if run.zero_stage == 3 else 1)
    live = (
        min(MAX_LIVE_PARAMETERS, shapes.parameters) * run.element_size
        if run.zero_stage == 3 and ranks > 1
        else 0.0
    )
    has_master = run.element_size < FLOAT32 or run.zero_stage > 0
    adam = shapes.trained_parameters * (12 if has_master else 8) / (ranks if run.zero_stage else 1)
    return weights + live + (0.0 if run.offloads_optimizer else adam)


def gradients(shapes: ModelShapes, run: Run) -> float:
    """Gradients of the training step; the scoring pass has none."""
    return shapes.trained_parameters * run.element_size / (run.world_size if run.zero_stage >= 2 else 1)


def activations(
    shapes: ModelShapes, run: Run, num_samples: int, last_blocks: int = 0, is_scoring: bool = True
) -> float:
    """Activations that blocks save for the backward, and the loss at its widest.

    The loss takes three float32 copies of the logits: log-softmax, its own gradient and its input's. Where a
    scoring pass forms them in parts, only one part exists; the hidden states of all tokens then wait three
    times (copied, their gradient in parts, and joined).
    """
    tokens, num_blocks = num_samples * run.tokens, shapes.num_blocks - shapes.first_block(last_blocks)
    saved = saved_per_token(shapes, run, is_scoring)
    # Checkpointed: the input of each block, and one block recomputed.
    blocks = (
        num_blocks * run.element_size * shapes.hidden_size + saved if run.checkpoints else num_blocks * saved
    )
    chunks = logit_chunks(shapes, run, num_samples) if is_scoring else 0
    hidden = 3 * run.element_size * shapes.hidden_size if chunks else 0
    return tokens * (blocks + 3 * FLOAT32 * shapes.vocab_size / max(1, chunks) + hidden)


def saved_per_token(shapes: ModelShapes, run: Run, is_scoring: bool) -> float:
    """Bytes that one Llama block of transformers saves per token.

    Each RMSNorm: its input in float32, the root, its output; where the norm's weight is trained, the
    normalised input as well. Attention: q, k, v, output, log-sum-exp (eager: the probabilities, in
    float32 before and in the compute dtype after the cast). MLP: gate before and after SiLU, up, their
    product. Adapters: the output of lora_A.

    Not counted: kernels without grouped keys and values (eager, SDPA on CPU) save repeated ones too.
    """
    e, hidden = run.element_size, shapes.hidden_size
    is_full = shapes.trained_parameters == shapes.parameters
    norm = FLOAT32 * hidden + FLOAT32 + e * hidden * (2 if is_full and not is_scoring else 1)
    matrix = FLOAT32 if run.is_flash else (FLOAT32 + e if e < FLOAT32 else FLOAT32) * run.tokens
    attention = e * shapes.head_dim * 2 * (shapes.num_heads + shapes.num_kv_heads) + shapes.num_heads * matrix
    inner = sum(
        min(layer.out_features, layer.in_features)
        for layer in shapes.linears
        if layer.block == 0 and layer.is_trained
    )
    adapters = 0 if is_full else e * inner / 2  # lora_A and lora_B both have the rank as their short side
    return 2 * norm + attention + 4 * e * shapes.intermediate_size + adapters


def backend(shapes: ModelShapes, run: Run) -> float:
    """Memory for the Gram matrix in the making, on top of a scoring pass."""
    selection, ranks, rows = run.selection, run.world_size, run.rows
    scored = shapes.scored(selection.last_blocks)
    exchange = float(selection.exchange_mib << 20)
    gram = 8.0 * (selection.candidates_per_step + 1) ** 2
    if selection.backend == "exact":
        by_rows, by_tokens = ways(shapes, run)
        numel, num_held = sum(layer.numel for layer in by_rows), rows - run.passes[-1]
        held = held_bytes(
            {layer.name: (layer.out_features, layer.in_features) for layer in by_rows},
            num_held,
            run.tokens,
            run.factor_size,
        )
        buffer = min(exchange, float(rows * numel * run.factor_size))
        # At most: rows that wait, the same joined, and the next rows, which find no room. Between ranks
        # also the copies to be sent and received, and both of the exchange before, which travels meanwhile.
        return (
            FLOAT32 * numel / ranks
            + held
            + (7 if ranks > 1 else 3) * buffer
            + gram
            + _by_tokens(by_tokens, run, num_held)
        )
    largest = max(layer.numel for layer in scored)
    features = FLOAT32 * (rows + 1) * feature_width(scored, run)
    sides = max(layer.out_features + layer.in_features for layer in scored)
    random = FLOAT32 * sides * selection.projection_size
    # D exists whole, and one chunk of gradients, in the compute dtype and in float32.
    if selection.backend == "projected":
        return (
            features
            + random
            + (2 + FLOAT32) * largest
            + 2 * min(exchange, float(FLOAT32 * run.passes[0] * largest))
            + gram
        )
    metric = 12.0 * sum(layer.out_features + layer.in_features for layer in scored)
    return (
        features
        + random
        + metric
        + run.passes[0] * run.tokens * 2 * selection.projection_size * run.element_size
        + gram
    )


def selection(shapes: ModelShapes, run: Run, reference: Optional[ModelShapes] = None) -> float:
    """Most bytes that a look takes, with all that the method needs."""
    if run.method.needs_target:
        return scoring(shapes, run)
    if not run.method.looks_at_candidates:
        return states(shapes, run)
    if run.method.needs_norms:  # a chunk of gradients, in the compute dtype and in float32
        held = activations(shapes, run, max(run.passes), run.selection.last_blocks)
        return states(shapes, run) + held + 2.0 * (run.selection.exchange_mib << 20)
    models = [shapes, *([reference] if reference else [])]
    # A forward alone: activations of one block at a time; the logits in the compute dtype, in float32 and
    # after log-softmax.
    per_token = max(
        saved_per_token(m, run, True) + (run.element_size + 2 * FLOAT32) * m.vocab_size for m in models
    )
    weights = reference.parameters * run.element_size if reference else 0
    return states(shapes, run) + weights + max(run.passes) * run.tokens * per_token


def _by_tokens(layers: list[Linear], run: Run, num_held: int) -> float:
    """Memory for products of tokens.

    Factors wait, the target's and those of earlier micro-batches. Of the widest layer there are everyone's,
    gathered and joined, and blocks of products (both sides and their product).
    """
    if not layers:
        return 0.0
    own, e, ranks = own_tokens(run), run.element_size, run.world_size
    waiting = (
        (num_held + sum(run.target_passes))
        * run.tokens
        * sum(layer.out_features + layer.in_features for layer in layers)
    )
    gathered = (2 * ranks + 1) * own * max(layer.out_features + layer.in_features for layer in layers)
    return float(e) * (waiting + gathered + 3 * min(BLOCK_ELEMENTS, own * ranks * own))


def scoring(shapes: ModelShapes, run: Run) -> float:
    widest = max([*run.passes, *run.target_passes])
    return (
        states(shapes, run)
        + activations(shapes, run, widest, run.selection.last_blocks)
        + backend(shapes, run)
    )


def training(shapes: ModelShapes, run: Run, passes: list[int]) -> float:
    saved = activations(shapes, run, max(passes), is_scoring=False)
    return states(shapes, run) + gradients(shapes, run) + saved
