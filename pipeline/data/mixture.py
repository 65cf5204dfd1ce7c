"""The order of an epoch, in which each name of a pool may have a share of its own (``data.pool_weights``).

It is a pure function of seed and epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Numbers of samples that the names of a pool have, and of places that they fill in an epoch.

    The pool holds the samples of one name behind those of the other, and an epoch has as many places as the
    pool has samples. A name fills its places from an endless sequence of its own: all of its samples in a
    seeded order, then all of them in another, and so on, from one epoch into the next.
    """

    sizes: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether each name fills as many places as it has samples, so that an epoch has each sample once."""
        return self.sizes == self.places


def mixture_of(names: Sequence[str], sizes: Sequence[int], weights: Sequence[float]) -> Mixture:
    """The mixture with places in proportion to ``weights``, rounded by largest remainders.

    Raises ValueError for a weight too small for one place, and for a name without any sample.
    """
    for name, size in zip(names, sizes):
        if size == 0:
            raise ValueError(
                f"data.pool_weights gives {name} a share, and none of its samples is left after tokenising: "
                "raise data.max_tokens, look at the data, or leave the name out of data.pool"
            )
    num_places, total = sum(sizes), sum(map(Fraction, weights))
    shares = [num_places * Fraction(weight) / total for weight in weights]
    places = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda s: places[s] - shares[s])
    for s in by_remainder[: num_places - sum(places)]:
        places[s] += 1
    for name, weight, count in zip(names, weights, places):
        if count == 0:
            percent = float(100 * Fraction(weight) / total)
            raise ValueError(
                f"data.pool_weights gives {name}, {weight:g}, a share of {percent:.3g} %, less than one of "
                f"the {num_places:,} places of an epoch: raise it, or leave the name out of data.pool"
            )
    return Mixture(tuple(sizes), tuple(places))


@lru_cache(maxsize=4)
def plain_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Positions in the pool, int64 (num_samples,): every sample once, in a seeded order."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


@lru_cache(maxsize=4)
def mixed_order(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    """Positions in the pool, int64 (sum of sizes,): those of each name as often as it has places.

    The shuffle decides which name gets which place. Each name then fills its places in the order of its
    sequence: if the samples were shuffled instead, some of its next round could come before the last of this.
    """
    order = plain_order(sum(mixture.sizes), seed, epoch)
    name_at = np.repeat(np.arange(len(mixture.places)), mixture.places)[order]
    found, first = np.empty_like(order), 0
    for name, (size, count) in enumerate(zip(mixture.sizes, mixture.places)):
        start = epoch * count
        rounds = range(start // size, (start + count - 1) // size + 1)
        sequence = np.concatenate(
            [np.random.default_rng((seed, number, name + 1)).permutation(size) for number in rounds]
        )
        skipped = start - rounds[0] * size
        found[name_at == name] = first + sequence[skipped : skipped + count]
        first += size
    return found
