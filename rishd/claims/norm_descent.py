"""Claim C18b: the change of claim C18's energy in a step of Muon, sign descent and LITE's moving mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from discretizations.proofs import energies
from discretizations.update_rule import UpdateRule
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Attained, Curve, Evidence, Hypothesis, Identity, Measurement, Panel, Proof
from rishd.claims.norms import NORMS, SHARP_FRACTION, MatrixRipples, Norm, sharp_rank
from rishd.claims.trial import Box, Inequality, Parameters, Range, try_bounds

_SHAPE = (4, 3)
_P = _SHAPE[0] * _SHAPE[1]
_BOX: Box = {
    "left": Range(0.05, 2.0, _SHAPE[0], log=True),
    "right": Range(0.05, 2.0, _SHAPE[1], log=True),
    "ripple": Range(0.0, 1.0, _P),
    "w": Range(-3.0, 3.0, _P),
    "m": Range(-1.0, 1.0, _P),
    "eta": Range(0.001, 0.5, log=True),
    "alpha": Range(0.02, 1.0, log=True),
    "chi": Range(1.0, 6.0),
    "lookahead": Range(0.0, 5.0),
}
_GAP = 0.01  # smallest gap of singular values: below it, small rotations of m rotate its sharp space far
_TURN_BOX: Box = {"m": Range(-1.0, 1.0, _P), "turn": Range(-1.0, 1.0, _P), "chi": Range(1.01, 6.0)}


@register_claim("C18b", "a step's energy with norms", seconds=6)
def norm_descent(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The energy that a step of the update rule adds for norms, and the cost of the mask's rotation.

    Statement: let :math:`m_k = (1 - \alpha)m_{k-1} + g_k` and :math:`w_{k+1} = w_k - \eta G(m_k)`, where
    :math:`G = \nabla\varphi` and :math:`\varphi` has degree p. With

    .. math:: \Delta = \langle m_{k-1}, G(m_k)\rangle - \varphi(m_{k-1}) - (p - 1)\varphi(m_k),

    .. math::

       f(w_{k+1}) + \eta\,[1 + \alpha(p - 1)]\,\varphi(m_k) \le f(w_k) + \eta(1 - \alpha)\varphi(m_{k-1})
       + \frac{L\eta^2}{2}\lVert G(m_k)\rVert^2 + \eta(1 - \alpha)\Delta .

    :math:`\Delta \le 0` for convex :math:`\varphi`, also if the step is :math:`G(m_k + bg_k)`, b > 0. For the mask with
    :math:`\chi > 1`

    .. math:: \Delta \le (\chi - 1)\sum_{i\le k}\sigma_i(m_{k-1})\sin\theta^L_i\sin\theta^R_i ,

    of second order in the angles by which the left and right sharp spaces of m rotate.

    Hypotheses: f L-smooth in the Frobenius norm.

    Proof: docs/theory, claim C18; symbolic: the weights.

    Check: rippled quadratics of 4×3 matrices with their own L, by the code's update rule, with an adversary on every
    bound; the rotation term on random pairs of momenta, close and far apart.

    Sharpness: quadratics with Hessian L·I and parallel momenta attain the step's bound. Momenta
    :math:`m_{k-1} \succeq 0` of rank k and :math:`m_k \succ 0` attain the bound on :math:`\Delta`.

    Source: derived in docs/theory.
    """
    small, exponent, gap = _small_turns(rng, instances)
    return [
        Proof("weights of the inequality", energies.norm_descent()),
        *try_bounds(_steps, _BOX, rng, instances, slack=1e-9),
        *try_bounds(_turns, _TURN_BOX, rng, instances, slack=1e-9),
        *_attained(rng),
        Measurement("Δ over its bound, small turns", small),
        Identity(
            "exponent of the turn in the bound on Δ, minus 2",
            np.abs(exponent - 2.0),
            0.05,
            "next order at turns of 1e−5 over the gap",
            (Hypothesis(f"σ_k − σ_{{k+1}} ≥ {_GAP:g}", gap >= _GAP),),
        ),
        _panel(rng),
    ]


def _objective(x: Parameters) -> MatrixRipples:
    n = len(x["eta"])
    left, right = (np.eye(side) * x[name][:, None] for name, side in (("left", _SHAPE[0]), ("right", _SHAPE[1])))
    return MatrixRipples(left, right, x["ripple"].reshape(n, *_SHAPE))


def _steps(x: Parameters) -> dict[str, Inequality]:
    bounds = {}
    for name, norm in NORMS.items():
        chi = x["chi"] if norm.has_mask else np.ones_like(x["chi"])
        bounds[f"energy after a step over its bound, {name}"] = _step(norm, x, chi=chi, nesterov=np.zeros_like(chi))
        if norm.degree == 1 and not norm.has_mask:
            bounds[f"the same with look-ahead, {name}"] = _step(norm, x, chi=chi, nesterov=x["lookahead"])
    return bounds


def _step(norm: Norm, x: Parameters, *, chi: np.ndarray, nesterov: np.ndarray) -> Inequality:
    """Both sides of the step's inequality, by the code's update rule."""
    objective = _objective(x)
    alpha, eta = x["alpha"], x["eta"]
    column: dict[str, Any] = {
        name: torch.as_tensor(y[:, None, None])
        for name, y in {"alpha": alpha, "chi": chi, "nesterov": nesterov}.items()
    }
    rule = UpdateRule(preconditioner=norm.preconditioner, is_split=norm.has_mask, **column)
    w, m, g = (torch.as_tensor(y.reshape(-1, *_SHAPE)) for y in (x["w"], x["m"], objective.gradient(x["w"])))
    after = rule.step(rule.start(w, batch=1)._replace(m=m), g, eta=torch.as_tensor(eta)[:, None, None])
    p, ones = norm.degree, torch.as_tensor(chi)
    before, now = (norm.potential(y, ones).numpy() for y in (m, after.m))
    moved = (w - after.w).numpy() / eta[:, None, None]
    excess = 0.0
    if norm.has_mask:  # Δ, which is absent for convex potentials
        excess = (m.numpy() * moved).sum((-1, -2)) - before - (p - 1) * now
    value = objective.value(after.w.numpy()) + eta * (1.0 + alpha * (p - 1)) * now
    limit = objective.value(x["w"]) + eta * (1.0 - alpha) * (before + excess)
    limit = limit + 0.5 * objective.smoothness * eta**2 * (moved**2).sum((-1, -2))
    return Inequality(value, limit)


def _turns(x: Parameters) -> dict[str, Inequality]:
    before = x["m"].reshape(-1, *_SHAPE)
    far = x["turn"].reshape(-1, *_SHAPE)
    excess, limit = _turning(before, far, x["chi"])
    near_excess, near_limit = _turning(before, before + 0.1 * far, x["chi"])
    return {
        "Δ over (χ−1)Σσ sinθᴸ sinθᴿ, any two momenta": Inequality(excess, limit),
        "Δ over (χ−1)Σσ sinθᴸ sinθᴿ, near momenta": Inequality(near_excess, near_limit),
    }


def _turning(before: np.ndarray, now: np.ndarray, chi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Δ for the mask's potential, and its bound, for two momenta ``(n, rows, columns)``."""
    rank = sharp_rank(before.shape)
    (u, sigma, v), (new_u, _, new_v) = (np.linalg.svd(x, full_matrices=False) for x in (before, now))
    flatness = np.where(np.arange(sigma.shape[-1]) < rank, 1.0, chi[:, None])
    directions = [(a * flatness[:, None, :]) @ b for a, b in ((u, v), (new_u, new_v))]
    excess = (before * (directions[1] - directions[0])).sum((-1, -2))
    sines = [_sines(u[..., :rank], new_u[..., :rank]), _sines(*(np.swapaxes(x[:, :rank], -1, -2) for x in (v, new_v)))]
    return excess, (chi - 1.0) * (sigma[:, :rank] * sines[0] * sines[1]).sum(-1)


def _sines(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Sines of the principal angles between two spaces, largest first."""
    rest = old - new @ (np.swapaxes(new, -1, -2) @ old)
    return np.asarray(np.linalg.svd(rest, compute_uv=False))


def _attained(rng: np.random.Generator) -> list[Evidence]:
    n = 16
    m, curvature = rng.normal(size=(n, *_SHAPE)), rng.uniform(0.1, 2.0, n)
    alpha, eta = rng.uniform(0.05, 1.0, n), rng.uniform(0.01, 0.5, n)
    parallel: dict[str, np.ndarray] = {"alpha": alpha, "eta": eta, "m": m.reshape(n, -1)}
    parallel["left"], parallel["right"] = np.ones((n, _SHAPE[0])) * curvature[:, None], np.ones((n, _SHAPE[1]))
    parallel |= {"ripple": np.zeros((n, _P)), "w": parallel["m"] * rng.uniform(0.1, 3.0, (n, 1))}
    evidence: list[Evidence] = []
    for name, norm in NORMS.items():
        if norm.degree == 1:
            tried = _step(norm, parallel, chi=np.full(n, 3.0 if norm.has_mask else 1.0), nesterov=np.zeros(n))
            off = np.abs(1.0 - tried.value / tried.limit)
            evidence.append(Attained(f"step's bound, Hessian L·I, parallel momenta, {name}", off, 1e-12, "rounding"))
    side = round(1.0 / SHARP_FRACTION)  # with one sharp direction
    vector = rng.normal(size=(n, side, 1))
    base = rng.normal(size=(n, side, side))
    positive = base @ np.swapaxes(base, -1, -2)
    excess, limit = _turning(vector @ np.swapaxes(vector, -1, -2), positive, np.full(n, 3.0))
    off = np.abs(1.0 - excess / limit)
    return [*evidence, Attained("Δ over its bound, m₀ ⪰ 0 of rank k, m₁ ≻ 0", off, 1e-9, "rounding")]


def _small_turns(rng: np.random.Generator, instances: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tightness of the bound on Δ at a rotation of 1e−5, the power of the rotation in it, and the gap σ_k − σ_{k+1}."""
    before, change = rng.normal(size=(2, instances, *_SHAPE))
    chi = np.full(instances, 3.0)
    limits, excesses = [], []
    for size in (1e-5, 1e-6):
        excess, limit = _turning(before, before + size * change, chi)
        excesses.append(excess)
        limits.append(limit)
    sigma, rank = np.linalg.svd(before, compute_uv=False), sharp_rank(before.shape)
    return excesses[0] / limits[0], np.log10(limits[0] / limits[1]), sigma[:, rank - 1] - sigma[:, rank]


def _panel(rng: np.random.Generator) -> Panel:
    """Plot of the energy removed by damping, and the terms that may raise it, along Muon-LITE's updates."""
    objective, x = MatrixRipples.random(rng, 1, (6, 4)), 2.0 * rng.normal(size=(1, 24))
    mask, steps = NORMS["Ky Fan"], 150
    rule = UpdateRule(preconditioner=mask.preconditioner, alpha=0.1, chi=3.0)
    state, potential = rule.start(torch.as_tensor(x.reshape(1, 6, 4)), batch=1), _potential(mask)
    turns, smooth, damped = [], [], []
    for _ in range(steps):
        g = torch.as_tensor(objective.gradient(state.w.numpy()))
        after = rule.step(state, g, eta=0.01)
        moved = (state.w - after.w).numpy() / 0.01
        turns.append(0.01 * 0.9 * float((state.m.numpy() * moved).sum() - potential(state.m.numpy())))
        smooth.append(0.5 * float(objective.smoothness[0]) * 0.01**2 * float((moved**2).sum()))
        damped.append(0.01 * 0.1 * potential(state.m.numpy()))
        state = after
    k = np.arange(1, steps + 1)
    return Panel(
        "Terms of the energy, Muon-LITE, χ = 3, 6×4",
        "step",
        "change of the energy in a step",
        (
            Curve("ηαφ, what damping takes", k[1:], np.array(damped[1:])),
            Curve("½Lη²‖G‖²", k, np.array(smooth)),
            Curve("|η(1−α)Δ|, the mask's turning", k[1:], np.abs(turns[1:])),
        ),
        log="y",
    )


def _potential(norm: Norm) -> Callable[[np.ndarray], float]:
    return lambda m: float(norm.potential(torch.as_tensor(m), torch.full((1,), 3.0, dtype=torch.float64)))
