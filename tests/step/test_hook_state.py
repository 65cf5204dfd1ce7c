"""What a checkpoint keeps of the parts of a hook comes back as it was."""

import pickle
from types import SimpleNamespace

from pipeline.hook import SelectionHook
from pipeline.step.retries import RowsPerPass


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
