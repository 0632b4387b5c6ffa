r"""Sharp/flat splits of a flow.

The theory requires that P and F commute (claims C4, C8, C9). A projector that is not orthogonal only has to be
orthogonal in the metric, :math:`FP = P^\top F`: in the coordinates :math:`F^{1/2}w` the metric is I and P is symmetric.
For an orthogonal P the two conditions are equivalent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from riemannian_ode.arrays import eigh, inner, like, matvec, namespace, to_numpy
from riemannian_ode.flow import Array, Projector
from riemannian_ode.metric import Metric


class PhasePoint(NamedTuple):
    """Point at which a split is evaluated: position w, covector m̃ that the metric raises, and a = F⁻¹m̃."""

    w: Array
    covector: Array
    preconditioned: Array


FlatSplit: TypeAlias = Callable[[PhasePoint], Projector]


def complement(basis: Array) -> Projector:
    """x ↦ x − V(Vᵀx): the projector off the span of orthonormal columns, without a p×p matrix.

    Args:
        basis: V, shape ``(p, d)`` or ``(*ensemble, p, d)``.
    """
    transposed = namespace(basis).matrix_transpose(basis)

    def project(x: Array) -> Array:
        return x - matvec(basis, matvec(transposed, x))

    return project


class ConstantSplit:
    r"""The split whose sharp subspace is the span of fixed orthonormal columns.

    Without ``metric`` P is the orthogonal projector :math:`VV^\top`. With it, P is orthogonal in the metric,
    :math:`P = V(V^\top FV)^{-1}V^\top F`, so that any span fits any F.

    Args:
        basis: V, shape ``(p, d_s)`` or ``(*ensemble, p, d_s)``, with VᵀV = I to 1e−8.
        metric: F; needed if the span of V is not invariant under F.

    Raises:
        ValueError: if the columns are not orthonormal.
    """

    def __init__(self, basis: Array, *, metric: Metric | None = None) -> None:
        columns = to_numpy(basis)
        if columns.ndim < 2 or columns.shape[-1] > columns.shape[-2]:
            raise ValueError(f"basis has shape {columns.shape}; give (p, d_s) with d_s ≤ p orthonormal columns.")
        error = np.abs(np.swapaxes(columns, -1, -2) @ columns - np.eye(columns.shape[-1])).max(initial=0.0)
        if not error <= 1e-8:
            raise ValueError(f"basis is not orthonormal: max |VᵀV − I| = {error:.3g}; orthonormalise it with a QR.")
        self.basis, self.metric = basis, _with_lower_index(metric)

    def __call__(self, point: PhasePoint) -> Projector:
        """x ↦ Qx at any point."""
        if self.basis.shape[-2] != point.w.shape[-1]:
            raise ValueError(
                f"basis has shape {tuple(self.basis.shape)}, but w has {point.w.shape[-1]} coordinates; give (p, d_s)."
            )
        basis = like(self.basis, point.w)
        return (
            complement(basis)
            if self.metric is None
            else _metric_complement(basis, _lowered(self.metric, point.w, basis))
        )


class Curved(Protocol):
    """What :class:`MetricSplit` needs from a landscape."""

    sharp_rank: int

    def hessian(self, w: Array) -> Array:
        """∇²f(w), shape ``(*ensemble, p, p)``."""
        ...


class MetricSplit:
    r"""The split in a metric's own geometry: the d_s sharpest directions of :math:`F^{-1}\nabla^2f`.

    .. math:: \nabla^2f\,v_i = \lambda_i F v_i, \qquad V^\top FV = I, \qquad Px = VV^\top Fx

    In the coordinates :math:`F^{1/2}w` it is the top eigenspace of the Hessian
    :math:`F^{-1/2}\,\nabla^2f\,F^{-1/2}`. P is orthogonal in the metric whatever F is; with F = I it is the landscape's
    ``flat_split``.

    Args:
        landscape: f, with ``hessian`` and ``sharp_rank``.
        metric: F; any but one that depends on history.
        sharp_rank: d_s, the landscape's by default.

    Raises:
        ValueError: for a metric without F(w), a landscape without a Hessian, or a rank outside 0 … p.
    """

    def __init__(self, landscape: Curved, metric: Metric, *, sharp_rank: int | None = None) -> None:
        if not callable(getattr(landscape, "hessian", None)):
            raise ValueError(f"landscape is a {type(landscape).__name__} without a method hessian(w).")
        self.landscape, self.metric = landscape, _with_lower_index(metric)
        rank: Any = getattr(landscape, "sharp_rank", None) if sharp_rank is None else sharp_rank
        if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or rank < 0:
            raise ValueError(f"sharp_rank = {rank!r} must be a whole number between 0 and p.")
        self.sharp_rank = int(rank)

    def __call__(self, point: PhasePoint) -> Projector:
        """x ↦ Qx at w."""
        w, p = point.w, point.w.shape[-1]
        if self.sharp_rank > p:
            raise ValueError(f"sharp_rank = {self.sharp_rank} must lie between 0 and p = {p}.")
        matrix = metric_matrix(self.metric, w)
        values, vectors = eigh(matrix)
        xp = namespace(w)
        root = (vectors / xp.sqrt(values)[..., None, :]) @ xp.matrix_transpose(vectors)  # F^{-1/2}
        directions = eigh(root @ self.landscape.hessian(w) @ root)[1]  # ascending eigenvalues
        basis = root @ directions[..., p - self.sharp_rank :]
        return _metric_complement(basis, matrix @ basis)


def metric_matrix(metric: Metric, w: Array) -> Array:
    """F(w), shape ``(*ensemble, p, p)``, in small dimension."""
    matrix = getattr(metric, "matrix", None)
    if callable(matrix):
        return matrix(w)
    return _lowered(metric, w, like(np.eye(w.shape[-1]), w))


def check_self_adjoint(flat: Projector, metric: Metric, w: Array) -> None:
    r"""Refuse a flat "projector" that is not a projector, or does not fit the metric at ``w``.

    Checked for random covectors x and y: :math:`x^\top QF^{-1}y = y^\top QF^{-1}x` and :math:`Q^2F^{-1}x = QF^{-1}x`,
    relative to the norms of x and y in the metric. Members with non-finite numbers pass.

    Args:
        flat: x ↦ Qx at w.
        metric: F, with F(w).
        w: Positions, shape ``(*ensemble, p)``.

    Raises:
        ValueError: giving the claims that fail, the size of the difference, and how to build a split that fits.
    """
    rng = np.random.default_rng(0)
    x, y = (like(rng.standard_normal(tuple(w.shape)), w) for _ in range(2))
    raised = metric.raise_index(w, x), metric.raise_index(w, y)
    flat_x, flat_y = (flat(v) for v in raised)
    scale = [to_numpy(inner(c, v)) for c, v in zip((x, y), raised, strict=True)]
    twice = to_numpy(metric.norm_squared(w, flat(flat_x) - flat_x))
    skew = np.abs(to_numpy(inner(x, flat_y) - inner(y, flat_x)))
    with np.errstate(invalid="ignore", divide="ignore"):
        idle, tilt = np.sqrt(np.maximum(twice, 0.0) / scale[0]), skew / np.sqrt(scale[0] * scale[1])
    tolerance = 16.0 * float(np.finfo(skew.dtype).eps) ** 0.5
    if (idle > tolerance).any():
        raise ValueError(
            f"the split's flat part Q is not a projector: |Q²v − Qv| = {np.nanmax(idle):.3g}|v|; give x ↦ Qx with "
            "Q² = Q, or check_split=False for a run that the theory does not cover."
        )
    if (tilt > tolerance).any():
        raise ValueError(
            f"the split does not commute with the metric (they differ by {np.nanmax(tilt):.3g}), so claims C4, C8 and "
            "C9 do not hold; take the split in the metric's geometry, flat=MetricSplit(landscape, metric) or "
            "ConstantSplit(basis, metric=metric), or check_split=False to run without them."
        )


def _with_lower_index(metric: Any) -> Any:
    if metric is not None and (not isinstance(metric, Metric) or metric.variation == "history"):
        raise ValueError(
            f"metric is a {type(metric).__name__}; the metric's own split needs a Metric with F(w), which a "
            "preconditioner that depends on history does not have."
        )
    return metric


def _lowered(metric: Metric, w: Array, basis: Array) -> Array:
    """F(w)V, shape ``(*ensemble, p, d)``."""
    columns = [metric.lower_index(w, 0.0 * w + basis[..., j]) for j in range(basis.shape[-1])]
    xp = namespace(w)
    return xp.stack(columns, axis=-1) if columns else 0.0 * w[..., None] * basis


def _metric_complement(basis: Array, lowered: Array) -> Projector:
    """x ↦ x − V(VᵀFV)⁻¹(FV)ᵀx; the inverse keeps it a projector even if rounding makes VᵀFV ≠ I."""
    xp = namespace(basis)
    transposed = xp.matrix_transpose(lowered)
    dual = basis @ xp.linalg.inv(transposed @ basis)
    return lambda x: x - matvec(dual, matvec(transposed, x))
