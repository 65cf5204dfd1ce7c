"""A Gram problem for tests of one backend, without an engine."""

from pipeline.geometry import UPDATE
from pipeline.scoring.gram import GramProblem


def problem(owners, own, num_rows: int, num_tokens: int, element_size: int = 4, **more) -> GramProblem:
    """Of this rank's fragments ``own``, under Adam's metric; ``more`` are other fields."""
    return GramProblem(
        owners=owners,
        own={fragment.name: fragment for fragment in own},
        num_rows=num_rows,
        num_tokens=num_tokens,
        element_size=element_size,
        **{"geometry": UPDATE, "compensates_momentum": False, "exchange_bytes": 1 << 26, **more},
    )
