# shellcheck shell=bash
# Shared by the launch scripts: the environment, the devices of this machine, and one way to start ranks.
# Sourced from the project's folder, after launch/setup.sh.

# shellcheck disable=SC1091
source "${VENV:-.venv}/bin/activate"

export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false} # one process a rank is parallel enough, and forks warn

# Sets num_gpus, and on a machine without GPUs what DeepSpeed needs to run on its cores.
find_devices() {
  num_gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
  if ((num_gpus > 0)); then
    return
  fi
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    echo "launch: this machine has a GPU that torch $(python -c 'import torch; print(torch.__version__)') cannot use; going on with the CPU" >&2
  fi
  NUM_RANKS=${NUM_RANKS:-2}
  export DS_ACCELERATOR=cpu
  if [[ -z "${OMP_NUM_THREADS:-}" ]]; then # without it every rank takes all cores
    local threads=$(($(getconf _NPROCESSORS_ONLN) / NUM_RANKS))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
  fi
}

free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# launch_ranks MODULE [ARGUMENT ...]: run a module on all ranks, under the deepspeed launcher or, with LAUNCHER=torchrun, under torchrun.
# With EXEC=exec the launcher takes this process's place, and with it the signals that it gets: bash would not hand them on.
launch_ranks() {
  local launcher=(--log_level error) port
  if [[ "${LAUNCHER:-deepspeed}" == torchrun ]]; then
    launcher=(--nproc_per_node "${GPUS:-$((num_gpus > 0 ? num_gpus : NUM_RANKS))}")
    if ((${NNODES:-1} > 1)); then
      launcher+=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?which of the nodes this is, from 0}"
        --master_addr "${MASTER_ADDR:?the first node}" --master_port "${MASTER_PORT:-29500}")
    else
      launcher+=(--master_addr 127.0.0.1 --master_port "${MASTER_PORT:-$(free_port)}")
    fi
    ${EXEC:-} python -m torch.distributed.run "${launcher[@]}" --module "$@"
    return
  fi
  if [[ -n "${HOSTFILE:-}" ]]; then
    # The nodes must agree on the port before any of them runs: it cannot be looked for here.
    port=${MASTER_PORT:-29500}
    launcher+=(--hostfile "$HOSTFILE")
  else
    port=${MASTER_PORT:-$(free_port)} # the default, 29500, collides with other jobs on the machine
    if ((num_gpus == 0)); then
      launcher+=(--num_gpus "$NUM_RANKS")
    fi
  fi
  ${EXEC:-} deepspeed "${launcher[@]}" --master_port "$port" --module "$@"
}

find_devices
