"""Stopping on request: batch systems send a signal some time before they kill.

SIGTERM comes from Kubernetes, and from Slurm's preemption and time limit; SIGUSR1 from Slurm after ``sbatch
--signal=USR1@120``. A signal is only noted: the ranks compare notes after each step, and all stop after the
same one, even if one rank alone got the signal.
"""

import os
import signal

import torch

from pipeline.ranks.collectives import Collectives

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
REQUEUE = os.EX_TEMPFAIL
"""Exit code 75, "temporary failure, try again".

The checkpoint is there, and the same command with ``--resume auto`` continues.
"""


class StopRequests:
    """Signals that ask this process to stop, and the ranks' agreement on them."""

    def __init__(self):
        """Listen from this moment, also while the model is being loaded."""
        self._received = 0
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _) -> None:
        self._received = number

    def agreed(self, collectives: Collectives) -> str:
        """Name of a signal that some rank has got, on every rank; '' where none has. Every rank calls it."""
        received = int(collectives.gather(torch.tensor(self._received, device=collectives.device)).max())
        return signal.Signals(received).name if received else ""
