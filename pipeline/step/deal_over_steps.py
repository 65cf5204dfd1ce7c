# K kept by one scoring pass
"""The deal of a look's kept samples over the optimizer steps that it serves (``selection.score_every``)."""

import numpy as np

from pipeline.selection.contract import Selection


def deal_over_steps(selection: Selection, num_steps: int) -> list[Selection]:
    """A selection for each of ``num_steps`` steps, dealt like cards: the i-th kept goes to step i mod
    num_steps.

    So the samples that the filter kept first, which match the target best together, are spread evenly. Inside
    each step the weights keep their ratios and are scaled to sum 1. With fewer samples than steps (K <
    num_steps) the samples go round again: step j trains on the (j mod K)-th kept alone, so that no step is
    empty. With one step the selection is returned as it is.

    ``fallback`` holds for every step; ``dropped`` belongs to the pass, so the first step alone carries it and
    counts stay right; ``residual`` and ``cosine`` describe the whole selection and none of its parts, so they
    are None.
    """
    if num_steps < 1:
        raise ValueError(f"a selection cannot be dealt over {num_steps} steps")
    if num_steps == 1:
        return [selection]
    parts = []
    for step in range(num_steps):
        cards = np.arange(step % len(selection.indices), len(selection.indices), num_steps)
        weights = selection.weights[cards]
        dropped = selection.dropped if step == 0 else ()
        parts.append(
            Selection(selection.indices[cards], weights / weights.sum(), selection.fallback, dropped)
        )
    return parts
