"""Random convex objectives with a known minimiser and known curvature bounds, for testing convergence rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from rishd.claims.trial import Box, Parameters, Range

PROFILES = ("quadratic", "pseudo-Huber", "log cosh", "tilted logistic", "Huber")
SMOOTH_PROFILES = 4  # all but the last are smooth, as high-order integrators need
_TILT = 1.0  # tilt of the logistic profile, whose sides then have slopes 1.08 and −2.92 far out


@dataclass(frozen=True)
class ConvexRidges:
    r"""A convex objective per member, with minimiser 0 and minimum 0.

    .. math:: f(w) = \tfrac{\mu}{2}\|w\|^2 + \sum_j c_j\,\delta_j^2\,\psi(x_j^\top w/\delta_j), \qquad
        0 \le \psi'' \le 1

    so that :math:`\mu I \preceq \nabla^2 f \preceq \mu I + \sum_j c_j x_jx_j^\top`. The profiles ψ are r²/2,
    √(1+r²) − 1, log cosh r, a tilted logistic loss, and Huber's.

    Args:
        ridges: x, shape ``(n, J, p)``.
        weights: c ≥ 0, shape ``(n, J)``.
        widths: δ > 0, shape ``(n, J)``.
        profile: Index into :data:`PROFILES`, shape ``(n,)``.
        strength: μ ≥ 0, shape ``(n,)``.
    """

    ridges: np.ndarray
    weights: np.ndarray
    widths: np.ndarray
    profile: np.ndarray
    strength: np.ndarray

    def value(self, w: np.ndarray) -> np.ndarray:
        """f(w), shape ``(…, n)``."""
        along = self._along(w)
        bumps = (self.weights * self.widths**2 * self._profile(along, 0)).sum(-1)
        return np.asarray(bumps + 0.5 * self.strength * (w**2).sum(-1))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """∇f(w), shape ``(…, n, p)``."""
        pull = self.weights * self.widths * self._profile(self._along(w), 1)
        return np.asarray(np.einsum("...nj,njp->...np", pull, self.ridges) + self.strength[:, None] * w)

    @property
    def curvature_bound(self) -> np.ndarray:
        """The matrix μI + Σ c_j x_jx_jᵀ, an upper bound of all Hessians, shape ``(n, p, p)``."""
        outer = np.einsum("nj,njp,njq->npq", self.weights, self.ridges, self.ridges)
        return np.asarray(outer + self.strength[:, None, None] * np.eye(self.ridges.shape[-1]))

    @property
    def smoothness(self) -> np.ndarray:
        """L, the largest eigenvalue of the curvature bound, shape ``(n,)``."""
        return np.asarray(np.linalg.eigvalsh(self.curvature_bound)[:, -1])

    def is_convex_at(self, w: np.ndarray) -> np.ndarray:
        r"""Whether the inequalities that the proofs use (convexity with strength μ) hold at given points.

        .. math:: \langle\nabla f(w), w\rangle \ge f(w) + \tfrac\mu2\|w\|^2, \qquad f(w) \ge \tfrac\mu2\|w\|^2

        Args:
            w: Points, shape ``(points, n, p)``.

        Returns:
            Whether it holds at every point up to rounding, shape ``(n,)``.
        """
        square, value = 0.5 * self.strength * (w**2).sum(-1), self.value(w)
        slope = (self.gradient(w) * w).sum(-1)
        slack = 1e-9 * (value + square)
        return np.asarray(((slope >= value + square - slack) & (value >= square - slack)).all(0))

    def _along(self, w: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("...np,njp->...nj", w, self.ridges) / self.widths)

    def _profile(self, r: np.ndarray, derivative: int) -> np.ndarray:
        """ψ(r) or ψ′(r), with each member's own profile."""
        out = np.empty_like(r)
        for index, profile in enumerate((_quadratic, _pseudo_huber, _log_cosh, _tilted_logistic, _huber)):
            members = self.profile == index
            if members.any():
                out[..., members, :] = profile(r[..., members, :], derivative)
        return out


def ridge_box(p: int, ridges: int, *, profiles: int, strength: tuple[float, float] | None = None) -> Box:
    """Ranges for :func:`convex_ridges`.

    Args:
        p: Dimension.
        ridges: J.
        profiles: Number of :data:`PROFILES` to use.
        strength: Range of μ; ``None`` is μ = 0.
    """
    box = {
        "directions": Range(-1.0, 1.0, ridges * p),
        "weights": Range(0.05, 2.0, ridges, log=True),
        "widths": Range(0.05, 5.0, ridges, log=True),
        "profile": Range(0.0, profiles - 1e-9),
    }
    return box if strength is None else {**box, "strength": Range(*strength, log=True)}


def convex_ridges(parameters: Parameters, p: int) -> ConvexRidges:
    """Objectives from parameters of :func:`ridge_box`."""
    weights = parameters["weights"]
    n, count = weights.shape
    directions = parameters["directions"].reshape(n, count, p)
    length = np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-3)
    return ConvexRidges(
        directions / length,
        weights,
        parameters["widths"],
        np.floor(parameters["profile"]).astype(int),
        parameters.get("strength", np.zeros(n)),
    )


def example_ridges(profile: int, strength: float) -> dict[str, np.ndarray]:
    """Parameters of a two-dimensional example for illustrations: a steep and a shallow ridge, start (2, −3).

    Args:
        profile: Index into :data:`PROFILES`.
        strength: μ.
    """
    return {
        "directions": np.array([[1.0, 0.2, -0.3, 1.0]]),
        "weights": np.array([[1.5, 0.3]]),
        "widths": np.array([[0.5, 0.3]]),
        "profile": np.array([float(profile)]),
        "strength": np.array([strength]),
        "start": np.array([[2.0, -3.0]]),
    }


def _quadratic(r: np.ndarray, derivative: int) -> np.ndarray:
    return np.asarray(0.5 * r**2) if derivative == 0 else r


def _pseudo_huber(r: np.ndarray, derivative: int) -> np.ndarray:
    root = np.sqrt(1.0 + r**2)
    return np.asarray(r**2 / (1.0 + root) if derivative == 0 else r / root)  # √(1+r²) − 1 without cancellation


def _log_cosh(r: np.ndarray, derivative: int) -> np.ndarray:
    if derivative:
        return np.asarray(np.tanh(r))
    size = np.abs(r)
    # log cosh = log(1 + 2 sinh²(r/2)) is accurate near 0; the other form does not overflow far out.
    near = np.log1p(2.0 * np.sinh(0.5 * np.minimum(size, 1.0)) ** 2)
    return np.asarray(np.where(size < 1.0, near, size + np.log1p(np.exp(-2.0 * size)) - np.log(2.0)))


def _tilted_logistic(r: np.ndarray, derivative: int) -> np.ndarray:
    share = expit(_TILT)
    bent = share * np.expm1(np.minimum(r, 1.0))  # σ(τ)(e^r − 1): both formulas below are accurate near 0
    if derivative:
        near = share * (1.0 - share) * np.expm1(np.minimum(r, 1.0)) / (1.0 + bent)
        return np.asarray(4.0 * np.where(r < 1.0, near, expit(r + _TILT) - share))
    far = np.logaddexp(0.0, r + _TILT) - np.logaddexp(0.0, _TILT)
    whole = np.where(r < 1.0, np.log1p(bent), far) - share * r
    # Where the linear terms cancel, use the Taylor series; its next term is 1e−12 of the first.
    slope = share * (1.0 - share)
    series = slope * r**2 * (0.5 + (1.0 - 2.0 * share) * r / 6.0 + (1.0 - 6.0 * slope) * r**2 / 24.0)
    return np.asarray(4.0 * np.where(np.abs(r) < 1e-4, series, whole))


def _huber(r: np.ndarray, derivative: int) -> np.ndarray:
    size = np.abs(r)
    if derivative:
        return np.asarray(np.clip(r, -1.0, 1.0))
    return np.where(size <= 1.0, 0.5 * r**2, size - 0.5)
