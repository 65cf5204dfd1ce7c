"""The space in which updates are matched, as a value: the map of a gradient before products are formed.

    phi_i = D^power g_i        phi_T = D^power g_T, or g_T where the target stays as it is

D is Adam's metric (pipeline/scoring/metric.py). docs/method.md says what the products mean in each space.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """One of the spaces that ``selection.geometry`` names."""

    name: str
    power: float
    """Exponent of Adam's metric D."""
    scales_target: bool = True
    """Whether the target's gradient is multiplied like the candidates'."""

    @property
    def needs_moments(self) -> bool:
        """Whether the optimizer's second moments are read; the plain gradient needs none."""
        return self.power > 0

    def __str__(self) -> str:
        return self.name


UPDATE = Geometry("update", 1.0)
CURVATURE = Geometry("curvature", 0.5)
IDENTITY = Geometry("identity", 0.0)
UPDATE_TO_GRADIENT = Geometry("update_to_gradient", 1.0, scales_target=False)

GEOMETRIES = {geometry.name: geometry for geometry in (UPDATE, CURVATURE, IDENTITY, UPDATE_TO_GRADIENT)}
