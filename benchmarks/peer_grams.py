# C candidates, T tokens, V vocabulary, O out_features, I in_features, n elements of a weight
"""One Gram matrix, got in several ways: K_ij = <D g_i, D g_j> over the trained linear weights, with Adam's
D = 1 / (sqrt(v) + eps).

Each way is a context manager that takes a ``Problem``, prepares the model (that is not timed) and yields a
function without arguments that returns K, float64 (C, C).  Ways that only deliver per-sample gradients share
what follows, ``add_rows``: layer by layer, in float32, in the pieces that ``ExactGram`` takes, each layer
freed after its turn where the peer lets go of it.

    loop       batch-of-one backward passes of plain autograd; C gradients of the whole model are held
    vmap       torch.func: vmap(grad(loss)) over functional_call; all gradients are held
    opacus     GradSampleModule; all ``.grad_sample`` are held at the end of the backward, and ``.grad``
               beside them
    bergson    its hook collector with its AdamNormalizer, which is our D; a layer's rows are multiplied
               inside the backward and not held. The model is frozen but for the embedding, as bergson's own
               loader leaves it.
    ours       ``scoring_pass`` with each Gram backend. They form a row more, the target's, zero here.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from pipeline.config import SelectionConfig
from pipeline.geometry import UPDATE
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.exact import CACHE_BYTES, ExactGram
from pipeline.scoring.factored import FactoredGram
from pipeline.scoring.factors import scored_layers, scoring_pass
from pipeline.scoring.gram import GramProblem
from pipeline.scoring.loss import LanguageModel
from pipeline.scoring.metric import Metric
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.projected import ProjectedGram
from pipeline.scoring.stopwatch import Stopwatch

EPS = 1e-8
EXCHANGE_BYTES = SelectionConfig().exchange_mib << 20


@dataclass
class Problem:
    """A model in eval mode of which nothing but ``layers``' weights is trained, candidates, and the state of
    Adam."""

    model: LanguageModel
    layers: dict[str, nn.Linear]
    exp_avg_sq: dict[str, torch.Tensor]
    """By layer, float32 (O, I); taken as it is, without bias correction."""
    input_ids_CT: torch.Tensor
    """Every token is supervised and no sample is padded."""

    @property
    def device(self) -> torch.device:
        return self.input_ids_CT.device

    def loss(self) -> torch.Tensor:
        """Sum of the candidates' losses: its gradient at a sample's tokens is that of the sample's own
        loss."""
        return per_sample_loss(
            self.model(input_ids=self.input_ids_CT, use_cache=False).logits, self.input_ids_CT
        ).sum()


Run = Callable[[], torch.Tensor]


def pose(model: nn.Module, input_ids_CT: torch.Tensor, other_ids_NT: torch.Tensor) -> Problem:
    """The problem of ``input_ids_CT``; exp_avg_sq is the mean squared per-sample gradient of other samples,
    taken in float32."""
    layers = scored_layers(model.eval())
    for parameter in model.requires_grad_(False).parameters():
        parameter.grad = None
    exp_avg_sq = {name: torch.zeros_like(layer.weight, dtype=torch.float32) for name, layer in layers.items()}
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for ids_T in other_ids_NT:
        for name, gradient in _gradient(model, layers, ids_T).items():
            exp_avg_sq[name] += gradient.float() ** 2 / len(other_ids_NT)
    return Problem(model, layers, exp_avg_sq, input_ids_CT)


def per_sample_loss(logits_CTV: torch.Tensor, input_ids_CT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each sample, (C,), at least float32; formed without boolean indexing, which vmap
    cannot follow."""
    logits_CVT = logits_CTV[:, :-1].to(torch.promote_types(logits_CTV.dtype, torch.float32)).transpose(1, 2)
    return F.cross_entropy(logits_CVT, input_ids_CT[:, 1:], reduction="none").mean(1)


def _gradient(model: nn.Module, layers: dict[str, nn.Linear], ids_T: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of one sample's loss for each layer's weight: a batch of one, by plain autograd."""
    (loss,) = per_sample_loss(model(input_ids=ids_T[None], use_cache=False).logits, ids_T[None])
    return dict(zip(layers, torch.autograd.grad(loss, [layer.weight for layer in layers.values()])))


# -- the truth --


def reference(problem: Problem) -> torch.Tensor:
    """K in float64 throughout, one sample at a time; holds 8 bytes for each candidate and scored
    parameter."""
    model = copy.deepcopy(problem.model).double()
    for norm in model.modules():
        # transformers computes it in float32 whatever the model's dtype
        if type(norm).__name__.endswith("RMSNorm"):
            norm.forward = partial(
                F.rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight, eps=norm.variance_epsilon
            )
    layers = {name: model.get_submodule(name) for name in problem.layers}
    gradients = [_gradient(model, layers, ids_T) for ids_T in problem.input_ids_CT]
    gram_CC = torch.zeros(len(gradients), len(gradients), dtype=torch.float64, device=problem.device)
    for name, exp_avg_sq in problem.exp_avg_sq.items():
        scale_OI = torch.where(exp_avg_sq > 0, 1 / (exp_avg_sq.double().sqrt() + EPS), 0)
        rows_Cn = torch.stack([(gradient.pop(name) * scale_OI).flatten() for gradient in gradients])
        gram_CC += rows_Cn @ rows_Cn.T
    return gram_CC


def relative_error(found_CC: torch.Tensor, expected_CC: torch.Tensor) -> float:
    """Largest |K_ij - K'_ij| in units of |phi_i| |phi_j|, so that no pair hides behind a larger one."""
    norm_C = expected_CC.diagonal().sqrt()
    return ((found_CC - expected_CC).abs() / torch.outer(norm_C, norm_C)).max().item()


# -- what all peers share --


def _empty_gram(problem: Problem) -> torch.Tensor:
    num_candidates = len(problem.input_ids_CT)
    return torch.zeros(num_candidates, num_candidates, dtype=torch.float64, device=problem.device)


def add_rows(gram_CC: torch.Tensor, rows_Cn: torch.Tensor, exp_avg_sq: torch.Tensor) -> None:
    """gram += X X' for X = rows * D, in float32 pieces."""
    exp_avg_sq_n = exp_avg_sq.flatten()
    for piece in _pieces(rows_Cn):
        scale_n = Metric(correction=1.0, eps=EPS).scale(exp_avg_sq_n[piece], UPDATE)
        x = rows_Cn[:, piece] * scale_n
        gram_CC += x @ x.T


def _pieces(rows_Cn: torch.Tensor) -> Iterator[slice]:
    num_rows, numel = rows_Cn.shape
    step = max(1, (CACHE_BYTES if rows_Cn.device.type == "cpu" else EXCHANGE_BYTES) // (4 * num_rows))
    for first in range(0, numel, step):
        yield slice(first, first + step)


# -- the peers --


@contextmanager
def loop(problem: Problem) -> Iterator[Run]:
    def run():
        gram_CC = _empty_gram(problem)
        gradients = [_gradient(problem.model, problem.layers, ids_T) for ids_T in problem.input_ids_CT]
        for name, exp_avg_sq in problem.exp_avg_sq.items():
            rows_Cn = torch.stack([gradient.pop(name).flatten() for gradient in gradients])
            add_rows(gram_CC, rows_Cn, exp_avg_sq)
        return gram_CC

    yield run


@contextmanager
def functional(problem: Problem) -> Iterator[Run]:
    weights = {f"{name}.weight": layer.weight.detach() for name, layer in problem.layers.items()}

    def loss(weights, ids_T):
        inputs = {"input_ids": ids_T[None], "use_cache": False}
        return per_sample_loss(functional_call(problem.model, weights, (), inputs).logits, ids_T[None])[0]

    def run():
        gram_CC = _empty_gram(problem)
        gradients = vmap(grad(loss), in_dims=(None, 0))(weights, problem.input_ids_CT)
        for name, exp_avg_sq in problem.exp_avg_sq.items():
            add_rows(gram_CC, gradients.pop(f"{name}.weight").flatten(1), exp_avg_sq)
        return gram_CC

    yield run


@contextmanager
def opacus(problem: Problem) -> Iterator[Run]:
    from opacus import GradSampleModule  # optional, as bergson is

    for layer in problem.layers.values():
        # opacus looks at layers in training mode only; to a linear layer it makes no difference
        layer.train()
    wrapped = GradSampleModule(problem.model, loss_reduction="sum")

    def run():
        gram_CC = _empty_gram(problem)
        per_sample_loss(
            wrapped(input_ids=problem.input_ids_CT, use_cache=False).logits, problem.input_ids_CT
        ).sum().backward()
        for name, exp_avg_sq in problem.exp_avg_sq.items():
            weight: Any = problem.layers[name].weight  # opacus adds grad_sample
            add_rows(gram_CC, weight.grad_sample.flatten(1), exp_avg_sq)
            weight.grad = weight.grad_sample = None
        return gram_CC

    try:
        yield run
    finally:
        wrapped.to_standard_module()
        problem.model.eval()


@contextmanager
def bergson(problem: Problem) -> Iterator[Run]:
    from bergson.collector.collector import HookCollectorBase
    from bergson.gradients import AdamNormalizer, GradientProcessor

    class Collector(HookCollectorBase):
        """Multiplies a layer's rows when they come, where bergson's own collectors would keep or write
        them."""

        def setup(self):
            self.gram_CC = _empty_gram(problem)

        def backward_hook(self, module, g):
            rows_Cn = self._compute_gradient(module, g)  # with D applied
            for piece in _pieces(rows_Cn):
                x = rows_Cn[:, piece].float()
                self.gram_CC += x @ x.T

        def process_batch(self, indices, **_):
            pass

        def teardown(self):
            pass

    # Where v = 0 our D is 0 and bergson's 1 / eps: infinity makes the two agree.
    endless = {
        name: v if v.all() else v.masked_fill(v == 0, torch.inf) for name, v in problem.exp_avg_sq.items()
    }
    normalizers = {name: AdamNormalizer(v) for name, v in endless.items()}
    trained = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]

    def run():
        with Collector(
            problem.model, target_modules=set(problem.layers), processor=GradientProcessor(normalizers)
        ) as collector:
            problem.loss().backward()
            problem.model.zero_grad()
        return collector.gram_CC

    problem.model.requires_grad_(False)
    problem.model.get_input_embeddings().requires_grad_(True)
    try:
        yield run
    finally:
        problem.model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


class _Alone(Collectives):
    """A world of one rank, for which no process group is needed."""

    def __init__(self, device: torch.device):
        self.device, self.rank, self.world_size, self.bytes_sent = device, 0, 1, 0

    def gather_objects(self, value) -> list:
        return [value]


@contextmanager
def ours(problem: Problem, backend: Callable = ExactGram) -> Iterator[Run]:
    collectives = _Alone(problem.device)
    shapes = {
        f"{name}.weight": (layer.out_features, layer.in_features) for name, layer in problem.layers.items()
    }
    own = [
        Fragment(f"{name}.weight", 0, v.numel(), None, v.flatten(), 1, 0.9, 0.999, EPS, bias_correction=False)
        for name, v in problem.exp_avg_sq.items()
    ]
    num_rows, num_tokens = problem.input_ids_CT.shape
    gram_problem = GramProblem(
        owners=OwnerMap(shapes, own, collectives),
        own={fragment.name: fragment for fragment in own},
        geometry=UPDATE,
        compensates_momentum=False,
        num_rows=num_rows,
        num_tokens=num_tokens,
        element_size=next(problem.model.parameters()).element_size(),
        exchange_bytes=EXCHANGE_BYTES,
        projection_size=SelectionConfig().projection_size,
        seed="0",
    )

    def run():
        gram = backend(gram_problem, collectives, Stopwatch(problem.device))
        gram.finish_target()
        with scoring_pass(problem.model, problem.layers, gram.add):
            problem.loss().backward()
        return gram.finish()[:-1, :-1]

    yield run


PEERS: dict[str, Callable] = {
    "ours": ours,
    "loop": loop,
    "vmap": functional,
    "opacus": opacus,
    "bergson": bergson,
    "ours_projected": partial(ours, backend=ProjectedGram),
    "ours_factored": partial(ours, backend=FactoredGram),
}
OPTIONAL = ("opacus", "bergson")
