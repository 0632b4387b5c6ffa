r"""The formulas of RISHD and LITE as pure functions of arrays.

Every integrator, every update rule and every optimizer of this project goes through these few lines. They use array
operators only, so numpy arrays and torch tensors (of any dtype, shape and device) both work, and this module imports
nothing. Coefficients are Python floats or arrays that broadcast against ``m``.

.. math::
    \dot w = -\eta\, u, \qquad u = P F^{-1}(m + \beta_1 g) + \chi\, Q F^{-1}(m + \beta_2 g), \qquad
    \dot m = -\alpha m + c\,g + R

Source: arXiv:2602.22681, eqs. (tangent), (cotangent) and Algorithm 1; the gain c is 1 for a summed momentum and
1 − θ for an exponential moving average with coefficient θ (docs/theory, "Units of β").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor: their array-API subset has no common static type
Projector: TypeAlias = Callable[[Array], Array]
_FLOAT32_MAX = 2.0**127


def differ(first: Any, second: Any) -> bool:
    """Whether two coefficients differ; arrays count as different, since comparing them would sync with the device."""
    numbers = isinstance(first, (int, float)) and isinstance(second, (int, float))
    return not numbers or first != second


def _plus(x: Array, c: Any, y: Array) -> Array:
    """x + cy; torch tensors of training dtypes need one pass over memory, the operators need two.

    In float64 the single pass would round once where numpy rounds twice, and torch refuses numbers beyond float32.
    """
    if hasattr(x, "addcmul"):
        if isinstance(c, (int, float)) and x.dtype.itemsize < 8 and abs(c) < _FLOAT32_MAX:
            return x.add(y, alpha=c)
        if y.dtype.itemsize < x.dtype.itemsize:
            y = y.to(x.dtype)  # otherwise the product would round in the narrower type
        if getattr(c, "dtype", None) == x.dtype == y.dtype and x.dtype.itemsize < 8:
            return x.addcmul(y, c)
    return x + c * y


def momentum_rate(m: Array, g: Array, *, alpha: Any, gain: Any = 1.0, correction: Array | None = None) -> Array:
    r"""Rate of the momentum covector, :math:`\dot m = -\alpha m + c\,g + R`.

    Args:
        m: Momentum, any shape.
        g: Gradient ∇f(w), shape of ``m``.
        alpha: Damping α, per unit time.
        gain: c, 1 for a summed momentum, 1 − θ for an EMA.
        correction: Riemannian correction R, shape of ``m``; ``None`` is R = 0.

    Returns:
        ṁ, shape of ``m``.

    Source: arXiv:2602.22681, eq. (cotangent).
    """
    rate = gain * g - alpha * m
    return rate if correction is None else rate + correction


def momentum_step(
    m: Array, g: Array, *, alpha: Any, h: Any = 1.0, gain: Any = 1.0, correction: Array | None = None
) -> Array:
    r"""One Euler step of the momentum, :math:`m_k = m_{k-1} + h(-\alpha m_{k-1} + c\,g_k + R_k)`.

    With h = 1 and R = 0 it is heavy ball's :math:`(1-\alpha)m + g` (gain 1) or an optimizer's EMA
    :math:`\theta m + (1-\theta) g` (α = c = 1 − θ).

    Args:
        m: Momentum m_{k−1}, any shape.
        g: Gradient g_k, shape of ``m``.
        alpha: Damping α, per unit time.
        h: Step size, in units of time.
        gain: c, 1 for a summed momentum, 1 − θ for an EMA.
        correction: Riemannian correction R_k, shape of ``m``; ``None`` is R = 0.

    Returns:
        m_k, shape of ``m``.

    Source: arXiv:2602.22681, Algorithm 1.
    """
    is_average = correction is None and isinstance(alpha, float) and not differ(h, 1.0) and not differ(gain, alpha)
    if is_average and hasattr(m, "lerp") and m.dtype == g.dtype:
        return m.lerp(g, alpha)  # the same in one pass over memory
    rate = momentum_rate(m, g, alpha=alpha, gain=gain, correction=correction)
    return m + (h * rate if differ(h, 1.0) else rate)


def average_rate(k: Array, s: Array, *, rate: Any) -> Array:
    r"""Rate of a moving average, :math:`\dot k = (1-\theta)(s - k)`, or of a sum, :math:`\dot k = s`.

    Args:
        k: Average, any shape.
        s: What it averages, shape of ``k``.
        rate: 1 − θ, per unit time; ``None`` sums.

    Source: docs/theory, "Flows with memory".
    """
    return s if rate is None else rate * (s - k)


def average_step(k: Array, s: Array, *, rate: Any, h: Any = 1.0) -> Array:
    r"""One Euler step of an average, :math:`k \leftarrow k + h(1-\theta)(s - k)`, or of a sum, :math:`k + hs`.

    Args:
        k: Average, any shape.
        s: What it averages, shape of ``k``.
        rate: 1 − θ, per unit time; ``None`` sums.
        h: Step size, in units of time.

    Source: docs/theory, "Flows with memory"; h = 1 is the exponential moving average with coefficient θ.
    """
    if rate is None:
        return k + (h * s if differ(h, 1.0) else s)
    weight = h * rate if differ(h, 1.0) else rate
    if hasattr(k, "lerp") and k.dtype == s.dtype and isinstance(weight, float):
        return k.lerp(s, weight)  # the same in one pass over memory
    return k + weight * (s - k)


def lookahead(m: Array, g: Array, nesterov: Any) -> Array:
    r"""Momentum with the gradient added before the metric acts, :math:`\tilde m = m + \nu g`.

    With a linear metric ν is Hessian damping β in every direction. Muon's Nesterov form has ν = 1/θ with a summed
    momentum and (1 − θ)/θ with an EMA. ``nesterov = 0.0`` returns ``m`` itself.

    Source: docs/theory, "Units of β".
    """
    if not differ(nesterov, 0.0):
        return m
    return _plus(m, nesterov, g)


def lite_velocity(
    a: Array,
    d: Array | None = None,
    *,
    flat: Projector | None = None,
    chi: Any = 1.0,
    beta_sharp: Any = 0.0,
    beta_flat: Any = 0.0,
    chi_sharp: Any = 1.0,
    decay: Array | None = None,
    twice: bool = False,
) -> Array:
    r"""LITE's direction from preconditioned momentum and gradient, with a single projection.

    .. math::
        u = \chi_s P(a + \beta_1 d + c) + \chi Q(a + \beta_2 d + c)
          = \chi_s(a + \beta_1 d + c) + Q[(\chi-\chi_s)(a + c) + (\chi\beta_2 - \chi_s\beta_1)d]

    The published soft mask applies a Q with eigenvalues in [0, 1] twice to d:
    :math:`U = a + \beta_1 d + (\beta_2 - \beta_1)Qd`, :math:`u = U + c + (\chi - 1)Q(U + c)`. The two forms are equal
    if Q² = Q.

    Args:
        a: Preconditioned momentum F⁻¹m̃, any shape.
        d: Preconditioned gradient F⁻¹g, shape of ``a``; ``None`` if β₁ = β₂ = 0.
        flat: x ↦ Qx, the projector on flat directions (Q² = Q); ``None`` is the base method (Q = 0).
        chi: χ, learning-rate ratio of flat directions.
        beta_sharp: β₁, Hessian damping of sharp directions, relative to ``a``.
        beta_flat: β₂, the same for flat directions.
        chi_sharp: χ_s, learning-rate ratio of sharp directions, 1 except in ablations.
        decay: c, weight decay in units of ``a`` (λw over the learning-rate scale); ``None`` for no decay.
        twice: Whether Q is the published soft mask (χ_s = 1).

    Returns:
        u with ẇ = −ηu, shape of ``a``.

    Source: arXiv:2602.22681, Algorithm 1, and its code for ``twice``; the single projection is derived in docs/theory.
    """
    if twice and flat is not None:
        damped = a if d is None else a + beta_sharp * d + (beta_flat - beta_sharp) * flat(d)
        u = damped + (chi - 1.0) * flat(damped)
        return u if decay is None else u + lite_velocity(decay, flat=flat, chi=chi)
    base = a if decay is None else a + decay
    sharp = base if d is None or not differ(beta_sharp, 0.0) else _plus(base, beta_sharp, d)
    scaled = chi_sharp * sharp if differ(chi_sharp, 1.0) else sharp
    if flat is None:
        return scaled
    if d is None:
        return _plus(scaled, chi - chi_sharp, flat(base))
    return scaled + flat(_plus((chi - chi_sharp) * base, chi * beta_flat - chi_sharp * beta_sharp, d))


def lite_direction(
    m: Array,
    g: Array,
    *,
    raise_index: Callable[[Array], Array],
    split: Callable[[Array, Array], Projector] | None = None,
    chi: Any = 1.0,
    beta_sharp: Any = 0.0,
    beta_flat: Any = 0.0,
    nesterov: Any = 0.0,
    decay: Array | None = None,
) -> Array:
    r"""LITE's direction from momentum and gradient.

    It is :func:`lite_velocity` of :math:`a = F^{-1}(m+\nu g)` and :math:`d = F^{-1}g`.

    Args:
        m: Momentum m_k, any shape.
        g: Gradient g_k, shape of ``m``.
        raise_index: x ↦ F⁻¹x.
        split: (m̃, a) ↦ (x ↦ Qx), the flat projector at this point; ``None`` is the base method.
        chi: χ.
        beta_sharp: β₁.
        beta_flat: β₂.
        nesterov: ν, see :func:`lookahead`.
        decay: c, see :func:`lite_velocity`.

    Returns:
        u with ẇ = −ηu, shape of ``m``.

    Source: arXiv:2602.22681, Algorithm 1.
    """
    covector = lookahead(m, g, nesterov)
    a = raise_index(covector)
    flat = None if split is None else split(covector, a)
    is_damped = differ(beta_sharp, 0.0) or differ(beta_flat, 0.0)
    d = raise_index(g) if is_damped else None
    return lite_velocity(a, d, flat=flat, chi=chi, beta_sharp=beta_sharp, beta_flat=beta_flat, decay=decay)


def position_step(w: Array, u: Array, *, eta: Any, h: Any = 1.0) -> Array:
    r"""One Euler step of the position, :math:`w_{k+1} = w_k - h\eta u_k`.

    Args:
        w: Parameters, any shape.
        u: Direction, shape of ``w``.
        eta: Learning rate η.
        h: Step size, in units of time.

    Source: arXiv:2602.22681, Algorithm 1.
    """
    return _plus(w, -(h * eta if differ(h, 1.0) else eta), u)
