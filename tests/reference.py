# C candidates, K kept, T tokens, V vocabulary, O out_features, I in_features
"""The slow, obviously right version: plain PyTorch in float64, one process, one sample at a time, everything
dense.

It knows nothing of DeepSpeed and of pipeline/scoring. A tiny Llama of awkward sizes (36 wide, 50 in the
middle, 71 tokens, 6 heads over 3 keys), so that slices of ranks end within rows.
"""

from dataclasses import dataclass, field

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.data.sample import IGNORED, Sample

VOCABULARY = 71
LORA_RANK, LORA_ALPHA = 3, 6


def llama_config(tied: bool = False, **options) -> LlamaConfig:
    sizes = dict(
        vocab_size=VOCABULARY,
        hidden_size=36,
        intermediate_size=50,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=64,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaConfig(**{**sizes, **options})


def tiny_llama(seed: int = 0, tied: bool = False, attention: str = "eager", **options) -> LlamaForCausalLM:
    """In float64. Its norms are not all ones, as they are in a new model."""
    torch.manual_seed(seed)
    config = llama_config(tied, **options)
    config._attn_implementation = attention
    model = LlamaForCausalLM(config).double()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def add_lora(model: torch.nn.Module, dropout: float = 0.0) -> torch.nn.Module:
    adapters = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        target_modules="all-linear",
        lora_dropout=dropout,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters, autocast_adapter_dtype=False)


@torch.no_grad()
def fill_adapters(model: torch.nn.Module, zero_b: bool = False, seed: int = 5) -> None:
    """The same adapters in whatever dtype. With lora_B zero, as new adapters have it, lora_A has no gradient
    at first."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            values = 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0 * values if zero_b and "lora_B" in name else values)


def load(folder: str, kind: str, zero_b: bool = False) -> torch.nn.Module:
    """The model in ``folder``, ``full`` or with adapters (``lora``), in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    if kind == "lora":
        model = add_lora(model)
        fill_adapters(model, zero_b)
    return model


def random_samples(lengths: list[int], seed: int, unsupervised: tuple[int, ...] = ()) -> list[Sample]:
    """Samples whose first third is a prompt without supervision; those at ``unsupervised`` have none at
    all."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for position, length in enumerate(lengths):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        prompt = length if position in unsupervised else max(1, length // 3)
        samples.append(Sample(ids, [IGNORED] * prompt + ids[prompt:], id=f"{seed}-{position}"))
    return samples


def sample_loss(model: torch.nn.Module, sample: Sample) -> torch.Tensor:
    """Mean of -log p(token | tokens before) over the supervised tokens of one sample, which nothing pads."""
    logits_TV = model(input_ids=torch.tensor([sample.input_ids]), use_cache=False).logits[0]
    log_probability_TV = torch.log_softmax(logits_TV.double(), dim=-1)
    losses = [
        -log_probability_TV[t - 1, label]
        for t, label in enumerate(sample.labels)
        if t > 0 and label != IGNORED
    ]
    return torch.stack(losses).mean() if losses else 0 * logits_TV.sum()


def gradient(model: torch.nn.Module, batch: list[tuple[Sample, float]]) -> dict[str, torch.Tensor]:
    """Gradient of sum_i w_i l_i for every trained parameter, one sample after the other, in eval mode."""
    model.eval()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    for sample, weight in batch:
        grads = torch.autograd.grad(
            weight * sample_loss(model, sample), list(trained.values()), allow_unused=True
        )
        for name, grad in zip(trained, grads):
            total[name] += 0 if grad is None else grad
    return total


def linear_weights(model: torch.nn.Module) -> list[str]:
    """Names of the trained weights of linear layers, but for one that is tied to the embedding."""
    embedding = model.get_input_embeddings().weight
    return [
        f"{name}.weight"
        for name, child in model.named_modules()
        if isinstance(child, torch.nn.Linear) and child.weight.requires_grad and child.weight is not embedding
    ]


@dataclass
class Hyper:
    """Hyper-parameters of one parameter."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


@dataclass
class AdamW:
    """AdamW (Loshchilov, Hutter, 2019, algorithm 2) on a dictionary of parameters, as it stands in the
    paper."""

    parameters: dict[str, torch.Tensor]
    hyper: dict[str, Hyper]
    step: int = 0
    exp_avg: dict[str, torch.Tensor] = field(default_factory=dict)
    exp_avg_sq: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, gradients: dict[str, torch.Tensor]) -> None:
        self.step += 1
        for name, parameter in self.parameters.items():
            h, g, m, v = self.hyper[name], gradients[name], self.exp_avg[name], self.exp_avg_sq[name]
            m.mul_(h.beta1).add_((1 - h.beta1) * g)
            v.mul_(h.beta2).add_((1 - h.beta2) * g**2)
            parameter.mul_(1 - h.lr * h.weight_decay)
            m_hat, v_hat = m / (1 - h.beta1**self.step), v / (1 - h.beta2**self.step)
            parameter.sub_(h.lr * m_hat / (v_hat.sqrt() + h.eps))

    def metric(self, name: str) -> torch.Tensor:
        """D as docs/method.md defines it; 0 where there never was a gradient."""
        h, v = self.hyper[name], self.exp_avg_sq[name]
        d = 1 / ((v / (1 - h.beta2**self.step)).sqrt() + h.eps)
        return torch.where(v > 0, d, 0)

    def rank_one_metric(self, name: str) -> torch.Tensor:
        """1 / sqrt(row mean x column mean / mean) of v_hat + eps^2; 0 where row or column never had a
        gradient."""
        h, v = self.hyper[name], self.exp_avg_sq[name]
        raised = v / (1 - h.beta2**self.step) + h.eps**2
        d = (raised.mean(1, keepdim=True) * raised.mean(0, keepdim=True) / raised.mean()) ** -0.5
        return torch.where((v.sum(1, keepdim=True) > 0) & (v.sum(0, keepdim=True) > 0), d, 0)

    def gram(
        self,
        gradients: list[dict],
        target: dict,
        names: list[str],
        geometry: str = "update",
        momentum: str = "cancel",
        metric: str = "adam",
    ) -> torch.Tensor:
        """Gram matrix (C + 1, C + 1) of the dense rows phi of the candidates and, last, the target."""
        blocks = []
        for name in names:
            goal = target[name]
            if momentum == "compensate":
                beta1 = self.hyper[name].beta1
                goal = (goal - beta1 * self.exp_avg[name]) / (1 - beta1)
            power = {"update": 1, "update_to_gradient": 1, "curvature": 0.5, "identity": 0}[geometry]
            d = {"adam": self.metric, "rank_one": self.rank_one_metric}[metric](name)
            scale = torch.ones_like(goal) if geometry == "identity" else d**power
            target_scale = 1 if geometry == "update_to_gradient" else scale
            rows = [*(scale * g[name] for g in gradients), target_scale * goal]
            blocks.append(torch.stack([row.flatten() for row in rows]))
        rows_Cn = torch.cat(blocks, dim=1)
        return rows_Cn @ rows_Cn.T


def relative_gram_error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """|K_ij - K'_ij| in units of |phi_i| |phi_j|, so that no pair hides behind a larger one; zero rows must
    be zero."""
    norms = expected.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(norms, norms)
    floor = 1e-12 * scale.max()
    return (found - expected).abs() / torch.where(scale > floor, scale, floor + 1e-300)
