"""An example as its user starts it, under a launcher: deepspeed --module tests.integrations.launched SCRIPT
[ARGUMENT ...]

On CPU DeepSpeed would compile an all-reduce for inference, which takes minutes on a slow machine and leaves
66 MiB a rank in /dev/shm. And a process leaves without Python's end, where gloo aborts now and then
(tests/processes.py).
"""

import os
import runpy
import sys

import deepspeed
import torch.distributed as dist

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
sys.argv = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
runpy.run_path(sys.argv[0], run_name="__main__")
if dist.is_initialized():
    dist.barrier()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
