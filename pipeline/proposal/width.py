# N samples of the pool, B bins
"""The share of a pool that is worth training on, from how its samples resemble the target examples."""

from typing import Optional

import numpy as np

BINS, WITHIN = 64, (0.001, 0.999)
MOST_EPOCHS = 4.0
"""Times that a sample may be trained on over the run; what is repeated more often teaches less and less
(Muennighoff et al., arXiv 2305.16264)."""


def pool_share(similarity_N: np.ndarray, num_trained: int, places_N: Optional[np.ndarray] = None) -> float:
    """Share of an epoch's places whose samples stand apart as similar to the target examples.

    Otsu's threshold (IEEE Trans. SMC 9, 1979) cuts a histogram of the similarities where the two parts differ
    most: it maximises w_0 w_1 (m_0 - m_1)^2, of their shares w and means m. Where the pool's similar samples
    are few, they are the smaller part; where nothing stands apart, the cut lies near the middle.

    Args:
        similarity_N: of every sample.
        num_trained: samples that the whole run trains on, which must not come from too few.
        places_N: how often each comes in an epoch on average; by default once.

    Returns:
        The share above the threshold, or what keeps samples from coming more than MOST_EPOCHS times each.
    """
    # A few odd similarities must not stretch the bins.
    within_N = np.clip(similarity_N, *np.quantile(similarity_N, WITHIN))
    counts_B, edges = np.histogram(within_N, BINS, weights=places_N)
    center_B = (edges[1:] + edges[:-1]) / 2
    below_B, below_sum_B = np.cumsum(counts_B), np.cumsum(counts_B * center_B)
    total, whole = below_B[-1], below_sum_B[-1]
    above_B = total - below_B
    # The last cut leaves nothing above; so does none where all samples are alike.
    inner = (below_B > 0) & (above_B > 0)
    if not inner.any():
        return 1.0
    mean_below, mean_above = (
        below_sum_B[inner] / below_B[inner],
        (whole - below_sum_B[inner]) / above_B[inner],
    )
    between = below_B[inner] * above_B[inner] * np.square(mean_below - mean_above)
    share = float(above_B[inner][np.argmax(between)] / total)
    return min(1.0, max(share, num_trained / (MOST_EPOCHS * total)))
