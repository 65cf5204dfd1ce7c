"""Ranks of one run on this machine: environment, modules to import before they are forked, meeting place."""

import socket

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
PRELOADED = [
    "pipeline.train",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.ops.op_builder.all_ops",
    "transformers.models.llama.modeling_llama",
]


def address(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Environment that a launcher gives to one of ``ranks`` processes."""
    number = str(rank)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": str(ranks), **place}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
