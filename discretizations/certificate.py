r"""Energies that the update rule never increases on nonconvex objectives, and the largest step they certify.

Along the algorithm with constant, commuting A, B and P, and curvature bounds
:math:`-\ell \preceq \nabla^2 f \preceq L` in each block (sharp, flat), the energy

.. math:: E_k = f(w_k + c\,\eta A m_{k-1}) + \tfrac{\eta\varphi}{2} m_{k-1}^\top A\, m_{k-1}

with *lookahead* c and *weight* φ falls as long as :math:`\kappa = \eta\lambda_{\max}(A)L` stays below a limit that
depends on α, β and on the share ω = ℓ/L of negative curvature. Each block may have its own c and φ. β is in the
theory's units (relative to a *summed* momentum).

Source: derived in docs/theory, claims C8 and C9.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from discretizations.stability import Array, check_damping

_LOOKAHEADS = np.linspace(0.0, 1.5, 1501)  # the best c lies inside; the certificate is exact for every c
_LARGEST_POLYGON = 2000  # corners; more would lower thresholds by at most 1.2% for α ≥ 0.005 and β ≤ 6 (at ω = ∞)


class Certificate(NamedTuple):
    """An energy and the step size that it certifies, as arrays of the broadcast shape of α, β and ω.

    ``limit`` is the largest κ, ``lookahead`` c, ``weight`` φ.
    """

    limit: np.ndarray
    lookahead: np.ndarray
    weight: np.ndarray


class Cycle(NamedTuple):
    """A periodic orbit of the update rule: smallest ``kappa`` at which it exists, and its number of ``corners``."""

    kappa: np.ndarray
    corners: np.ndarray


def descent_form(
    kappa: Array, alpha: Array, beta: Array, *, lookahead: Array, weight: Array, negative: Array = 0.0
) -> np.ndarray:
    r"""The quadratic form that bounds the energy's change: :math:`\Delta E \le \eta a\, (m, g) M (m, g)^\top`.

    With :math:`s = 1-\alpha`, :math:`d = 1-c`, :math:`b = d+\beta`, one coordinate of a block, m = m_{k−1}:

    .. math::
        2M = \begin{pmatrix} \kappa d^2s^2 + \kappa_-c^2 - \varphi(1-s^2) & \kappa dbs + \varphi s - ds - c \\
        \cdot & \kappa b^2 - 2b + \varphi \end{pmatrix}

    Args:
        kappa: κ ≥ 0, any shape.
        alpha: α, broadcasts.
        beta: β, broadcasts.
        lookahead: c, broadcasts; 0 takes f at w_k.
        weight: φ, broadcasts.
        negative: κ₋ ≥ 0, broadcasts; does not matter at c = 0.

    Returns:
        Matrices, shape ``(*broadcast, 2, 2)``; the energy never rises if they are negative semidefinite.

    Source: derived in docs/theory, claim C9.
    """
    kappa, alpha, beta, c, weight, negative = _broadcast(kappa, alpha, beta, lookahead, weight, negative)
    s, d = 1.0 - alpha, 1.0 - c
    b = d + beta
    momentum = kappa * d**2 * s**2 + np.where(c == 0.0, 0.0, negative) * c**2 - weight * (1.0 - s**2)
    mixed = kappa * d * b * s + weight * s - d * s - c
    return np.asarray(0.5 * _symmetric(momentum, mixed, kappa * b**2 - 2.0 * b + weight))


def lookahead_certificate(alpha: Array, beta: Array, negative_share: Array = 0.0) -> Certificate:
    r"""The largest step that any of these energies certifies, given a bound on the negative curvature.

    For each lookahead c the limit and its weight have a closed form. With :math:`\omega = \ell/L`,
    :math:`r = 1 - s^2`, :math:`h_0 = br + s(ds + c)` and :math:`2h_1 = 2dbs^2 - d^2s^2 + rb^2 - \omega c^2` it is the
    smaller root κ of

    .. math:: (h_0 - \kappa h_1)^2 = (ds + c)^2 + 2\kappa bc\,(\omega c - ds) - \kappa^2\omega b^2c^2,
        \qquad \varphi = h_0 - \kappa h_1

    c is the best value on a grid; every other c would give a valid certificate, too. ω = ∞ leaves only c = 0, which is
    :func:`discretizations.stability.descent_limit`; ω = 0 is for convex f.

    Args:
        alpha: α in (0, 1].
        beta: β > −1/(2 − α), broadcasts.
        negative_share: ω = ℓ/L ≥ 0, broadcasts; ``numpy.inf`` if the curvature has no lower bound.

    Returns:
        Limit, lookahead and weight, broadcast shape.

    Raises:
        ValueError: for α outside (0, 1], β ≤ −1/(2 − α), or a negative ω.

    Source: derived in docs/theory, claim C9.
    """
    check_damping(alpha, beta)
    alpha, beta, share = _broadcast(alpha, beta, negative_share)
    _check_share(share)
    limits, weights = _limits(alpha[..., None], beta[..., None], share[..., None], _LOOKAHEADS)
    best = limits.argmax(-1)[..., None]
    return Certificate(
        np.take_along_axis(limits, best, -1)[..., 0],
        _LOOKAHEADS[best[..., 0]],
        np.take_along_axis(weights, best, -1)[..., 0],
    )


def _limits(alpha: np.ndarray, beta: np.ndarray, share: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limit and weight for each lookahead; limit 0 if no step is certified."""
    known = (c == 0.0) | np.isfinite(share)
    s, d, excess = 1.0 - alpha, 1.0 - c, np.where(np.isfinite(share), share, 0.0) * c**2
    b, anchor, r = d + beta, d * s + c, 1.0 - s**2
    h0 = b * r + s * anchor
    h1 = 0.5 * (2.0 * d * b * s**2 - d**2 * s**2 + r * b**2 - excess)
    square, constant = h1**2 + excess * b**2, h0**2 - anchor**2
    linear = 2.0 * (h0 * h1 + b * excess - b * c * d * s)
    root = np.sqrt(np.maximum(linear**2 - 4.0 * square * constant, 0.0))
    usable = known & (constant > 0) & (linear > 0)
    limit = np.where(usable, 2.0 * constant / np.where(usable, linear + root, 1.0), 0.0)  # without cancellation
    # Up to this root the determinant is positive, and the diagonal keeps its sign at κ = 0, which is negative: β above
    # −1/(2 − α) makes h₀ > −anchor, so constant > 0 means h₀ > anchor.
    return limit, h0 - limit * h1


def noise_growth(kappa: Array, beta: Array, *, lookahead: Array, weight: Array) -> np.ndarray:
    r"""Bound on the energy's expected change due to white gradient noise, per coordinate, in units of ηaσ².

    .. math:: \tfrac12\left[\varphi + \kappa(1 - c + \beta)^2\right]

    Args:
        kappa: κ = ηaL of the coordinate, any shape.
        beta: β, broadcasts.
        lookahead: c, broadcasts.
        weight: φ, broadcasts.

    Source: derived in docs/theory, claim C9.
    """
    kappa, beta, c, weight = _broadcast(kappa, beta, lookahead, weight)
    return np.asarray(0.5 * (weight + kappa * (1.0 - c + beta) ** 2))


def convex_offset(kappa: Array, alpha: Array, beta: Array, certificate: Certificate) -> np.ndarray:
    r"""Offset n₀, in steps, of the update rule's O(1/K) rate on convex objectives.

    .. math::
        f(w_K + c\,\eta A m_{K-1}) - f_* \le
        \frac{\tfrac{1}{2\eta}\|w_0 - w_*\|^2_{(A(B + 1/\alpha))^{-1}} + n_0\,(f(w_0) - f_*)}{K + n_0}

    It is the least n₀ for which the form :math:`t M_1 + M_0` is negative semidefinite for all t ≥ n₀ + 1, minimised
    over a constant φ₀ added to the weight φt of the momentum.

    Args:
        kappa: κ of the block, 0 < κ < ``certificate.limit``, any shape.
        alpha: α in (0, 1), broadcasts.
        beta: β > −1/(2 − α), broadcasts.
        certificate: Result of :func:`lookahead_certificate`; ω = 0 has the largest limit. Broadcasts.

    Returns:
        n₀ ≥ 0, broadcast shape, in steps.

    Raises:
        ValueError: for α outside (0, 1) or κ outside (0, limit).

    Source: derived in docs/theory, claim C8.
    """
    kappa, alpha, beta, limit, c, weight = _broadcast(kappa, alpha, beta, *certificate)
    if not np.all((alpha > 0) & (alpha < 1)):
        raise ValueError(f"alpha = {alpha!r} must lie in (0, 1); at α = 1 there is no momentum, only gradient descent.")
    if not np.all((kappa > 0) & (kappa < limit)):
        raise ValueError("kappa must lie strictly between 0 and the certificate's limit; take a smaller learning rate.")
    s = 1.0 - alpha
    ratios = np.linspace(-1.5, 1.5, 121) / alpha[..., None]  # φ₀/φ: each of these values gives a valid n₀
    shifts = ratios * weight[..., None]
    decrease = -descent_form(kappa, alpha, beta, lookahead=c, weight=weight)[..., None, :, :]
    momentum = 0.5 * (kappa * c**2 + weight)[..., None] - 0.5 * shifts * (1.0 - s**2)[..., None]
    mixed = (s / alpha + c)[..., None] + shifts * s[..., None]
    gradient = (beta + 1.0 / alpha - 1.0 / kappa)[..., None] + shifts
    needed = _largest_ratio(_symmetric(momentum, 0.5 * mixed, 0.5 * gradient), decrease)
    # The momentum's weight φt + φ₀ must not become negative.
    return np.asarray(np.maximum(np.maximum(needed - 1.0, -ratios).min(-1), 0.0))


def block_curvatures(majorant: np.ndarray, sharp: np.ndarray, balance: Array = 1.0) -> tuple[np.ndarray, np.ndarray]:
    r"""Curvature bounds of the sharp and the flat block, including their coupling.

    .. math:: L_s = \lambda_{\max}(H_{ss}) + t\|H_{sf}\|, \qquad L_f = \lambda_{\max}(H_{ff}) + \|H_{sf}\|/t

    Then :math:`H \preceq L_sP + L_fQ`, for any t > 0. For bounds on negative curvature pass −H.

    Args:
        majorant: H, symmetric: a Hessian, or an upper bound of all Hessians, shape ``(*batch, p, p)``.
        sharp: Orthonormal basis of the sharp subspace, shape ``(*batch, p, d_s)`` with 0 < d_s < p.
        balance: t > 0, shape ``(*batch,)``.

    Returns:
        L_s and L_f, at least 0, shape ``(*batch,)``.

    Source: docs/theory, claim C9 (Young's inequality).
    """
    transposed = np.swapaxes(sharp, -1, -2)
    flat = np.eye(sharp.shape[-2]) - sharp @ transposed
    coupling = np.linalg.norm(transposed @ majorant @ flat, ord=2, axis=(-2, -1))
    in_sharp = np.linalg.eigvalsh(transposed @ majorant @ sharp)[..., -1]
    in_flat = np.linalg.eigvalsh(flat @ majorant @ flat)[..., -1]  # P's zero eigenvalues are among them: at least 0
    return coupled_curvatures(in_sharp, in_flat, coupling, balance)


def coupled_curvatures(
    in_sharp: Array, in_flat: Array, coupling: Array, balance: Array = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    r"""L_s and L_f of :func:`block_curvatures`, from the three norms that they depend on.

    Args:
        in_sharp: λ_max(H_ss), any shape.
        in_flat: λ_max(H_ff), broadcasts.
        coupling: ‖H_sf‖, broadcasts.
        balance: t > 0, broadcasts.

    Source: docs/theory, claim C9 (Young's inequality).
    """
    balance = np.asarray(balance)
    return np.maximum(in_sharp, 0.0) + balance * coupling, np.maximum(in_flat, 0.0) + coupling / balance


def cycle_curvature(alpha: Array, beta: Array, negative_share: Array = 0.0) -> Cycle:
    r"""Smallest κ at which the update rule is known to cycle forever on an objective with given ω = ℓ/L.

    The objective is :math:`\tfrac{L+\ell}{2}\,\mathrm{dist}^2(w, \text{a regular polygon}) - \tfrac{\ell}{2}\|w\|^2` in
    the plane; no certificate can reach this κ. For ω → ∞ it is :func:`discretizations.stability.descent_limit`.

    Args:
        alpha: α in (0, 1].
        beta: β > −1/(2 − α), broadcasts.
        negative_share: ω = ℓ/L ≥ 0, broadcasts; 0 is a convex objective, ``numpy.inf`` an objective without a lower
            bound on its curvature.

    Returns:
        κ (∞ if no polygon up to 2000 corners has a cycle) and the number of corners, broadcast shape.

    Raises:
        ValueError: for α outside (0, 1], β ≤ −1/(2 − α), or a negative ω.

    Source: derived in docs/theory, claim C9; for ω = 0 and β = 0 it is the construction of Goujaud, Taylor and
    Dieuleveut, arXiv:2307.11291.
    """
    check_damping(alpha, beta)
    alpha, beta, share = (x[..., None] for x in _broadcast(alpha, beta, negative_share))
    _check_share(share)
    corners = np.arange(3, _LARGEST_POLYGON + 1)
    turn = circle_gradient(alpha, beta, 2.0 * np.pi / corners)
    a, twist, slope = turn.real, np.abs(turn.imag), np.tan(np.pi / corners)
    # qκ² + bκ ≥ e, homogeneous in (1, ω) so that ω = ∞ needs no special case.
    one = 1.0 / (1.0 + share)
    q, b, e = slope * (1.0 - one), slope * a * (2.0 * one - 1.0) - twist, slope * one * (a**2 + twist**2)
    root = np.sqrt(b**2 + 4.0 * q * e)
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(b > 0, 2.0 * e / (b + root), (root - b) / (2.0 * q))
    kappa = np.where(np.isnan(kappa), np.inf, kappa)
    best = kappa.argmin(-1)[..., None]
    return Cycle(np.take_along_axis(kappa, best, -1)[..., 0], corners[best[..., 0]])


def circle_gradient(alpha: Array, beta: Array, angle: Array) -> np.ndarray:
    r"""The complex gradient ηa·g/w for which the update rule rotates w by ``angle`` in every step.

    .. math:: \hat g = \frac{(1 - e^{i\theta})(1 - (1-\alpha)e^{-i\theta})}{1 + \beta - (1-\alpha)\beta e^{-i\theta}}

    Args:
        alpha: α.
        beta: β, broadcasts.
        angle: θ, radians, broadcasts.

    Source: derived in docs/theory, claim C9.
    """
    alpha, beta, turn = np.asarray(alpha), np.asarray(beta), np.exp(1j * np.asarray(angle))
    s = 1.0 - alpha
    return np.asarray((1.0 - turn) * (1.0 - s / turn) / (1.0 + beta - s * beta / turn))


def _check_share(share: np.ndarray) -> None:
    if not np.all(share >= 0):
        raise ValueError(f"negative_share = {share!r} must be at least 0: it is the ratio ℓ/L of two curvature bounds.")


def _largest_ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Largest λ with det(top − λ·bottom) = 0 for symmetric 2×2 matrices, bottom positive definite."""
    p, q, r = bottom[..., 0, 0], bottom[..., 0, 1], bottom[..., 1, 1]
    x, y, z = top[..., 0, 0], top[..., 0, 1], top[..., 1, 1]
    determinant = p * r - q**2
    half = 0.5 * (p * z + r * x - 2.0 * q * y)
    return np.asarray((half + np.sqrt(np.maximum(half**2 - determinant * (x * z - y**2), 0.0))) / determinant)


def _symmetric(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.stack([np.stack([x, y], axis=-1), np.stack([y, z], axis=-1)], axis=-2)


def _broadcast(*values: Array) -> list[np.ndarray]:
    return list(np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in values)))
