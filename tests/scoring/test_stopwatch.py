"""Seconds and memory go to the stage that took them."""

import time

import pytest
import torch

from pipeline.scoring.stopwatch import Stopwatch

MIB = 2**20


def test_a_stage_has_its_own_seconds_without_those_of_the_stages_inside_it():
    watch = Stopwatch(torch.device("cpu"))
    with watch("outer"):
        time.sleep(0.02)
        with watch("inner"):
            time.sleep(0.2)
        time.sleep(0.02)
    seconds = watch.read()
    assert seconds.keys() == {"outer", "inner"} == watch.peak_bytes().keys()
    assert seconds["inner"] >= 0.2 and seconds["outer"] >= 0.04


def test_on_cpu_memory_is_that_of_the_process_at_the_end_of_a_stage():
    watch = Stopwatch(torch.device("cpu"))
    with watch("small"):
        pass
    with watch("large"):
        held = torch.ones(64 * MIB)
    assert held.numel() and watch.peak_bytes()["large"] - watch.peak_bytes()["small"] > 200 * MIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_on_cuda_memory_is_the_peak_within_each_stage():
    device = torch.device("cuda")
    watch, held = Stopwatch(device), torch.ones(8 * MIB, device=device)  # 32 MiB
    before = torch.cuda.memory_allocated(device)
    with watch("outer"):
        with watch("large"):
            torch.ones(64 * MIB, device=device)  # 256 MiB, given back at once
        with watch("small"):
            torch.ones(MIB, device=device)
    peaks = watch.peak_bytes()
    assert held.is_cuda and peaks == {"outer": before, "large": before + 256 * MIB, "small": before + 4 * MIB}
