"""Conditions on RISHD's two sets of coefficients, and the relation between the sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.checks import shown
from riemannian_ode.coefficients import (
    Coefficient,
    TimeDependent,
    add,
    at,
    check_finite,
    check_range,
    is_time_dependent,
    rate,
)


def check_optimizer(
    alpha: Coefficient,
    eta: Coefficient,
    beta: Coefficient,
    beta_flat: Coefficient | None,
    chi: Coefficient,
    nesterov: Coefficient,
    gain: Coefficient,
    *,
    has_split: bool,
) -> None:
    """Refuse constants that :meth:`riemannian_ode.RISHD.from_optimizer` does not accept, naming the argument."""
    flat_damping = beta if beta_flat is None else beta_flat
    check_range("alpha", alpha, 0.0, "it is the damping 1 − momentum", strict=True)
    check_range("eta", eta, 0.0, "it is the learning rate", strict=False)
    check_range("chi", chi, 0.0, "it scales flat directions; χ = 1 is the base method", strict=False)
    for name, value in (("beta", beta), ("beta_flat", flat_damping)):
        check_finite(name, value)
        check_gamma(name, add(nesterov, value), alpha, gain)
    if not has_split:
        if beta_flat is not None or not (isinstance(chi, (int, float, np.number)) and chi == 1):
            raise ValueError(
                "chi and beta_flat act on flat directions, but none are named; pass flat=landscape.flat_split (or "
                "riemannian_ode.ConstantSplit), or leave chi = 1 and beta_flat = None."
            )
    elif not is_time_dependent(beta, flat_damping) and np.any(to_numpy(flat_damping) < to_numpy(beta)):
        raise ValueError(
            f"beta_flat = {shown(flat_damping)} is below beta = {shown(beta)}; LITE damps flat directions at least as "
            "much."
        )


def check_gamma(name: str, beta: Coefficient, alpha: Coefficient, gain: Coefficient) -> None:
    """Refuse a β with c + αβ ≤ 0: the force γ grad f of the second-order form would point uphill."""
    if is_time_dependent(beta, alpha, gain):
        return
    gamma = to_numpy(gain) + to_numpy(alpha) * to_numpy(beta)
    if float(np.min(gamma)) <= 0 or not math.isfinite(float(np.min(gamma))):
        raise ValueError(
            f"{name} = {shown(beta)} makes γ/η = c + αβ = {float(np.min(gamma)):.3g} non-positive, so the flow would "
            f"climb the gradient; take {name} > −c/α (c = 1 for a summed momentum)."
        )


def gain_of(alpha: Any, beta: Any, gamma: Any) -> Coefficient:
    r"""Gain :math:`c = \gamma - \alpha\beta - \dot\beta` of the form in :math:`v = \dot w + \beta\,\mathrm{grad} f`.

    Raises:
        ValueError: for a β that varies in time without its derivative.

    Source: docs/theory, claim C15.
    """
    if not is_time_dependent(alpha, beta, gamma):
        return gamma - alpha * beta
    if isinstance(beta, TimeDependent) and beta.derivative is None:
        raise ValueError("beta varies in time, and γ − αβ − β̇ needs β̇: give TimeDependent(value, derivative).")
    return TimeDependent(lambda t: at(gamma, t) - at(alpha, t) * at(beta, t) - rate(beta, t))
