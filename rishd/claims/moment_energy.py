"""Claim C19: the energy of flows whose metric consists of averages of past gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.preconditioners.kronecker_root import KroneckerRoot
from discretizations.preconditioners.masks import CoordinateMask
from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.proofs import energies
from riemannian_ode import RISHD, Preconditioner, dissipation, energy_identity_residual, simulate
from riemannian_ode.energy import Dissipation
from riemannian_ode.stages import MASS
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Attained, Curve, Evidence, Identity, Panel, Proof
from rishd.claims.instances import rotations
from rishd.claims.norms import LinearObjective, MatrixRipples
from rishd.claims.trial import Box, Inequality, Parameters, Range, draw, try_bounds

_SHAPE = (3, 2)
_P = 6
_THETA2 = 0.9
_RATE2 = 1.0 - _THETA2  # α₂
_TINY = 1e-12  # ε so small that it does not matter
_MASK = CoordinateMask(sharp_fraction=0.3)
_METRICS: dict[str, Preconditioner] = {
    "Adam, RMSprop": SecondMoment(beta2=_THETA2, eps=1e-3),
    "Shampoo": KroneckerRoot(beta2=_THETA2, eps=1e-3),
    "SOAP between refreshes": EigenbasisMoment(beta2=_THETA2, eps=1e-3),
}
_BOX: Box = {
    "v": Range(1e-3, 1.0, _P, log=True),
    "left": Range(-1.0, 1.0, 9),
    "right": Range(-1.0, 1.0, 4),
    "m": Range(-1.0, 1.0, _P),
    "g": Range(-1.0, 1.0, _P),
    "size": Range(1e-3, 1.0, log=True),  # scale of g
    "mass": Range(0.05, 1.0),
    "alpha": Range(0.01, 1.0, log=True),
    "eta": Range(0.01, 1.0, log=True),
    "time": Range(0.01, 10.0, log=True),  # time in units of 1/α
    "ratio": Range(0.05, 4.0),  # values of α₂/α
    "chi": Range(1.0, 6.0),
}


@register_claim("C19", "energy of metrics with memory", seconds=12)
def moment_energy(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Adam, Shampoo and SOAP lose energy if their metric forgets at most four times as fast as their momentum.

    Statement: let F be the metric of averages at rate :math:`\alpha_2 = 1 - \theta_2`, and :math:`c_1`, :math:`c_2` the
    masses of bias correction (1 without it). :math:`E = cf + \frac{\eta}{2c_1}\lVert m\rVert^2_{F^{-1}}` obeys

    .. math::

       \dot E = -\frac{\eta}{c_1}\left[\alpha\lVert m\rVert^2 + c\beta\lVert g\rVert^2
       + \tfrac12 m^\top F^{-1}\dot FF^{-1}m + \frac{\alpha(1 - c_1)}{2c_1}\lVert m\rVert^2\right], \qquad
       -\tfrac12 m^\top F^{-1}\dot FF^{-1}m \le \frac{\alpha_2}{4c_2}\lVert m\rVert^2

    (norms of :math:`F^{-1}`). So E falls if :math:`\alpha_2 \le 4\alpha`, without bias correction, and at all times
    with both of Adam's corrections. If only v is corrected, E may rise until
    :math:`-\ln(1 - \alpha_2/4\alpha)/\alpha_2`. With LITE's mask by v at fixed thresholds, :math:`\frac{\alpha_2}{4}`
    becomes :math:`\frac{\alpha_2}{4} + \frac{e\alpha_2\bar s}{2\bar v}`, where e is the mask's elasticity and
    :math:`\bar s/\bar v` the mean square of the gradient over that of the memory.

    Hypotheses: :math:`\beta \ge 0`, :math:`\eta` constant; for SOAP a fixed basis (C19b has the refreshes).

    Proof: docs/theory, claim C19; symbolic for one coordinate, with both masses and with the mask.

    Check: random memories, momenta and gradients of 3×2 matrices, by the code's derivative of the metric; flows by RK4.

    Sharpness: on a plateau (g = 0, ε → 0) all of them attain the bound, and E rises as soon as
    :math:`\alpha_2 > 4\alpha`, and a step multiplies it by :math:`\theta_1^2/\sqrt{\theta_2}`.

    Finding: :math:`\theta_1^2/\sqrt{\theta_2} < 1` is the condition under which Kingma and Ba stated their theorem.

    Source: derived in docs/theory; Adam's energy: Barakat and Bianchi, arXiv:1810.02263.
    """
    return [
        Proof("Ė of a coordinate, masses in motion, and the bound's remainder", energies.memory_energy()),
        Proof("α₂ = 4α with both corrections", energies.corrected_condition()),
        Proof("plateau, in continuous time and step by step", energies.plateau()),
        Proof("mask by v", energies.mask_energy()),
        *try_bounds(_bounds, _BOX, rng, instances),
        *_attained(rng),
        *_switches(rng, instances),
        *(_trajectories(name, rng, instances) for name in _METRICS),
        _panel(),
    ]


def _memory(name: str, x: Parameters, mass: np.ndarray) -> dict[str, np.ndarray]:
    """Random memory with positive averages, and their mass."""
    n = len(mass)
    v = x["v"].reshape(n, *_SHAPE) * mass[:, None, None]
    factors = {}
    for key, side in (("left", 3), ("right", 2)):
        root = x[key].reshape(n, side, side)
        factors[key] = (root @ np.swapaxes(root, -1, -2) + 0.01 * np.eye(side)) * mass[:, None, None]
    if name == "Shampoo":
        return {**factors, "mass": mass}
    if name.startswith("SOAP"):
        bases = {"left_basis": rotations(x["left"][:, :3], 3), "right_basis": rotations(x["right"][:, :1], 2)}
        return {"v": v, "v_mass": mass, **factors, **bases}
    return {"v": v, "v_mass": mass}


def _losses(
    preconditioner: Preconditioner, memory: dict[str, np.ndarray], x: Parameters, g: np.ndarray, **settings: Any
) -> Dissipation:
    chosen: dict[str, Any] = {"alpha": x["alpha"], "eta": x["eta"], **settings}
    system = RISHD.from_optimizer(LinearObjective(g), preconditioner, shape=_SHAPE, **chosen)
    return dissipation(system, 0.0, 0.0 * g, x["m"], memory)


def _bounds(x: Parameters) -> dict[str, Inequality]:
    g, bounds = x["size"][:, None] * x["g"], {}
    for name, preconditioner in _METRICS.items():
        lost = _losses(preconditioner, _memory(name, x, x["mass"]), x, g)
        limit = lost.momentum / x["alpha"] * _RATE2 / (4.0 * x["mass"])
        bounds[f"energy added by F's motion over its bound, {name}"] = Inequality(-np.asarray(lost.memory), limit)
    bounds["the same with LITE's mask by v"] = _masked(x, g)
    bounds["energy added by F's motion over that lost otherwise, α₂ ≤ 4α, both corrected"] = _corrected(x, g)
    return bounds


def _masked(x: Parameters, g: np.ndarray) -> Inequality:
    """AdamW-LITE's metric with soft mask, at thresholds hi = 1 and lo = ½."""
    n = len(g)
    memory = _memory("Adam, RMSprop", x, np.ones(n)) | {"hi": np.ones(n), "lo": np.full(n, 0.5)}
    adam = SecondMoment(beta2=_THETA2, eps=_TINY, mask=_MASK)
    lost = _losses(adam, memory, x, g, chi=x["chi"])
    chi, level = x["chi"][:, None], x["v"] / x["v"].mean(-1, keepdims=True)
    flatness = np.clip((1.0 - level) / 0.5, 0.0, 1.0)
    a = (1.0 + (chi - 1.0) * flatness) / np.sqrt(x["v"])
    on_ramp = (level > 0.5) & (level < 1.0)
    elasticity = np.where(on_ramp, (chi - 1.0) * level / 0.5 / (1.0 + (chi - 1.0) * flatness), 0.0)
    growth = (g**2).mean(-1, keepdims=True) / x["v"].mean(-1, keepdims=True)
    limit = x["eta"] * _RATE2 * ((0.25 + 0.5 * elasticity * growth) * a * x["m"] ** 2).sum(-1)
    return Inequality(-np.asarray(lost.memory), limit)


def _corrected(x: Parameters, g: np.ndarray) -> Inequality:
    """Losses at time t of a run with both corrections; time is in units of 1/α₂ (α₂ = 1 − θ₂), so α varies."""
    alpha = _RATE2 / x["ratio"]
    masses = [1.0 - np.exp(-rate * x["time"] / alpha) for rate in (alpha, _RATE2)]
    memory = _memory("Adam, RMSprop", x, masses[1]) | {MASS: masses[0]}
    adam = SecondMoment(beta2=_THETA2, eps=_TINY)
    lost = _losses(adam, memory, {**x, "alpha": alpha}, g, corrects_momentum=True)
    return Inequality(-np.asarray(lost.memory), np.asarray(lost.momentum + lost.schedule))


def _plateau(name: str, x: Parameters, *, alpha: np.ndarray, mass: np.ndarray) -> Dissipation:
    """Energy losses where the gradient vanishes."""
    n = len(alpha)
    metrics = {
        "Adam, RMSprop": SecondMoment(beta2=_THETA2, eps=_TINY),
        "Shampoo": KroneckerRoot(beta2=_THETA2, eps=_TINY),
        "SOAP between refreshes": EigenbasisMoment(beta2=_THETA2, eps=_TINY),
    }
    return _losses(metrics[name], _memory(name, x, mass), {**x, "alpha": alpha}, np.zeros((n, _P)))


def _attained(rng: np.random.Generator) -> list[Evidence]:
    x, evidence = draw(_BOX, rng, 16), []
    for name in _METRICS:
        lost = _plateau(name, x, alpha=x["alpha"], mass=x["mass"])
        limit = lost.momentum / x["alpha"] * _RATE2 / (4.0 * x["mass"])
        off = np.abs(1.0 + np.asarray(lost.memory) / limit)
        evidence.append(Attained(f"bound on F's motion on a plateau, {name}", off, 1e-8, "ε"))
    return list(evidence)


def _switches(rng: np.random.Generator, instances: int) -> list[Evidence]:
    """The points at which E begins to rise on a plateau: α₂ = 4α, and a time if only v is corrected."""
    x, evidence = draw(_BOX, rng, instances), []
    for name in _METRICS:
        rises, falls = (
            _plateau(name, x, alpha=np.full(instances, _RATE2 / ratio), mass=np.ones(instances)).total
            for ratio in (4.004, 3.996)
        )
        wrong = ~((np.asarray(rises) < 0) & (np.asarray(falls) > 0))
        title = f"E on a plateau rises at α₂ = 4.004α and falls at 3.996α, {name} (share of exceptions)"
        evidence.append(Identity(title, wrong.astype(float), 0.0, "yes or no"))
    alpha = _RATE2 / np.minimum(x["ratio"], 3.9)
    end = -np.log1p(-_RATE2 / (4.0 * alpha)) / _RATE2
    early, late = (
        _plateau("Adam, RMSprop", x, alpha=alpha, mass=-np.expm1(-_RATE2 * share * end)).total
        for share in (0.999, 1.001)
    )
    wrong = ~((np.asarray(early) < 0) & (np.asarray(late) > 0))
    title = "only v corrected: E on a plateau rises until −ln(1 − α₂/4α)/α₂ (share of exceptions)"
    return [*evidence, Identity(title, wrong.astype(float), 0.0, "yes or no")]


def _trajectories(name: str, rng: np.random.Generator, instances: int) -> Identity:
    # Starts whose metric changes little within a step: v is not far below s(g), and nothing oscillates fast.
    mild = {"v": Range(0.1, 1.0, _P), "eta": Range(0.001, 0.05, log=True), "mass": Range(0.3, 1.0)}
    x = draw({**_BOX, **mild}, rng, instances)
    x["left"], x["right"] = (0.3 * x[key] + np.eye(side).ravel() for key, side in (("left", 3), ("right", 2)))
    objective = MatrixRipples.random(rng, instances, _SHAPE)
    system = RISHD.from_optimizer(
        objective,
        _METRICS[name],
        shape=_SHAPE,
        alpha=x["alpha"],
        eta=x["eta"],
        nesterov=x["mass"],
        corrects_momentum=True,
    )
    memory = _memory(name, x, x["mass"]) | {MASS: x["mass"]}
    w = 0.1 * rng.normal(size=(instances, _P))
    flow = simulate(
        system, w, x["m"], t0=0.1, memory0=memory, integrator="rk4", h=0.005, steps=50, progress=False
    ).checked()
    return Identity(
        f"energy balance along flows, {name}",
        energy_identity_residual(system, flow).residual,
        1e-5,
        "integrator and quadrature",
    )


def _panel() -> Panel:
    """Plot of the kinetic energy on a plateau, by α₂/α and correction."""
    t = np.linspace(0.0, 40.0, 161)[1:]
    alpha = 0.1
    curves = []
    for ratio in (1.0, 4.0, 8.0):
        rate = ratio * alpha
        label = f"no correction, α₂ = {ratio:g}α".replace("1α", "α")
        curves.append(Curve(label, t, np.exp((0.5 * rate - 2.0 * alpha) * t)))
    for label, both in (("only v corrected", False), ("both corrected", True)):
        c1, c2 = (-np.expm1(-rate * (t + 0.25)) for rate in (alpha, 2.0 * alpha))
        energy = np.exp((alpha - 2.0 * alpha) * t) * np.sqrt(c2) / (c1 if both else 1.0)
        curves.append(Curve(f"{label}, α₂ = 2α", t, energy / energy[0], "bound"))
    return Panel(
        "Energy of the momentum on a plateau (α = 0.1)", "t", "½‖m‖² in F⁻¹, over its start", tuple(curves), log="y"
    )
