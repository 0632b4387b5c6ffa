"""Arrow matrices: the flattest direction, in linear time, of a valley whose walls couple to one coordinate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from riemannian_ode.arrays import like, namespace
from riemannian_ode.flow import Array

_SWEEPS = 16  # 15 reach rounding if couplings differ by 12 orders of magnitude (measured); usually a few suffice
_SETTLED = 4.0 * float(np.finfo(np.float64).eps)  # relative change of the last sweep
_TINY = float(np.finfo(np.float32).tiny)  # avoids 0/0 if a coupling and its gap are both exactly 0


def smallest_eigenvector(head: Array, coupling: Array, shaft: np.ndarray) -> tuple[Array, Array]:
    r"""Unit eigenvector of the smallest eigenvalue of :math:`\begin{pmatrix} A & b^\top\\ b & \Lambda\end{pmatrix}`.

    With :math:`\delta_j = \lambda_j - \lambda_{\min}` the gap :math:`\gamma = \lambda_{\min} - \mu` down to the
    smallest eigenvalue μ solves the secular equation. All terms of its sum have the same sign, so γ is accurate:

    .. math::
        \gamma = \lambda_{\min} - A + \sum_j \frac{b_j^2}{\delta_j + \gamma}, \qquad
        v \propto \left(\gamma, -\frac{\gamma}{\delta_j+\gamma}b_j\right)

    It is solved by fixed-weight interpolation, which is exact after one step for equal λ_j. If b = 0 and A ≥ λ_min, the
    vector is the flattest wall's axis.

    Args:
        head: A, shape ``(*batch,)``.
        coupling: b, shape ``(*batch, d)``.
        shaft: λ_j, shape ``(d,)``.

    Returns:
        Head component, shape ``(*batch, 1)``, and shaft components, shape ``(*batch, d)``.

    Source: secular equation of a bordered diagonal matrix; the interpolation is that of Bunch, Nielsen and Sorensen,
    Numerische Mathematik 31 (1978), 31–48.
    """
    xp = namespace(coupling)
    offsets = shaft - shaft.min()
    shift = shaft.min() - head[..., None]
    gap = _positive_root(xp, shift, (coupling**2).sum(-1)[..., None])
    arm = -coupling
    if np.any(offsets):
        delta = like(offsets, coupling)
        settled = gap < 0  # none; a converged member no longer changes, so that it equals the same member alone
        for _ in range(_SWEEPS):
            quotient = coupling / (delta + gap + _TINY)
            weight = ((gap * quotient) ** 2).sum(-1)[..., None]
            better = _positive_root(xp, shift + (quotient**2 * delta).sum(-1)[..., None], weight)
            better = xp.where(settled, gap, better)
            settled, gap = xp.abs(better - gap) <= _SETTLED * better, better
            if isinstance(gap, np.ndarray) and gap.dtype.kind == "f" and settled.all():
                break  # only for numbers in host memory: a device would have to sync, and a trace has no values
        arm = arm * xp.where(delta == 0, 1.0, gap / (delta + gap + _TINY))
    norm = (gap**2 + (arm**2).sum(-1)[..., None]) ** 0.5
    undecided = norm == 0
    arm = xp.where(undecided, like(np.arange(shaft.size) == int(np.argmin(shaft)), coupling), arm)
    norm = xp.where(undecided, 1.0, norm)
    return gap / norm, arm / norm


def flattest_of_two(head: Array, coupling: Array, wall: Array) -> Callable[[Array, Array], tuple[Array, Array]]:
    r"""The projector on the eigenvector of the smaller eigenvalue of a symmetric matrix of order two.

    .. math::
        M = \begin{pmatrix} A & b\\ b & \lambda\end{pmatrix}, \qquad
        Q = \frac12\begin{pmatrix} 1 + c & -s\\ -s & 1 - c\end{pmatrix}, \quad
        (c, s) = \frac{(\lambda - A,\ 2b)}{\sqrt{(\lambda - A)^2 + 4b^2}}

    If M is a multiple of I, it is the projector on the wall's axis, as in :func:`smallest_eigenvector`.

    Args:
        head: A, any shape.
        coupling: b, the same shape.
        wall: λ, broadcasts.

    Returns:
        (x, y) ↦ Q(x, y).

    Source: the traceless part of a symmetric 2×2 matrix, over its eigenvalue, is a reflection.
    """
    xp = namespace(coupling)
    gap, twice = wall - head, 2.0 * coupling
    radius = (gap * gap + twice * twice) ** 0.5
    is_multiple = radius == 0
    scale = 0.5 / xp.where(is_multiple, 1.0, radius)
    half_c, half_s = xp.where(is_multiple, -0.5, scale * gap), scale * twice

    def project(x: Array, y: Array) -> tuple[Array, Array]:
        return (0.5 + half_c) * x - half_s * y, (0.5 - half_c) * y - half_s * x

    return project


def _positive_root(xp: Array, shift: Array, weight: Array) -> Array:
    """γ > 0 of γ = shift + weight/γ, without cancellation."""
    larger = 0.5 * (xp.abs(shift) + (shift**2 + 4.0 * weight) ** 0.5)
    return xp.where(shift >= 0, larger, weight / (larger + _TINY))
