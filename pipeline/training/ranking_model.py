# n samples, B samples of a micro-batch, T tokens, H hidden size, R samples of one rank, W ranks
"""What rankings of a pool ask of the model: forwards over the ranks of an engine, and a fit it forgets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

import numpy as np
import torch

from pipeline.data.collate import to_batch
from pipeline.data.flat import BLOCK
from pipeline.data.sample import IGNORED, Sample
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.loss import causal_logits, evaluating, hidden_states, per_sample_loss
from pipeline.scoring.moments import release_gathered

FIT_STEPS = 8
"""AdamW steps on the mean loss of all target examples: few, as the difference of losses is wanted where it
begins and not where the examples are known by heart."""


class RankingModel:
    """``rankings.contract.Model`` of an engine. Every rank calls every method, with the same samples.

    Args:
        engine: what ``deepspeed.initialize`` returns.
        pad_token_id: fills up short rows.
        micro_batch_size: samples of one forward on a rank.
        learning_rate: of the fit; the run's own is right.
        is_packed: one row of each micro-batch instead of padding it.
    """

    def __init__(
        self, engine, pad_token_id: int, micro_batch_size: int, learning_rate: float, is_packed: bool = False
    ):
        self.engine, self.pad_token_id, self.micro_batch_size = engine, pad_token_id, micro_batch_size
        self.learning_rate, self.is_packed = learning_rate, is_packed
        self.collectives = Collectives(engine.seq_data_parallel_group, engine.device)
        self.blank = Sample([pad_token_id] * 2, [IGNORED] * 2)

    def pooled_states(self, samples: Sequence[Sample]) -> np.ndarray:
        return self._by_sample(samples, self._pooled_states)

    def losses(self, samples: Sequence[Sample]) -> np.ndarray:
        """Loss of each sample, float32 (n,); 0 without a supervised token."""
        return self._by_sample(samples, self._losses)

    def losses_around_fit(
        self, samples: Sequence[Sample], targets: Sequence[Sample]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``rankings.contract.Model`` says.

        The trained parameters are kept aside and put back; gradients, Adam state, loss scale and counters of
        the engine have no part in it. This takes memory for three float32 copies of the trained parameters,
        and one more in their own dtype, on every rank.
        """
        self._refuse_unfit()
        before_n = self.losses(samples)
        with self._fitted(list(targets)):
            return before_n, self.losses(samples)

    def _by_sample(
        self, samples: Sequence[Sample], measure: Callable[[list[Sample]], torch.Tensor]
    ) -> np.ndarray:
        """``measure`` of every sample, float32 (n, ...), dealt over the ranks and gathered on all of them.

        Of a block of samples those alike in length share a micro-batch, on every rank at the same time. Under
        ZeRO-3 all ranks must make the same number of forwards, so a short rank brings blank samples.
        """
        rank, world_size = self.collectives.rank, self.collectives.world_size
        found = list[np.ndarray]()
        with evaluating(self.engine.module):
            for first in range(0, len(samples), BLOCK):
                block = [samples[i] for i in range(first, min(first + BLOCK, len(samples)))]
                order_n = np.argsort([len(sample.input_ids) for sample in block], kind="stable")
                own = [block[i] for i in order_n[rank::world_size]]
                own += [self.blank] * (-(-len(block) // world_size) - len(own))
                own_R = torch.cat([measure(batch).float() for batch in self._micro_batches(own)])
                release_gathered(self.engine)
                all_WR = self.collectives.gather(own_R).cpu().numpy()
                block_n = np.empty((len(block), *all_WR.shape[2:]), dtype=np.float32)
                block_n[order_n] = all_WR.swapaxes(0, 1).reshape(-1, *all_WR.shape[2:])[: len(block)]
                found.append(block_n)
        return np.concatenate(found)

    def _micro_batches(self, samples: list[Sample]) -> list[list[Sample]]:
        size = self.micro_batch_size
        return [samples[begin : begin + size] for begin in range(0, len(samples), size)]

    def _to_batch(self, batch: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, Optional[list[int]]]:
        return to_batch(batch, self.pad_token_id, len(batch), self.engine.device, self.is_packed)

    def _losses(self, batch: list[Sample]) -> torch.Tensor:
        input_ids_BT, labels_BT, lengths = self._to_batch(batch)
        logits_BTV = causal_logits(self.engine.module, input_ids_BT, lengths)
        return per_sample_loss(logits_BTV, labels_BT, lengths)

    def _pooled_states(self, batch: list[Sample]) -> torch.Tensor:
        input_ids_BT, _, lengths = self._to_batch(batch)
        hidden_BTH = hidden_states(self.engine.module, input_ids_BT, lengths)
        rows = hidden_BTH if lengths is None else hidden_BTH[0].split(lengths)
        return torch.stack([pooled(row[: len(sample.input_ids)]) for row, sample in zip(rows, batch)])

    def _refuse_unfit(self) -> None:
        if self.engine.zero_optimization_partition_weights():
            raise ValueError(
                "the ranking fit changes the model for a moment, and under ZeRO stage 3 no rank holds its "
                "trained parameters: take deepspeed: zero2, make the ranking there, or take another ranking"
            )
        if self.engine.fp16_enabled():
            raise ValueError(
                "the ranking fit has no loss scale, without which gradients in float16 vanish: set "
                "training.precision to bf16 or fp32, or take another ranking"
            )

    @contextmanager
    def _fitted(self, targets: list[Sample]) -> Iterator[None]:
        """The model after FIT_STEPS on ``targets`` while inside, then as it was, bit for bit.

        The engine takes no part: gradients come from ``torch.autograd.grad``, which runs none of the hooks
        that DeepSpeed has on its parameters, and updates go to float32 copies, as small ones would be lost in
        bfloat16.
        """
        trained = [parameter for parameter in self.engine.module.parameters() if parameter.requires_grad]
        saved = [parameter.detach().clone() for parameter in trained]
        copies = [torch.nn.Parameter(kept.to(torch.float32, copy=True)) for kept in saved]
        optimizer = torch.optim.AdamW(copies, lr=self.learning_rate, weight_decay=0.0)
        try:
            for _ in range(FIT_STEPS):
                for copy, gradient in zip(copies, self._gradient(targets, trained)):
                    copy.grad = gradient
                optimizer.step()
                _write(trained, copies)
            yield
        finally:
            _write(trained, saved)

    def _gradient(self, targets: list[Sample], trained: list[torch.Tensor]) -> list[torch.Tensor]:
        """Gradient, float32, of the mean loss of ``targets``, each rank's part summed."""
        own = sorted(targets, key=lambda sample: len(sample.input_ids))
        own = own[self.collectives.rank :: self.collectives.world_size]
        total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in trained]
        with evaluating(self.engine.module), torch.enable_grad():
            for batch in self._micro_batches(own):
                loss = self._losses(batch).sum() / len(targets)
                parts = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
                for summed, part in zip(total, parts):
                    summed += part
        return [self.collectives.sum(summed) for summed in total]


def pooled(hidden_TH: torch.Tensor) -> torch.Tensor:
    """sum_t t h_t / sum_t t, float32 (H,), of one sample; 0 where it has no token."""
    weight_T = torch.arange(1, len(hidden_TH) + 1, dtype=torch.float32, device=hidden_TH.device)
    return weight_T @ hidden_TH.float() / weight_T.sum().clamp(min=1)


@torch.no_grad()
def _write(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values):
        parameter.copy_(value)
