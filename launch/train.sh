#!/usr/bin/env bash
# Train on this machine, or on several.
#
#   bash launch/train.sh --config launch/recipes/lora.yaml --data.pool '[pool.jsonl]'     # all GPUs here, or 2 CPU ranks
#   CUDA_VISIBLE_DEVICES=0,1 bash launch/train.sh --config launch/recipes/lora.yaml       # some of them
#   HOSTFILE=hosts bash launch/train.sh --config launch/recipes/full_finetune.yaml        # several nodes
#   LAUNCHER=torchrun bash launch/train.sh --config launch/recipes/lora.yaml              # without the deepspeed launcher
#   MODULE=pipeline.score bash launch/train.sh --config R.yaml --output scores            # another program of ours on the same ranks
#   LAUNCHER=torchrun NNODES=2 NODE_RANK=0 MASTER_ADDR=first bash launch/train.sh ...     # and NODE_RANK=1 on the second node
#
# Every argument goes to MODULE, pipeline.train by default (--help lists the settings). HOSTFILE has a line 'name slots=8' for each node;
# start on the first of them. The nodes need password-free ssh and pdsh, and this folder, .venv in it, at the same path.
# MASTER_PORT (29500 with several nodes, else a free one) is where the ranks meet. Under Slurm see launch/slurm/train.sbatch,
# on Kubernetes launch/k8s/train.yaml. Before training comes a quick check of the node (python -m pipeline.doctor); DOCTOR=0 leaves it out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
source launch/common.sh
module=${MODULE:-pipeline.train}
if [[ "${DOCTOR:-1}" != 0 && $module == pipeline.train ]]; then # the check knows the settings of a run, and no other arguments
  python -m pipeline.doctor --quick --world_size "$((num_gpus > 0 ? num_gpus : NUM_RANKS))" "$@"
fi
EXEC="exec" launch_ranks "$module" "$@"
