# C candidates
"""What a checkpoint keeps of a look, and of the parts of a hook, comes back as it was."""

import pickle
from types import SimpleNamespace

import numpy as np

from pipeline.hook import SelectionHook
from pipeline.selection.contract import Selection, Signals
from pipeline.step.look import Look
from pipeline.step.retries import RowsPerPass

FIELDS = {
    *("is_warmup", "loss_C", "target_loss", "signals", "zero_moment_share", "candidate_tokens", "bytes_sent"),
    *("selection_hash", "target_lost", "out_of_memory", "warnings", "seconds", "peak_bytes"),
}
"""Names in the checkpoints of runs that are under way: another set would not be read any more."""


def a_look() -> Look:
    selection = Selection(np.array([2, 0]), np.array([0.75, 0.25]), dropped=(1,), residual=0.6, cosine=0.8)
    signals = Signals(np.eye(3), np.arange(3.0), 5.0, loss_C=np.array([1.0, np.nan, 3.0]))
    seen = {"target_loss": 2.5, "zero_moment_share": 0.1, "candidate_tokens": 30, "bytes_sent": 7}
    spent = {"warnings": ("a",), "seconds": {"gram": 1.0}, "peak_bytes": {"gram": 2}}
    return Look(selection, "0" * 16, signals=signals, loss_C=signals.loss_C, out_of_memory=1, **seen, **spent)


def test_a_waiting_look_comes_back_but_for_what_it_has_spent():
    look = a_look()
    state = pickle.loads(pickle.dumps(look.state_dict()))
    assert set(state) == {"waiting", "scores"} and set(state["scores"]) == FIELDS
    found = Look.of_state(state)
    for name in ("selection", "signals"):
        for field, value in vars(getattr(look, name)).items():
            assert np.array_equal(getattr(getattr(found, name), field), value, equal_nan=value is not None), (
                field
            )
    for name in FIELDS - {"signals", "loss_C", "warnings", "seconds", "peak_bytes"}:
        assert getattr(found, name) == getattr(look, name), name
    assert np.array_equal(found.loss_C, look.loss_C, equal_nan=True)
    assert found.warnings == () and found.seconds == found.peak_bytes == {}, "written down before"


def test_the_state_of_a_hook_comes_back():
    def hook(rows_per_pass: int, num_targets_lost: int) -> SelectionHook:
        made = SelectionHook.__new__(SelectionHook)  # without an engine
        made.scorer = SimpleNamespace(rows_per_pass=RowsPerPass(rows_per_pass))
        made.chooser = SimpleNamespace(num_targets_lost=num_targets_lost)
        return made

    other = hook(0, 0)
    other.load_state_dict(pickle.loads(pickle.dumps(hook(3, 2).state_dict())))
    assert other.state_dict() == {"rows_per_pass": 3, "num_targets_lost": 2}
    assert other.scorer.rows_per_pass.limit == 3 and other.chooser.num_targets_lost == 2
