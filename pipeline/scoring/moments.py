"""This rank's fragments of the Adam state, exp_avg and exp_avg_sq, read in place where DeepSpeed keeps them.

No collective is needed. Each wrapper owns flat fp32 tensors that key the state of a torch-style optimizer,
and a parameter is a slice of one of them:

    flat group     | p0 | p1        | p2   | p3      |pad|
    ZeRO-1/2       |<--- rank 0 --->|<--- rank 1 --->|     a fragment: the part of p in this rank's partition
    ZeRO-3         every parameter is split over all ranks, padded at its tail
    stage 0        every rank holds all of it; each answers for an equal slice, so that nothing counts twice
    NVMe offload   between steps the state lies in a file, which is mapped, and read page by page when used

The slices come from the storage itself, because DeepSpeed's own mapping (``_hp_mapping``, ``safe_get_*``) is
unlinked for a second parameter group, after a resume and before the first step, and points elsewhere under
``round_robin_gradients``. No other file reads these insides of DeepSpeed, which are those of version 0.19.8;
tests/test_imports.py looks for their names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import torch
import torch.distributed as dist

from pipeline.ranks.collectives import place_in

DISK_BLOCK = 4096  # bytes; of some disks it is 512


@dataclass(frozen=True)
class Fragment:
    """Slice [start, start + numel) of a flattened parameter, and its Adam state where this rank keeps it."""

    name: str
    start: int
    numel: int
    exp_avg: Optional[torch.Tensor]
    """(numel,) view of live optimizer memory on the optimizer's device, under NVMe offload of its file.

    None before the first update.
    """
    exp_avg_sq: Optional[torch.Tensor]
    step: int
    """Updates done, as the optimizer counts them; 0 before the first."""
    beta1: float
    beta2: float
    eps: float
    bias_correction: bool


def fragments(engine, with_moments: bool = True) -> list[Fragment]:
    """This rank's fragments of all trained parameters; together the ranks cover every element exactly once.

    ``with_moments=False`` gives the addresses alone, for any optimizer. Else ValueError is raised for an
    optimizer without Adam moments.
    """
    swapped = _swapped_state(engine.optimizer)
    return [_fragment(with_moments, swapped, *address) for address in _addresses(engine)]


def whole_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Shape of the whole parameter, which under ZeRO-3 has shape (0,) while it is released."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole_numel(parameter: torch.Tensor) -> int:
    """Elements of the whole parameter."""
    return getattr(parameter, "ds_numel", parameter.numel())


def own_part(parameter: torch.Tensor, rank: int) -> torch.Tensor:
    """This rank's part of a parameter, flat: under ZeRO-3 its share without padding, else all of it."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach().flatten()
    part = parameter.ds_tensor.detach().flatten()
    return part[: max(0, whole_numel(parameter) - rank * part.numel())]


def release_gathered(engine) -> None:
    """Free the parameters that a scoring pass has left gathered under ZeRO-3.

    Their release hook waited for a parameter gradient or an input gradient that never came.
    """
    if hasattr(engine.optimizer, "parameter_offload"):
        engine.optimizer.parameter_offload.release_backward_leftovers()


def loss_scale(engine) -> float:
    """The engine's present factor of a float16 loss."""
    return float(engine.optimizer.cur_scale)


def misplaced_swapped_gradients(engine) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size), in bytes, of this rank's part of each gradient that NVMe offload would lose.

    DeepSpeed 0.19.8 reads a gradient from NVMe straight to its place in a flat buffer. Where that
    place does not lie on a block of the disk the read fails, nobody looks, and the update is wrong: so
    it was with layers 1000 wide on 2 ranks.
    """
    zero = engine.optimizer
    swapper = getattr(zero, "optimizer_swapper", None)
    if swapper is None:
        return
    size, names = swapper.swap_element_size, {id(p): name for name, p in engine.module.named_parameters()}
    for parameter in (p for group in zero.fp16_groups for p in group):
        _, offset, numel = zero.grad_position[zero.get_param_id(parameter)]
        if numel * size >= swapper.min_aio_bytes and offset * size % DISK_BLOCK:
            yield names[id(parameter)], offset * size, numel * size


def _fragment(
    with_moments: bool,
    swapped: dict,
    name: str,
    start: int,
    numel: int,
    key,
    offset: int,
    group: dict,
    optimizer,
) -> Fragment:
    if not with_moments:
        return Fragment(name, start, numel, None, None, 0, 0.0, 0.0, 0.0, False)
    if "betas" not in group or "eps" not in group or group.get("amsgrad"):
        raise ValueError(
            f"{type(optimizer).__name__} keeps no plain Adam moments: use AdamW, FusedAdam or "
            "DeepSpeedCPUAdam, or selection.geometry = identity with selection.momentum = cancel, which need "
            "none"
        )
    state = optimizer.state.get(key, {})
    exp_avg = exp_avg_sq = None
    if "exp_avg_sq" in state:
        exp_avg = _resident(state["exp_avg"], swapped).reshape(-1).narrow(0, offset, numel)
        exp_avg_sq = _resident(state["exp_avg_sq"], swapped).reshape(-1).narrow(0, offset, numel)
    beta1, beta2 = group["betas"]
    bias_correction = bool(group.get("bias_correction", True))
    return Fragment(
        name,
        start,
        numel,
        exp_avg,
        exp_avg_sq,
        _step(state, group, optimizer),
        beta1,
        beta2,
        group["eps"],
        bias_correction,
    )


def _swapped_state(zero) -> dict[int, tuple[str, int]]:
    """(file, numel) of each tensor of the optimizer state on NVMe, by the id of the emptied tensor."""
    swapper = getattr(zero, "optimizer_swapper", None)
    infos = swapper.swap_params_info.values() if swapper else ()
    return {
        id(tensor.compute_tensor): (tensor.swap_path, info.numel())
        for info in infos
        for tensor in info.tensors
    }


def _resident(tensor: torch.Tensor, swapped: dict[int, tuple[str, int]]) -> torch.Tensor:
    """The tensor itself, or a private view of its file: DeepSpeed gives its memory back between steps."""
    if id(tensor) not in swapped or tensor.numel():
        return tensor
    path, numel = swapped[id(tensor)]
    return torch.from_file(path, shared=False, size=numel, dtype=torch.float32)


def _step(state: dict, group: dict, optimizer) -> int:
    """Updates done: the largest count, as FusedAdam over unflattened parameters advances only the last."""
    if "step" not in state:
        return 0
    counts = [int(state["step"])]
    # Under ZeRO-3 the group is empty between steps, and the count of the key itself is right.
    if type(optimizer).__name__ == "FusedAdam":
        counts += [int(optimizer.state[p].get("step", 0)) for p in group["params"] if p in optimizer.state]
    return max(counts)


def _addresses(engine) -> Iterator[tuple]:
    """(name, start, numel, state key, offset in it, group, torch-style optimizer) of trained parameters."""
    zero = engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    wrapper = type(zero).__name__
    if wrapper == "DeepSpeedZeroOptimizer_Stage3":
        yield from _stage3(zero, names)
    elif wrapper == "DeepSpeedZeroOptimizer":
        yield from _flat_partitions(
            zero, names, zero.bit16_groups, zero.bit16_groups_flat, zero.single_partition_of_fp32_groups
        )
    elif wrapper == "BF16_Optimizer":
        yield from _flat_partitions(
            zero, names, zero.bf16_groups, zero.bf16_groups_flat, zero.fp32_groups_flat_partition
        )
    else:
        rank, world_size = place_in(engine.seq_data_parallel_group)
        for name, numel, key, offset, group, optimizer in _replicated(zero, names, wrapper):
            start, end = numel * rank // world_size, numel * (rank + 1) // world_size
            yield name, start, end - start, key, offset + start, group, optimizer


def _stage3(zero, names):
    for sub_group, parameters in enumerate(zero.fp16_groups):
        key = zero.fp32_partitioned_groups_flat[sub_group]
        group = zero.optimizer.param_groups[zero.sub_group_to_group_id[sub_group]]
        for parameter in parameters:
            _, offset, partition_numel = zero.grad_position[zero.get_param_id(parameter)]
            start = min(zero._get_param_partition_rank(parameter) * partition_numel, parameter.ds_numel)
            # The rest of the last partition is padding.
            numel = min(partition_numel, parameter.ds_numel - start)
            yield names[id(parameter)], start, numel, key, offset, group, zero.optimizer


def _flat_partitions(zero, names, groups, flat_groups, keys):
    for index, parameters in enumerate(groups):
        key, flat = keys[index], flat_groups[index]
        low = dist.get_rank(group=zero.real_dp_process_group[index]) * key.numel()
        high = low + key.numel()
        for parameter in parameters:
            position = (parameter.data_ptr() - flat.data_ptr()) // parameter.element_size()
            begin, end = max(position, low), min(position + parameter.numel(), high)
            numel = max(0, end - begin)
            start, offset = (begin - position, begin - low) if numel else (0, 0)
            yield (
                names[id(parameter)],
                start,
                numel,
                key,
                offset,
                zero.optimizer.param_groups[index],
                zero.optimizer,
            )


def _replicated(zero, names, wrapper):
    if wrapper == "FP16_UnfusedOptimizer":
        for index, parameters in enumerate(zero.fp16_groups):
            for parameter, key in zip(parameters, zero.fp32_groups[index]):
                yield (
                    names[id(parameter)],
                    parameter.numel(),
                    key,
                    0,
                    zero.optimizer.param_groups[index],
                    zero.optimizer,
                )
    elif wrapper == "FP16_Optimizer":
        for index, parameters in enumerate(zero.fp16_groups):
            offset, key = 0, zero.fp32_groups_flat[index]
            for parameter in parameters:
                yield (
                    names[id(parameter)],
                    parameter.numel(),
                    key,
                    offset,
                    zero.optimizer.param_groups[index],
                    zero.optimizer,
                )
                offset += parameter.numel()
    elif isinstance(zero, torch.optim.Optimizer):  # stage 0 in fp32: the engine uses the optimizer as it is
        for group in zero.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    yield names[id(parameter)], parameter.numel(), parameter, 0, group, zero
    else:
        raise ValueError(
            f"no map of the Adam state in DeepSpeed's {wrapper}: use ZeRO stage 0, 1, 2 or 3 with AdamW"
        )
