#!/usr/bin/env bash
# Test the launchers on a cluster made on this machine: a Slurm of one node, and two hosts in network namespaces joined by a link that is
# cut. For a Debian machine of your own or a container that may be thrown away: needs root, installs packages, starts services of its own
# on private ports (a Slurm or sshd of the machine is left alone), and takes minutes.
#
#   sudo bash launch/test_cluster.sh
#   sudo bash launch/test_cluster.sh -k slurm       # arguments go to pytest
#
# A line for each check; exit code 0 only if all of them ran and passed: where something is missing, they fail instead of being skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=()
for pair in sbatch:slurm-wlm munged:munge sshd:openssh-server ssh:openssh-client pdsh:pdsh ip:iproute2; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
if ((${#packages[@]})); then
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "test_cluster.sh: missing ${packages[*]}; install them, or run this as root on Debian" >&2
    exit 1
  fi
  apt-get update --quiet --quiet
  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends "${packages[@]}"
fi

bash launch/setup.sh requirements-test.txt requirements-trl.txt
# shellcheck source=launch/common.sh
source launch/common.sh
export CLUSTER_TESTS=1 OMP_NUM_THREADS=1 PATH=$PATH:/usr/sbin:/sbin
python -m pytest -m cluster -v tests/cluster "$@"
