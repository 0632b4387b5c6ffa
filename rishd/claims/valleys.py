"""Random river valleys with global curvature bounds, for testing descent certificates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rishd.claims.trial import Box, Parameters, Range


@dataclass(frozen=True)
class BoundedValley:
    r"""A nonconvex river valley per member with coordinates (s, u): s crosses the valley and u runs along the river.

    .. math:: f(s, u) = \lambda\delta^2\,\psi\big((s - c(u))/\delta\big) + \tfrac k2 u^2 + e(1 - \cos\nu u), \qquad
        \psi(r) = \sqrt{1 + r^2} - 1, \quad c(u) = a\sin\omega u

    With :math:`n = (1, -c')` the wall's Hessian is :math:`\lambda(\psi''nn^\top - \delta\psi' c''e_ue_u^\top)`, and
    :math:`0 \le \psi'' \le 1`, :math:`|\psi'| \le 1`, :math:`|c'| \le a\omega`, :math:`|c''| \le a\omega^2` bound it.

    Args:
        wall: λ, shape ``(n,)``.
        width: δ, shape ``(n,)``.
        floor: k ≥ 0, shape ``(n,)``.
        ripple: e ≥ 0, shape ``(n,)``.
        ripple_frequency: ν, shape ``(n,)``.
        amplitude: a ≥ 0, shape ``(n,)``.
        frequency: ω ≥ 0, shape ``(n,)``.
    """

    wall: np.ndarray
    width: np.ndarray
    floor: np.ndarray
    ripple: np.ndarray
    ripple_frequency: np.ndarray
    amplitude: np.ndarray
    frequency: np.ndarray

    def value(self, w: np.ndarray) -> np.ndarray:
        """f(w) ≥ 0, shape ``(…, n)``."""
        r, u = self._across(w), w[..., 1]
        wall = self.wall * self.width**2 * r**2 / (1.0 + np.sqrt(1.0 + r**2))
        return np.asarray(wall + 0.5 * self.floor * u**2 + self.ripple * (1.0 - np.cos(self.ripple_frequency * u)))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """∇f(w), shape ``(…, n, 2)``."""
        r, u = self._across(w), w[..., 1]
        pull = self.wall * self.width * r / np.sqrt(1.0 + r**2)
        slope = self.amplitude * self.frequency * np.cos(self.frequency * u)
        along = self.floor * u + self.ripple * self.ripple_frequency * np.sin(self.ripple_frequency * u)
        return np.stack([pull, along - pull * slope], axis=-1)

    @property
    def curvature_blocks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bounds on H_ss, H_uu and |H_su| over all points, each of shape ``(n,)``."""
        slope = self.amplitude * self.frequency
        bend = self.wall * self.width * self.amplitude * self.frequency**2
        along = self.floor + self.ripple * self.ripple_frequency**2 + self.wall * slope**2 + bend
        return self.wall, along, self.wall * slope

    @property
    def negative_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds ℓ_s = 0 and ℓ_u on the negative curvature over all points: ∇²f ≽ −ℓ_u e_ue_uᵀ."""
        bend = self.wall * self.width * self.amplitude * self.frequency**2
        return np.zeros_like(self.wall), self.ripple * self.ripple_frequency**2 + bend

    def _across(self, w: np.ndarray) -> np.ndarray:
        return np.asarray((w[..., 0] - self.amplitude * np.sin(self.frequency * w[..., 1])) / self.width)


VALLEY_BOX: Box = {
    "wall": Range(0.5, 20.0, log=True),
    "width": Range(0.05, 5.0, log=True),
    "floor": Range(1e-3, 0.5, log=True),
    "ripple": Range(0.0, 0.3),
    "ripple_frequency": Range(0.1, 3.0),
    "amplitude": Range(0.0, 1.0),
    "frequency": Range(0.0, 1.5),
}


def bounded_valleys(parameters: Parameters) -> BoundedValley:
    """Valleys from parameters of :data:`VALLEY_BOX`."""
    return BoundedValley(**{name: parameters[name] for name in VALLEY_BOX})
