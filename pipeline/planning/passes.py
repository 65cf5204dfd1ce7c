# B samples, T tokens, N = B T, O out_features, I in_features, V vocabulary, W ranks, e bytes of an element
"""Counted operations of the model's own passes, and of ZeRO and Adam around them, on one rank.

    plain          forward, backward with the weight gradients of what is trained
    scoring        forward, backward without any weight gradient, down to the first scored block

Linear layers and attention are counted from shapes; passes over memory between them as a Llama block
of transformers makes them, operation by operation and unfused. Blocks of other kinds (mixtures of
experts, sliding windows) differ there.
"""

from dataclasses import dataclass, replace
from math import ceil

from pipeline import config
from pipeline.config import SelectionConfig, TrainingConfig
from pipeline.geometry import Geometry
from pipeline.planning.model_shapes import ModelShapes
from pipeline.planning.work import Compute, Transfer, Work, product
from pipeline.scoring.loss import logit_chunk_bytes
from pipeline.selection import registry
from pipeline.selection.contract import Method


@dataclass(frozen=True)
class Run:
    """The planned run, apart from model and hardware."""

    selection: SelectionConfig
    training: TrainingConfig
    world_size: int
    zero_stage: int
    tokens: int
    """Length of every sample, with padding, of which packed ones have none; each attends to itself."""
    element_size: int
    """Bytes of an element in the compute dtype."""
    trained_samples: int
    """Samples of one optimizer step, over all ranks."""
    offloads_optimizer: bool = False
    checkpoints: bool = False
    """Whether activations are recomputed."""
    is_flash: bool = True
    """Whether attention is causal, without its (T, T) matrices."""
    device_type: str = "cuda"
    is_float16: bool = False

    @property
    def factor_size(self) -> int:
        """Bytes of an element of a factor, and of its gradients; float16 factors are cast to float32."""
        return 4 if self.is_float16 else self.element_size

    @property
    def rows(self) -> int:
        """Candidates that this rank scores (R)."""
        return self.selection.candidates_per_step // self.world_size

    @property
    def passes(self) -> list[int]:
        """Candidates of each scoring micro-batch."""
        return _split(self.rows, self.selection.scoring_micro_batch_size or self.rows)

    @property
    def target_passes(self) -> list[int]:
        """Target samples of each micro-batch."""
        return _split(
            -(-self.selection.target_per_step // self.world_size),
            self.selection.scoring_micro_batch_size or self.rows,
        )

    @property
    def training_passes(self) -> list[int]:
        return _split(self.trained_samples // self.world_size, self.training.micro_batch_size)

    @property
    def method(self) -> Method:
        return registry.get(self.selection.method)

    @property
    def geometry(self) -> Geometry:
        return config.geometry(self.selection)

    @property
    def needs_moments(self) -> bool:
        return config.needs_moments(self.selection)


def scoring(shapes: ModelShapes, run: Run, num_samples: int) -> dict[str, Work]:
    """Work of the forward and the activation-gradient backward of one micro-batch, by stage."""
    last_blocks = run.selection.last_blocks
    recomputed = forward(shapes, run, num_samples, last_blocks) if run.checkpoints else []
    return {
        "forward": forward(shapes, run, num_samples),
        "backward": [*recomputed, *backward(shapes, run, num_samples, last_blocks)],
        "attention": attention(shapes, run, num_samples, last_blocks),
        "loss": loss(shapes, run, num_samples),
        "parameters": [
            *gathered_parameters(shapes, run, last_blocks),
            *_gathered_output_layer(shapes, run, num_samples),
        ],
    }


def losses(shapes: ModelShapes, run: Run, num_samples: int) -> dict[str, Work]:
    """Work of the forward alone of one micro-batch, by stage."""
    return {
        "forward": forward(shapes, run, num_samples),
        "attention": attention(shapes, run, num_samples, has_backward=False),
        "loss": loss(shapes, run, num_samples, has_backward=False),
        "parameters": gathered_parameters(shapes, run, has_backward=False),
    }


def plain(shapes: ModelShapes, run: Run, num_samples: int) -> dict[str, Work]:
    """Work of the forward and backward of one training micro-batch, by stage.

    With LoRA the first block's inputs need no gradient; counting it adds less than one block.
    """
    again = recomputed(shapes, run, num_samples) if run.checkpoints else []
    return {
        "forward": forward(shapes, run, num_samples),
        "backward": [*again, *backward(shapes, run, num_samples)],
        "attention": attention(shapes, run, num_samples),
        "loss": loss(shapes, run, num_samples),
        "weight_gradients": weight_gradients(shapes, run, num_samples),
        "parameters": gathered_parameters(shapes, run),
    }


def forward(shapes: ModelShapes, run: Run, num_samples: int, last_blocks: int = 0) -> Work:
    """Work of the linear layers of the (last) blocks, and between them."""
    e, tokens = run.element_size, num_samples * run.tokens
    layers = [layer for layer in shapes.backward(last_blocks) if layer.block is not None]
    num_blocks = shapes.num_blocks - shapes.first_block(last_blocks)
    return [
        *(product(tokens, layer.in_features, layer.out_features, e) for layer in layers),
        Compute(memory_bytes=float(tokens) * num_blocks * _bytes_between(shapes, e)),
    ]


def recomputed(shapes: ModelShapes, run: Run, num_samples: int) -> Work:
    """Work of the forward of the blocks once more, each without its last product.

    torch.utils.checkpoint stops where all that the backward needs is there again, and that excludes the
    output of the last layer. In a scoring pass that layer has a hook, so all is computed.
    """
    last = {layer.block: layer.name for layer in shapes.linears}
    inner = tuple(layer for layer in shapes.linears if last[layer.block] != layer.name)
    return forward(replace(shapes, linears=inner), run, num_samples)


def backward(shapes: ModelShapes, run: Run, num_samples: int, last_blocks: int = 0) -> Work:
    """Work of the gradients of activations.

    They take the transposed products, and about twice the passes between them: a saved value and a gradient
    are read where one value was.
    """
    e, tokens = run.element_size, num_samples * run.tokens
    layers = [layer for layer in shapes.backward(last_blocks) if layer.block is not None]
    num_blocks = shapes.num_blocks - shapes.first_block(last_blocks)
    return [
        *(product(tokens, layer.out_features, layer.in_features, e) for layer in layers),
        Compute(memory_bytes=2.0 * tokens * num_blocks * _bytes_between(shapes, e)),
    ]


def weight_gradients(shapes: ModelShapes, run: Run, num_samples: int) -> Work:
    """Work of the gradients of trained layers, and of their way into ``.grad`` and ZeRO's bucket."""
    e, tokens = run.element_size, num_samples * run.tokens
    trained = [layer for layer in shapes.linears if layer.is_trained]
    return [
        *(product(layer.out_features, tokens, layer.in_features, e) for layer in trained),
        Compute(memory_bytes=4.0 * e * shapes.trained_parameters),  # read and written twice
    ]


def attention(
    shapes: ModelShapes, run: Run, num_samples: int, last_blocks: int = 0, has_backward: bool = True
) -> Work:
    """Work of attention: two products (T, T, d) per head forward, four backward.

    A flash kernel does half of each, the causal half, and computes the scores once more backward (T. Dao,
    FlashAttention-2, arXiv 2307.08691, section 4.1). Eager attention passes over its (T, T) matrices
    besides: mask, softmax in float32, cast.
    """
    heads, e = num_samples * shapes.num_heads, run.element_size
    share = 0.5 if run.is_flash else 1.0
    backward_blocks = shapes.num_blocks - shapes.first_block(last_blocks) if has_backward else 0
    num_forward = 2 * (shapes.num_blocks + (backward_blocks if run.checkpoints else 0))
    num_backward = (5 if run.is_flash else 4) * backward_blocks
    factors_bytes = float(
        num_samples * run.tokens * shapes.head_dim * 2 * (shapes.num_heads + shapes.num_kv_heads) * e
    )
    matrix_bytes = 0.0 if run.is_flash else float(heads * run.tokens**2 * (6 * e + 20))
    count = num_forward + num_backward
    return [
        Compute(
            flops=2.0 * heads * run.tokens**2 * shapes.head_dim * count * share,
            memory_bytes=count / 2 * (factors_bytes + matrix_bytes),
        )
    ]


def loss(shapes: ModelShapes, run: Run, num_samples: int, has_backward: bool = True) -> Work:
    """Work of lm_head, forward and backward, and of ``per_sample_loss`` over its logits; every token counts.

    Forward: rows copied (2 e), turned to float32 (e + 4, nothing in float32), log-softmax (8). Backward:
    zeros of the selected (4), log-softmax (12), cast (4 + e), zeros and their rows (3 e).
    """
    e, tokens = run.element_size, num_samples * run.tokens
    heads = [layer for layer in shapes.linears if layer.block is None]
    cast = e + 4 if e < 4 else 0
    logits, backward_bytes = float(tokens) * shapes.vocab_size, 4 + 12 + cast + 3 * e
    return [
        *(product(tokens, layer.in_features, layer.out_features, e) for layer in heads),
        *(product(tokens, layer.out_features, layer.in_features, e) for layer in heads if has_backward),
        Compute(memory_bytes=logits * (2 * e + cast + 8 + (backward_bytes if has_backward else 0))),
    ]


def logit_chunks(shapes: ModelShapes, run: Run, num_samples: int) -> int:
    """Parts of the logits of a scoring micro-batch, 0 where they are formed as a whole.

    The hook does so too, for a model with plain logits.
    """
    is_scored = any(layer.block is None for layer in shapes.scored(run.selection.last_blocks))
    if run.selection.logits_mib == 0 or is_scored:
        return 0
    bound = logit_chunk_bytes(run.selection.logits_mib, run.device_type)
    return ceil(num_samples * run.tokens * shapes.vocab_size * 4 / bound)


def gathered_parameters(
    shapes: ModelShapes, run: Run, last_blocks: int = 0, has_backward: bool = True
) -> Work:
    """Transfers of ZeRO-3: all parameters for a forward, those on its way for a backward."""
    if run.zero_stage < 3 or run.world_size == 1:
        return []
    backward_share = 1 - shapes.first_block(last_blocks) / shapes.num_blocks if has_backward else 0
    sent = shapes.parameters * run.element_size * (run.world_size - 1) / run.world_size
    return [Transfer(sent * (1 + backward_share), round(shapes.num_blocks * (1 + backward_share)), "ring")]


def _gathered_output_layer(shapes: ModelShapes, run: Run, num_samples: int) -> Work:
    """Transfers of ZeRO-3 for each further part of the logits: the output layer, forward and backward."""
    more = max(0, logit_chunks(shapes, run, num_samples) - 1)
    if run.zero_stage < 3 or run.world_size == 1 or not more:
        return []
    sent = (
        2
        * more
        * shapes.vocab_size
        * shapes.hidden_size
        * run.element_size
        * (run.world_size - 1)
        / run.world_size
    )
    return [Transfer(sent, 2 * more, "ring")]


def reduced_gradients(shapes: ModelShapes, run: Run) -> Work:
    """Transfers once per step at stages 0 (all-reduce) and 1, per micro-batch at 2 and 3 (reduce-scatter)."""
    if run.world_size == 1:
        return []
    sent = shapes.trained_parameters * run.element_size * (run.world_size - 1) / run.world_size
    return [Transfer(2 * sent if run.zero_stage == 0 else sent, max(1, shapes.num_blocks), "ring")]


def update(shapes: ModelShapes, run: Run) -> Work:
    """Work of the optimizer's step.

    torch.optim.AdamW (foreach) moves 80 bytes an element: exp_avg 12, exp_avg_sq 20, denominator 24, weight
    16, decay 8. Offloaded, the gradient goes to the host and the weight comes back; the host's own time is
    not counted. Stages 1 and 2 gather what was updated.
    """
    owned = shapes.trained_parameters / (run.world_size if run.zero_stage else 1)
    moved = owned * (4 + run.element_size) if run.offloads_optimizer else 0.0
    work: Work = [Compute(memory_bytes=0.0 if run.offloads_optimizer else 80.0 * owned, host_bytes=moved)]
    if run.zero_stage in (1, 2) and run.world_size > 1:
        sent = shapes.trained_parameters * run.element_size * (run.world_size - 1) / run.world_size
        work.append(Transfer(sent, 1, "ring"))
    return work


def _bytes_between(shapes: ModelShapes, e: int) -> float:
    """Bytes read and written per token in one block's forward, outside of products.

    RMSNorm, twice: float32 copy (e + 4), square (8), mean (4), scaling (8), cast (4 + e), weight
    (2 e). Rotary embedding of queries and keys: two products, a rotation, a sum (10 e). Residual
    sums: twice 3 e. SiLU and gate: 5 e.
    """
    casts = 2 * (e + 4) if e < 4 else 0
    norms = 2 * shapes.hidden_size * (20 + 2 * e + casts)
    rotary = 10 * e * (shapes.num_heads + shapes.num_kv_heads) * shapes.head_dim
    return norms + rotary + 6 * e * shapes.hidden_size + 5 * e * shapes.intermediate_size


def _split(total: int, size: int) -> list[int]:
    return [min(size, total - first) for first in range(0, total, size)]
