# B samples, T tokens
"""Forwards and backwards of a scoring pass: a micro-batch in, its losses and factors of the scored layers
out.

Logits are formed in chunks of bounded size. Where memory runs out all the same, ranks that can begin again do
so together.
"""

import math
from collections.abc import Callable
from typing import Optional

import torch

from pipeline.config import SelectionConfig
from pipeline.data.collate import to_batch
from pipeline.data.sample import Sample
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.engines import Engine, forward_context
from pipeline.scoring.factors import leaf_module, scored_layers, scoring_pass
from pipeline.scoring.loss import (
    LanguageModel,
    causal_logits,
    evaluating,
    has_plain_logits,
    logit_chunk_bytes,
    per_sample_loss,
    per_sample_loss_in_chunks,
)
from pipeline.scoring.moments import release_gathered
from pipeline.selection.contract import Method
from pipeline.step.retries import OutOfMemory

OnFactors = Callable[[str, torch.Tensor, torch.Tensor, Optional[list[int]]], None]
"""Takes (layer name, activation_BTI, output_grad_BTO, lengths)."""


class Passes:
    """Forwards and backwards through one engine's module, or a reference model beside it.

    Args:
        layers: scored layers by name; none where only losses are wanted.
        leaf: the module at whose output a backward ends; None without ``layers``.
        logits_mib: as ``selection.logits_mib``.
    """

    def __init__(
        self,
        engine: Engine,
        collectives: Collectives,
        layers: dict[str, torch.nn.Linear],
        leaf: Optional[torch.nn.Module],
        pad_token_id: int,
        is_packed: bool,
        logits_mib: int,
    ):
        self.engine, self.collectives = engine, collectives
        self.layers, self.leaf = layers, leaf
        self.pad_token_id, self.is_packed, self.logits_mib = pad_token_id, is_packed, logits_mib
        self._has_plain_logits: dict[torch.nn.Module, bool] = {}

    @classmethod
    def of(
        cls,
        engine: Engine,
        collectives: Collectives,
        method: Method,
        settings: SelectionConfig,
        pad_token_id: int,
        is_packed: bool,
    ) -> "Passes":
        """The passes that a method needs: through all scored layers, or forwards alone.

        Raises ValueError where there is no layer to score.
        """
        layers, leaf = dict[str, torch.nn.Linear](), None
        if method.takes_backward:
            layers = scored_layers(engine.module, settings.last_blocks)
            leaf = leaf_module(engine.module, settings.last_blocks)
            if not layers:
                raise ValueError(
                    "the model has no trainable linear layer to score: raise model.lora_rank or check "
                    "model.lora_targets"
                )
        return cls(engine, collectives, layers, leaf, pad_token_id, is_packed, settings.logits_mib)

    def examine(self, module: torch.nn.Module) -> None:
        """Find out, once, whether the logits of ``module`` can be had in chunks. Every rank calls it before a
        pass through the module."""
        if module not in self._has_plain_logits:
            self._has_plain_logits[module] = has_plain_logits(module, self.engine.device)
            release_gathered(self.engine)

    def backward(
        self,
        samples: list[Sample],
        num_rows: int,
        num_tokens: int,
        weight: float,
        on_factors: OnFactors,
        loss_scale: float = 1.0,
    ) -> torch.Tensor:
        """Losses (B,) of the samples, without the blank rows, from one forward and activation-gradient
        backward.

        Args:
            samples: of this rank.
            num_rows: of the batch; what samples do not fill is blank.
            num_tokens: of the longest sample of all ranks.
            weight: of each loss in the backward.
            on_factors: called with (layer name, activation_BTI, output_grad_BTO, lengths).
            loss_scale: factor of the losses in float16; divided out before anybody sees a factor of a layer.

        Raises:
            OutOfMemory: in the forward, on all ranks together.
            RuntimeError: out of memory where the others cannot be told.
        """
        module = self.engine.module  # not the engine: its own hooks would start a training backward
        input_ids_BT, labels_BT, lengths = self.to_batch(samples, num_rows)

        def take(name: str, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor) -> None:
            on_factors(name, activation_BTI, output_grad_BTO, lengths)

        with torch.enable_grad(), scoring_pass(module, self.layers, take, self.leaf, loss_scale):
            loss_B = self.losses(module, input_ids_BT, labels_BT, lengths, num_rows * num_tokens, loss_scale)
            try:
                (loss_B.sum() * (weight * loss_scale)).backward()
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                # Gradients are exchanged in here, and the others wait for this rank, so the ranks cannot
                # begin again together.
                raise _out_of_memory_for_good("backward", num_rows, error) from error
        release_gathered(self.engine)
        return loss_B.detach()[: len(samples)]

    def forward(self, module: torch.nn.Module, samples: list[Sample], num_tokens: int) -> torch.Tensor:
        """Losses (B,) of the samples, without any backward."""
        with evaluating(module):
            return self.losses(module, *self.to_batch(samples, len(samples)), len(samples) * num_tokens)

    def to_batch(
        self, samples: list[Sample], num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor, Optional[list[int]]]:
        """``(input_ids_BT, labels_BT, lengths)``, padded or packed."""
        return to_batch(samples, self.pad_token_id, num_rows, self.engine.device, self.is_packed)

    def losses(
        self,
        module: LanguageModel,
        input_ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        lengths: Optional[list[int]],
        most_tokens: int,
        loss_scale: float = 1.0,
    ) -> torch.Tensor:
        """Losses (B,) of a batch; ``most_tokens`` is the same on all ranks, and no rank's batch has more."""
        num_chunks = self._logit_chunks(module, most_tokens)
        losses_B: Optional[torch.Tensor] = None
        lacks_memory: Optional[RuntimeError] = None
        # Under ZeRO-3 the others would wait in the middle of this forward for a parameter, so the ranks
        # cannot begin again together.
        can_retry = not self.engine.zero_optimization_partition_weights()
        try:
            with forward_context(self.engine):
                if num_chunks == 0:
                    losses_B = per_sample_loss(
                        causal_logits(module, input_ids_BT, lengths), labels_BT, lengths
                    )
                else:
                    losses_B = per_sample_loss_in_chunks(
                        module, input_ids_BT, labels_BT, num_chunks, loss_scale, lengths
                    )
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if not can_retry:
                raise _out_of_memory_for_good("forward", len(lengths or input_ids_BT), error) from error
            lacks_memory = error
        if can_retry and self.collectives.any(lacks_memory is not None):
            raise OutOfMemory() from lacks_memory
        assert losses_B is not None
        return losses_B

    def _logit_chunks(self, module: LanguageModel, most_tokens: int) -> int:
        """Number of chunks for the logits of up to ``most_tokens`` positions, the same on all ranks; 0 forms
        all at once."""
        scored = set(self.layers.values())
        is_scored = any(child in scored for child in module.get_output_embeddings().modules())
        if self.logits_mib == 0 or is_scored:  # a scored layer must see all its tokens at once
            return 0
        size, bound = most_tokens * module.config.get_text_config().vocab_size * 4, self.logits_mib * 2**20
        if not self._has_plain_logits[module]:
            if size > bound:
                raise ValueError(
                    f"{type(module).__name__} changes its logits after the output layer, so they cannot be "
                    f"had in chunks, and all of them take {size / 2**20:,.0f} MiB: set selection.logits_mib "
                    "to 0 to allow that, or selection.scoring_micro_batch_size to less"
                )
            return 0
        return math.ceil(size / logit_chunk_bytes(self.logits_mib, self.engine.device.type))


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out; on CPU torch says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory_for_good(what: str, num_rows: int, error: RuntimeError) -> RuntimeError:
    return RuntimeError(
        f"the {what} of a scoring pass of {num_rows} samples a rank ran out of memory ({error}): lower "
        "selection.scoring_micro_batch_size (0 is all of a rank's), selection.logits_mib, "
        "selection.exchange_mib or data.max_tokens"
    )
