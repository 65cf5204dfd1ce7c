#!/usr/bin/env bash
# Run the tests, in the same environment as everything else.
#
#   bash launch/test.sh                               # all
#   bash launch/test.sh --quick                       # those that start no ranks and take moments: CONTRIBUTING.md
#   bash launch/test.sh tests/reporting -k html       # arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh requirements-test.txt requirements-trl.txt
source launch/common.sh

if ((num_gpus == 0)); then
  export OMP_NUM_THREADS=1 # tests start ranks of their own
fi

# Two workers: many tests wait for ranks that stall, and a file stays with one worker, for what its tests share.
python -m pytest --numprocesses 2 --dist loadfile "$@"
