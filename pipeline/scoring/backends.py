"""The ways to form the Gram matrix, by the names that ``selection.backend`` knows."""

from collections.abc import Callable

from pipeline.ranks.collectives import Collectives
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.factored import FactoredGram
from pipeline.scoring.gram import GramBackend, GramProblem
from pipeline.scoring.projected import ProjectedGram
from pipeline.scoring.stopwatch import Stopwatch

BACKENDS: dict[str, Callable[[GramProblem, Collectives, Stopwatch], GramBackend]] = {
    "exact": ExactGram,
    "projected": ProjectedGram,
    "factored": FactoredGram,
}
