r"""Symbolic proofs that the update rule with a row's formulas equals the optimizer's recurrence.

:func:`discretizations.update_rule.lite_step` itself runs on symbols. F⁻¹ is an undetermined function φ, so nothing is
assumed about the metric beyond what a row says. Each function returns residuals that vanish if the statement is true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp

from discretizations.correspondence import Correspondence, expression
from discretizations.update_rule import UpdateState, lite_step

Expr = Any  # SymPy has no usable static types

_W, _BUFFER, _G = sp.symbols("w buf g", real=True)
_LR, _MU, _THETA, _DECAY, _T = (expression(name) for name in ("lr", "mu", "beta1", "weight_decay", "t"))
_THETA2 = expression("beta2")
_SCALE = expression("sqrt(Max(1, rows/columns))")
_RMS_SCALE = expression("sqrt(Max(rows, columns))") / 5
_PHI = sp.Function("phi")


def row_residuals(row: Correspondence) -> list[Expr]:
    """Momentum and w after a step of the row, minus those of the optimizer as published.

    Args:
        row: A row of :data:`discretizations.known_optimizers.CORRESPONDENCES`.
    """
    published, kept = _RECURRENCES[row.key]
    buffer, w = published(_W, _BUFFER, _G)
    vector = row.momentum == "vector"
    eta, decay = row.position_formulas.values()
    found = lite_step(
        _W,
        kept * _BUFFER,
        _PHI(_G) if vector else _G,
        eta=eta,
        alpha=expression(row.alpha),
        gain=expression(row.gain),
        nesterov=0.0 if row.nesterov == "0" else expression(row.nesterov),
        decay=None if decay == 0 else decay * _W,
        precondition=(lambda x: x) if vector or row.metric == "I" else _raised,
    )
    return [sp.simplify(sp.nsimplify(x)) for x in (found.m - kept * buffer, found.w - w)]


def momentum_units() -> list[Expr]:
    """Units of β for a linear metric: an EMA with gain c and damping b equals the sum with β = b/c and η → cη.

    With a Nesterov-corrected EMA, ν = (1 − θ)/θ, β = 1/θ + b/(1 − θ). The γ of the flow's second-order form is the same
    in both units: γ = η(c + αb) of the EMA equals (cη)(1 + αβ).

    Returns:
        Residuals of w, of the momenta (EMA − c·sum), of γ, and of w in the Nesterov-corrected form.
    """
    a, alpha, c, b, eta, m, theta = sp.symbols("a alpha c b eta m theta", positive=True)

    def step(momentum: Expr, theta_form: bool, **coefficients: Any) -> UpdateState:
        keep = 1 - theta if theta_form else alpha
        return lite_step(_W, momentum, _G, alpha=keep, precondition=lambda x: a * x, **coefficients)

    average = step(c * m, False, eta=eta, gain=c, nesterov=b)
    summed = step(m, False, eta=c * eta, nesterov=b / c)
    corrected = step(
        (1 - theta) * m, True, eta=eta, gain=1 - theta, nesterov=(1 - theta) / theta, beta_sharp=b, beta_flat=b
    )
    theory = step(m, True, eta=(1 - theta) * eta, nesterov=1 / theta + b / (1 - theta))
    residuals = [
        average.w - summed.w,
        average.m - c * summed.m,
        eta * (c + alpha * b) - c * eta * (1 + alpha * b / c),
        corrected.w - theory.w,
    ]
    return [sp.simplify(sp.nsimplify(x)) for x in residuals]


def _raised(x: Expr) -> Expr:
    return _PHI(sp.expand(sp.nsimplify(x)))  # the flow's h = 1.0 is a float


Recurrence = Callable[[Expr, Expr, Expr], tuple[Expr, Expr]]


def _sgd(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    return g, w - _LR * g


def _heavy_ball(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = _MU * buffer + g
    return buffer, w - _LR * buffer


def _nesterov(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = _MU * buffer + g
    return buffer, w - _LR * (g + _MU * buffer)


def _preconditioned(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    return g, w - _LR * _raised(g)


def _preconditioned_buffer(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = _MU * buffer + _raised(g)
    return buffer, w - _LR * buffer


def _adam(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = _THETA * buffer + (1 - _THETA) * g
    return buffer, w - _LR / (1 - _THETA**_T) * _raised(buffer)


def _adamw(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = _THETA * buffer + (1 - _THETA) * g
    return buffer, (1 - _LR * _DECAY) * w - _LR / (1 - _THETA**_T) * _raised(buffer)


def _soap(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer, w = _adam(w, buffer, g)
    return buffer, (1 - _LR * _DECAY) * w


def _muon(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = buffer + (1 - _MU) * (g - buffer)  # lerp
    return buffer, (1 - _LR * _DECAY) * w - _LR * _SCALE * _raised(buffer)


def _muon_nesterov(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = buffer + (1 - _MU) * (g - buffer)
    return buffer, (1 - _LR * _DECAY) * w - _LR * _SCALE * _raised(g + _MU * (buffer - g))


def _lion(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    u = _raised(_THETA * buffer + (1 - _THETA) * g)
    return _THETA2 * buffer + (1 - _THETA2) * g, w - _LR * (u + _DECAY * w)


def _normuon(w: Expr, buffer: Expr, g: Expr) -> tuple[Expr, Expr]:
    buffer = _MU * buffer + (1 - _MU) * g
    return buffer, w - _LR * _DECAY * w - _LR * _RMS_SCALE * _raised(buffer)


# The optimizer as published or as in torch, and the ratio of the row's momentum to the optimizer's buffer.
_RECURRENCES: dict[str, tuple[Recurrence, Expr]] = {
    "sgd": (_sgd, 1),
    "sgd-momentum": (_heavy_ball, 1),
    "sgd-nesterov": (_nesterov, 1),
    "rmsprop": (_preconditioned, 1),
    "rmsprop-momentum": (_preconditioned_buffer, 1),
    "adam": (_adam, 1),
    "adamw": (_adamw, 1),
    "muon": (_muon, 1),
    "muon-nesterov": (_muon_nesterov, _MU),
    "shampoo": (_preconditioned, 1),
    "shampoo-ema": (_adamw, 1),
    "soap": (_soap, 1),
    "lion": (_lion, _THETA / _THETA2),
    "normuon": (_normuon, 1),
    "kl-soap": (_adamw, 1),
    "kl-shampoo": (_adamw, 1),
}
