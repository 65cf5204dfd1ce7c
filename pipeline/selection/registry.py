"""All selection methods by name. A new method is a file of its own and an entry here."""

from pipeline.selection import (
    filter_then_weight,
    full,
    grad_dot,
    grad_match,
    grad_norm,
    greats,
    less,
    max_loss,
    nonnegative_least_squares,
    opus,
    random,
    rho_loss,
    top_k,
)
from pipeline.selection.contract import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        filter_then_weight,
        top_k,
        random,
        full,
        max_loss,
        rho_loss,
        grad_norm,
        grad_dot,
        grad_match,
        less,
        greats,
        opus,
        nonnegative_least_squares,
    )
}


def get(name: str) -> Method:
    """The method called ``name``. Raises ValueError, with the known names, where there is none."""
    if name not in METHODS:
        raise ValueError(f"no selection method is called {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
