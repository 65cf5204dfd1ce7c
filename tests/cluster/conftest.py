"""These tests start system services, so they run only when asked to: launch/test_cluster.sh installs what
they need and asks."""

import os

import pytest


def demand(missing: list[str]) -> None:
    """Skip where nobody asked; fail where somebody did and it cannot be."""
    if os.environ.get("CLUSTER_TESTS") != "1":
        pytest.skip("run by launch/test_cluster.sh, as root: it starts Slurm, or hosts in network namespaces")
    if os.geteuid() != 0:
        pytest.fail("this needs root: Slurm's daemon and network namespaces")
    if missing:
        pytest.fail(f"missing: {', '.join(missing)} (Debian: slurm-wlm munge openssh-server pdsh iproute2)")
