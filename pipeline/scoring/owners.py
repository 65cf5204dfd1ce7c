"""The owners of the scored parameters: the rank that answers for each part of Adam's moments."""

from itertools import pairwise

from pipeline.ranks.collectives import Collectives
from pipeline.scoring.moments import Fragment


class OwnerMap:
    """Slices of the scored parameters by owning rank, gathered once, when the hook is attached."""

    def __init__(self, shapes: dict[str, tuple[int, int]], own: list[Fragment], collectives: Collectives):
        mine = {f.name: (f.start, f.start + f.numel) for f in own if f.name in shapes}
        self.shapes = shapes
        # By name, (start, end) of rank 0, of rank 1, ...
        self.slices: dict[str, list[tuple[int, int]]] = {name: [] for name in shapes}
        for theirs in collectives.gather_objects(mine):
            for name in shapes:
                self.slices[name].append(theirs.get(name, (0, 0)))

    def gaps(self) -> dict[str, int]:
        """Parameters whose elements are not each owned exactly once, with the number of elements that are."""
        found = {}
        for name, (out_features, in_features) in self.shapes.items():
            slices = sorted((start, end) for start, end in self.slices[name] if end > start)
            joined = all(before[1] == after[0] for before, after in pairwise(slices))
            covered = sum(end - start for start, end in slices)
            if not (joined and covered == out_features * in_features):
                found[name] = covered
        return found
