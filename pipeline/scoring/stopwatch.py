"""Seconds and memory by stage. Stages may nest: each is charged without the stages inside it."""

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import Union

import psutil
import torch


class Stopwatch:
    """Marks at the borders of stages: the clock on CPU, events on CUDA, so that nothing waits for the device.

    On CUDA every border starts the peak of ``torch.cuda.max_memory_allocated`` anew: who measures a peak over
    several stages takes the largest of ``peak_bytes``.
    """

    def __init__(self, device: torch.device):
        self._device, self._is_cuda = device, device.type == "cuda"
        self._process = psutil.Process()
        self._open: list[str] = []
        self._marks: list[tuple] = []  # (stage that ends here, moment)
        self._peaks: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, stage: str):
        self._mark()
        self._open.append(stage)
        try:
            yield
        finally:
            self._mark()
            self._open.pop()

    def read(self) -> dict[str, float]:
        """Seconds of every stage so far; waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (_, begin), (stage, end) in zip(self._marks, self._marks[1:]):
            if stage is not None:
                seconds[stage] += begin.elapsed_time(end) / 1000 if self._is_cuda else end - begin
        return dict(seconds)

    def peak_bytes(self) -> dict[str, int]:
        """Memory of every stage so far, at its peak.

        On CUDA it is the most that tensors took on the card; on CPU, where nothing tells a peak of resident
        memory in between, the largest size of the whole process at an end of the stage.
        """
        return dict(self._peaks)

    def _mark(self):
        stage = self._open[-1] if self._open else None
        moment: Union[torch.cuda.Event, float]
        if self._is_cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
            in_use = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            moment = time.perf_counter()
            in_use = self._process.memory_info().rss
        self._marks.append((stage, moment))
        if stage is not None:
            self._peaks[stage] = max(self._peaks[stage], in_use)
