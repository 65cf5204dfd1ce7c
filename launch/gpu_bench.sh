#!/usr/bin/env bash
# What needs a CUDA card, in one go: the tests marked `gpu`, then cost, fidelity and peers in bf16 with the flash kernel that
# selection takes there. Results go to benchmarks/results, the card's name inside. Not run yet for want of a card: its time is a guess
# of 10 minutes.
#
#   bash launch/gpu_bench.sh                     # SmolLM2-135M
#   MODEL=/path/to/model bash launch/gpu_bench.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh requirements-test.txt requirements-trl.txt
source launch/common.sh
if ((num_gpus == 0)); then
  echo "gpu_bench.sh: torch sees no CUDA card here" >&2
  exit 1
fi
model=${MODEL:-.cache/smollm2-135m}
if [[ -z "${MODEL:-}" ]]; then
  python -m pipeline.training.smollm2 "$model"
fi
python -m pytest -m gpu
pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt # the peers
cost=(python -m benchmarks.step_cost --model "$model" --candidates 32 --targets 8 --tokens 512 --rounds 7)
for backend in exact projected factored; do
  "${cost[@]}" --backend "$backend"
done
"${cost[@]}" --cases full --backend factored --last-blocks 8 # a quarter of SmolLM2-135M's 30
python -m benchmarks.fidelity --model "$model" --looks 8 --steps 16
python -m benchmarks.peers --model "$model" --candidates 16 --tokens 512
