"""Shares of an epoch for each name of a pool (``data.pool_weights``): a pure function of seed and epoch, as
the plain order is."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Samples of each name, which stand one behind the other in the pool, and the places of an epoch that
    each name fills.

    An epoch has as many places as the pool has samples. Name s fills its places with the next of its own
    endless sequence: all of its samples in a seeded order, then all of them in another, and so on, through
    one epoch into the next.
    """

    sizes: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Every name fills as many places as it has samples: an epoch is every sample once, as without
        weights."""
        return self.sizes == self.places


def mixture_of(names: Sequence[str], sizes: Sequence[int], weights: Sequence[float]) -> Mixture:
    """Places in proportion to ``weights``, rounded by largest remainders.

    Raises ValueError for a weight that gives none, and for a name that has no sample to fill its places with.
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
    """Positions in the pool, int64 (num_samples,): every sample once."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


@lru_cache(maxsize=4)
def mixed_order(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    """Positions in the pool, int64 (sum of sizes,), of an epoch's places in time.

    The shuffle decides which name has a place, and then each name fills its places in the order of its
    sequence: shuffled themselves, samples of its next round could come before the last of this one.
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
