"""Claim C18: the energy of flows whose direction is the gradient of a norm, or of another potential."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discretizations.proofs import energies
from riemannian_ode import RISHD, dissipation, energy_identity_residual, simulate, total_energy
from riemannian_ode.flow import Array
from rishd.claims.claim import register_claim
from rishd.claims.evidence import (
    Attained,
    Constant,
    Curve,
    Evidence,
    Hypothesis,
    Identity,
    Measurement,
    Panel,
    Proof,
)
from rishd.claims.norms import NORMS, LinearObjective, MatrixRipples, Norm, ky_fan, sharp_rank
from rishd.claims.trial import Box, Inequality, Parameters, Range, try_bounds

_GROUP, _LARGEST = 60, 32  # members that share a shape, and the longest side
_SHAPE, _STEP, _STEPS = (8, 3), 0.01, 40  # number of trajectories
_APART = 0.04  # relative to σ₁: singular values at least this far apart avoid kinks
_ROWS, _COLUMNS = 4, 3
_BOX: Box = {
    "m": Range(-1.0, 1.0, _ROWS * _COLUMNS),
    "g": Range(-1.0, 1.0, _ROWS * _COLUMNS),
    "w": Range(-1.0, 1.0, _ROWS * _COLUMNS),
    "lookahead": Range(0.01, 10.0, log=True),
    "beta_sharp": Range(-0.5, -0.01),
    "beta_flat": Range(0.0, 1.0),
    "chi": Range(1.0, 4.0),
    "alpha": Range(0.05, 1.0),
    "eta": Range(0.01, 1.0, log=True),
    "decay": Range(0.1, 0.5),
}


@register_claim("C18", "energy of flows with norms", seconds=25)
def norm_energy(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Muon, sign descent and LITE with its moving mask have an exact energy, although no F(w) exists.

    Statement: let :math:`\dot w = -\eta[\nabla\varphi(m) + d] - \eta\lambda w`,
    :math:`\dot m = -\alpha m + c\,g`. Wherever :math:`\varphi` is differentiable,
    :math:`E = cf + \eta\varphi(m) + \eta\lambda\langle w, m\rangle` obeys

    .. math::

       \dot E = -\eta(\alpha + \eta\lambda)\langle m, \nabla\varphi(m) + \lambda w\rangle
       - \eta\langle cg + \eta\lambda m, d\rangle + \dot\eta\,(\varphi + \lambda\langle w, m\rangle),

    and :math:`\langle m, \nabla\varphi\rangle = p\varphi` for degree :math:`p`. Muon's potential is the nuclear norm,
    sign descent's is :math:`\lVert m\rVert_1`, and Muon-LITE's with the exact top-k right singular space of m as its
    mask is :math:`\varphi = \sum_{i\le k}\sigma_i + \chi\sum_{i>k}\sigma_i`. Its damping spends at most
    :math:`\eta c\lvert\beta_1\rvert\lVert g\rVert_{(k)}` if :math:`\beta_1 < 0`. Look-ahead with a convex
    :math:`\varphi` spends nothing. With decay and the nuclear norm, :math:`\varphi + \lambda\langle w, m\rangle \ge 0`
    in the ball :math:`\lambda\lVert w\rVert_{\mathrm{op}} \le 1`, which Muon's flow never leaves; with any convex
    :math:`\varphi`

    .. math::

       E + \frac{\alpha + \eta\lambda}{\lambda}\varphi^*(-\lambda w) \quad\text{falls at the rate}\quad
       \eta(\alpha + \eta\lambda)\langle m - \nabla\varphi^*(-\lambda w), \nabla\varphi(m) + \lambda w\rangle \ge 0 .

    Hypotheses: :math:`\varphi` differentiable at m: no singular value or entry passes 0, and
    :math:`\sigma_k \ne \sigma_{k+1}`; :math:`\eta`, :math:`\lambda` constant if there is decay.

    Proof: docs/theory, claim C18; symbolic in dimension 2 with undetermined f, φ and φ*.

    Check: matrices up to 32×32; an independent implementation of E by singular values is differentiated along the
    flow's rates. Flows of 8×3 matrices by RK4 between kinks. Damping and look-ahead on 4×3 matrices, with an adversary.

    Sharpness: damping attains its bound if g has m's sharp space and :math:`\beta_2 = 0`; the ball's bracket is 0 at
    :math:`w = -\mathrm{msign}(m)/\lambda`.

    Finding: with :math:`\chi > 1` the potential is not convex, and look-ahead may spend energy.

    Source: derived in docs/theory; for convex :math:`\varphi` Chen et al., arXiv:2310.05898.
    """
    evidence: list[Evidence | Panel] = [
        Proof("Ė of any potential, dimension 2", energies.norm_energy()),
        Proof("decay with the conjugate, dimension 2", energies.decay_energy()),
    ]
    for name, norm in NORMS.items():
        slope, energy = _pointwise(norm, rng, instances)
        evidence += [
            Identity(f"Ė along the flow's rates, {name}, up to 32×32", slope, 1e-9, "rounding near kinks"),
            Constant(f"energy in the code over cf + ηφ + ηλ⟨w, m⟩, {name}, minus 1", energy, 1e-11, "rounding"),
            _trajectories(name, norm, rng, instances),
        ]
    return [
        *evidence,
        *(_conjugate(name, rng, instances) for name in ("½‖·‖²", "½‖·‖²_*")),
        *try_bounds(_bounds, _BOX, rng, instances, slack=1e-7),
        *_attained(rng),
        Measurement("−⟨g, d⟩ of look-ahead over ‖g‖_*, Ky Fan with χ = 4", -_lookahead_of_mask(rng, instances)),
        _panel(rng),
    ]


def _groups(rng: np.random.Generator, instances: int) -> Iterator[tuple[int, tuple[int, int]]]:
    for start in range(0, instances, _GROUP):
        rows, columns = rng.integers(2, _LARGEST + 1, 2)
        yield min(_GROUP, instances - start), (int(rows), int(columns))


def _settings(rng: np.random.Generator, n: int) -> dict[str, Any]:
    names = {"alpha": (0.05, 1.0), "eta": (0.01, 0.5), "gain": (0.1, 1.0), "nesterov": (0.0, 1.0), "decay": (0.0, 0.5)}
    drawn: dict[str, Any] = {name: rng.uniform(*ends, n) for name, ends in names.items()}
    return drawn | {
        "beta": rng.uniform(-0.1, 0.5, n),
        "beta_flat": rng.uniform(0.5, 2.0, n),
        "chi": rng.uniform(1, 4, n),
    }


def _pointwise(norm: Norm, rng: np.random.Generator, instances: int) -> tuple[np.ndarray, np.ndarray]:
    """Ė by differentiation minus the code's −dissipation, and E minus the code's E, both relative."""
    slopes, energies_off = [], []
    for n, shape in _groups(rng, instances):
        objective, settings = MatrixRipples.random(rng, n, shape), _settings(rng, n)
        w, m = rng.normal(size=(2, n, shape[0] * shape[1]))
        system = norm.flow(objective, **settings)
        rates = system.rates(0.0, w, m)
        energy, slope = _along(_energy(norm, objective, settings, shape), (w, m), rates)
        lost = dissipation(system, 0.0, w, m)
        scale = sum(np.abs(part) for part in lost[1:]) + np.abs((objective.gradient(w) * rates[0]).sum(-1))
        slopes.append(np.abs(slope + lost.total) / scale)
        energies_off.append(np.abs(total_energy(system, 0.0, w, m) / energy - 1.0))
    return np.concatenate(slopes), np.concatenate(energies_off)


def _energy(norm: Norm, objective: MatrixRipples, settings: dict[str, Any], shape: tuple[int, int]) -> Any:
    """The energy cf + ηφ(m) + ηλ⟨w, m⟩, implemented independently of the code."""
    eta, gain, chi, decay = (torch.as_tensor(settings[name]) for name in ("eta", "gain", "chi", "decay"))

    def energy(w: Tensor, m: Tensor) -> Tensor:
        phi = norm.potential(m.reshape(-1, *shape), chi)
        value: Tensor = gain * objective.value(w) + eta * (phi + decay * (w * m).sum(-1))
        return value

    return energy


def _along(energy: Any, state: tuple[np.ndarray, ...], rates: tuple[Array, Array]) -> tuple[np.ndarray, np.ndarray]:
    """Energy at a state and its derivative along rates."""
    at, to = (tuple(torch.as_tensor(x) for x in part) for part in (state, rates))
    moved: Any = torch.func.jvp(energy, at, to)
    return moved[0].numpy(), moved[1].numpy()


def _trajectories(name: str, norm: Norm, rng: np.random.Generator, instances: int) -> Identity:
    objective, settings = MatrixRipples.random(rng, instances, _SHAPE), _settings(rng, instances)
    w, m = rng.normal(size=(2, instances, _SHAPE[0] * _SHAPE[1]))
    if norm.is_elementwise:  # entries stay away from 0, and the only kinks are those of m
        settings |= {"beta": 0.0, "beta_flat": 0.0, "nesterov": 0.0, "gain": 0.3 * settings["gain"]}
        m = m + np.sign(m)
    system = norm.flow(objective, **settings)
    flow = simulate(system, w, m, integrator="rk4", h=_STEP, steps=_STEPS, progress=False).checked()
    smooth = _stays_smooth(norm, flow.m, objective.gradient, flow.w, settings["nesterov"])
    return Identity(
        f"energy balance along flows of 8×3 matrices, {name}",
        energy_identity_residual(system, flow).residual,
        1e-5,
        "integrator and quadrature near kinks",
        hypotheses=(Hypothesis("no kink on the way", smooth),),
    )


def _stays_smooth(norm: Norm, m: np.ndarray, gradient: Any, w: np.ndarray, nesterov: Any) -> np.ndarray:
    """Whether momentum, look-ahead and gradient of each member avoid kinks of φ."""
    if norm.is_elementwise:
        return np.asarray((np.sign(m) == np.sign(m[0])).all((0, -1)))
    if norm.degree == 2 and not norm.preconditioner.needs_matrices:
        return np.ones(m.shape[1], dtype=bool)
    g = np.stack([gradient(x) for x in w])
    smooth = np.ones(m.shape[1], dtype=bool)
    for x in (m, m + nesterov[:, None] * g, g):
        values = np.linalg.svd(x.reshape(*x.shape[:-1], *_SHAPE), compute_uv=False)
        rank = sharp_rank(_SHAPE)
        gaps = np.minimum(values[..., -1], values[..., rank - 1] - values[..., rank] if norm.has_mask else np.inf)
        smooth &= (gaps > _APART * values[..., 0]).all(0)
    return smooth


def _conjugate(name: str, rng: np.random.Generator, instances: int) -> Identity:
    """Ė of the energy with φ*, by differentiation, against −η(α + ηλ)⟨m − ∇φ*, ∇φ − y⟩ with y = −λw."""
    norm, residuals = NORMS[name], []
    for n, shape in _groups(rng, instances):
        objective, settings = MatrixRipples.random(rng, n, shape), _settings(rng, n)
        settings |= {"beta": 0.0, "beta_flat": 0.0, "nesterov": 0.0, "decay": settings["decay"] + 0.1}
        eta, alpha, decay = (settings[key] for key in ("eta", "alpha", "decay"))
        w, m = rng.normal(size=(2, n, shape[0] * shape[1]))
        system, base = norm.flow(objective, **settings), _energy(norm, objective, settings, shape)
        weights = torch.as_tensor(decay), torch.as_tensor(alpha + eta * decay)
        conjugate = partial(_with_conjugate, base, norm, weights, shape)
        rates = system.rates(0.0, w, m)
        _, slope = _along(conjugate, (w, m), rates)
        y = -decay[:, None] * w
        direction = -rates[0] / eta[:, None] + y
        inner = ((m - _dual_point(norm, y, shape)) * (direction - y)).sum(-1)
        claimed = -eta * (alpha + eta * decay) * inner
        residuals.append(np.abs(slope - claimed) / (np.abs(claimed) + np.abs((m * direction).sum(-1)) * eta))
    return Identity(f"Ė with decay and the conjugate, {name}", np.concatenate(residuals), 1e-9, "rounding")


def _with_conjugate(
    base: Any, norm: Norm, weights: tuple[Tensor, Tensor], shape: tuple[int, int], w: Tensor, m: Tensor
) -> Tensor:
    """E + ((α + ηλ)/λ)φ*(−λw), with weights λ and α + ηλ."""
    decay, rate = weights
    y = (decay[:, None] * w).reshape(-1, *shape)
    dual = torch.linalg.matrix_norm(y, 2) if norm.preconditioner.needs_matrices else y.flatten(1).norm(dim=-1)
    energy: Tensor = base(w, m) + rate / decay * 0.5 * dual**2
    return energy


def _dual_point(norm: Norm, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """∇φ*(y): y itself, or its leading singular part."""
    if not norm.preconditioner.needs_matrices:
        return y
    u, sigma, v = np.linalg.svd(y.reshape(-1, *shape), full_matrices=False)
    leading = sigma[:, :1, None] * u[:, :, :1] * v[:, :1]
    return np.asarray(leading.reshape(y.shape))


def _bounds(x: Parameters) -> dict[str, Inequality]:
    shape = (_ROWS, _COLUMNS)
    m, g, w = (x[name].reshape(-1, *shape) for name in ("m", "g", "w"))
    spent, limit = _spent(x["m"], x["g"], x)
    bounds = {"spent by damping over cη|β₁|‖g‖_(k), β₂ ≥ 0": Inequality(spent, limit)}
    ahead = m + x["lookahead"][:, None, None] * g
    for name in ("ℓ₁", "nuclear"):
        norm = NORMS[name]
        phi_g = norm.potential(torch.as_tensor(g), torch.ones(len(g))).numpy()
        now, then = ((g * _direction(norm, y)).sum((-1, -2)) for y in (m, ahead))
        bounds[f"⟨g, ∇φ⟩ + φ(g) at m over that at m + bg, {name}"] = Inequality(phi_g + now, phi_g + then)
    nuclear = NORMS["nuclear"].potential(torch.as_tensor(m), torch.ones(len(m))).numpy()
    largest = np.linalg.norm(w, ord=2, axis=(-2, -1))
    inside = {"λ‖w‖ ≤ 1": x["decay"] * largest <= 1.0}
    bounds["−λ⟨w, m⟩ over ‖m‖_* in the ball"] = Inequality(-x["decay"] * (w * m).sum((-1, -2)), nuclear, inside)
    start = np.maximum(1.0, x["decay"] * largest)
    bounds["λ‖w‖ of Muon's flow over max(1, its start)"] = Inequality(_largest_on_the_way(x, largest), start)
    return bounds


def _direction(norm: Norm, m: np.ndarray) -> np.ndarray:
    return np.asarray(norm.preconditioner.raise_index({}, torch.as_tensor(m)).numpy())


def _mask_flow(g: np.ndarray, x: Parameters) -> RISHD:
    """Muon-LITE's flow with the exact mask at a given gradient."""
    settings: dict[str, Any] = {name: x[name] for name in ("alpha", "eta", "chi")}
    betas: dict[str, Any] = {"beta": x["beta_sharp"], "beta_flat": x["beta_flat"]}
    mask = NORMS["Ky Fan"].preconditioner
    return RISHD.from_optimizer(LinearObjective(g), mask, shape=(_ROWS, _COLUMNS), **settings, **betas)


def _spent(m: np.ndarray, g: np.ndarray, x: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Energy spent by damping according to the code, and η|β₁| times the gradient's Ky Fan norm."""
    system = _mask_flow(g, x)
    matrices = torch.as_tensor(g.reshape(-1, _ROWS, _COLUMNS))
    sharp = ky_fan(matrices, torch.zeros(len(g), dtype=torch.float64)).numpy()
    return -np.asarray(dissipation(system, 0.0, 0.0 * g, m).damping), x["eta"] * np.abs(x["beta_sharp"]) * sharp


def _largest_on_the_way(x: Parameters, largest: np.ndarray) -> np.ndarray:
    """Largest λ‖w‖ along Muon's flow on a linear objective, starting inside or outside the ball."""
    settings: dict[str, Any] = {name: x[name] for name in ("alpha", "eta", "decay")}
    system = RISHD.from_optimizer(
        LinearObjective(x["g"]), NORMS["nuclear"].preconditioner, shape=(_ROWS, _COLUMNS), **settings
    )
    flow = simulate(system, x["w"], x["m"], integrator="semi-implicit-euler", h=1.0, steps=10, progress=False).checked()
    sizes = np.linalg.norm(flow.w.reshape(*flow.w.shape[:-1], _ROWS, _COLUMNS), ord=2, axis=(-2, -1))
    return np.asarray(x["decay"] * sizes.max(0))


def _attained(rng: np.random.Generator) -> list[Evidence]:
    n = 16
    m = rng.normal(size=(n, _ROWS * _COLUMNS))
    x = {"alpha": np.ones(n), "eta": np.ones(n), "chi": np.full(n, 2.0), "beta_sharp": np.full(n, -0.25)}
    x["beta_flat"] = np.zeros(n)
    spent, limit = _spent(m, 3.0 * m, x)
    matrices = m.reshape(-1, _ROWS, _COLUMNS)
    nuclear = np.linalg.svd(matrices, compute_uv=False).sum(-1)
    against = (_direction(NORMS["nuclear"], matrices) * matrices).sum((-1, -2))  # −λ⟨w, m⟩ at w = −msign(m)/λ
    return [
        Attained("spent by damping over its bound, g = 3m, β₂ = 0", np.abs(1.0 - spent / limit), 1e-12, "rounding"),
        Attained("−λ⟨w, m⟩ over ‖m‖_* at w = −msign(m)/λ", np.abs(1.0 - against / nuclear), 1e-12, "rounding"),
    ]


def _lookahead_of_mask(rng: np.random.Generator, instances: int) -> np.ndarray:
    """⟨g, d⟩/‖g‖_*, d = ∇φ(m + bg) − ∇φ(m), b = 1, for the mask's potential, which is not convex."""
    m, g = rng.normal(size=(2, instances, _ROWS * _COLUMNS))
    settings: dict[str, Any] = {"alpha": 1.0, "eta": 1.0, "chi": 4.0, "nesterov": 1.0}
    mask = NORMS["Ky Fan"].preconditioner
    system = RISHD.from_optimizer(LinearObjective(g), mask, shape=(_ROWS, _COLUMNS), **settings)
    size = np.linalg.svd(g.reshape(-1, _ROWS, _COLUMNS), compute_uv=False).sum(-1)
    return np.asarray(dissipation(system, 0.0, m, m).damping / size)


def _panel(rng: np.random.Generator) -> Panel:
    """Plot of loss and energy of one flow of Muon-LITE with its moving mask."""
    objective = MatrixRipples.random(rng, 1, (6, 4))
    w, m = 2.0 * rng.normal(size=(1, 24)), np.zeros((1, 24))
    chi = np.array([3.0])
    system = NORMS["Ky Fan"].flow(objective, alpha=0.3, eta=0.05, chi=chi, beta_flat=np.zeros(1))
    flow = simulate(system, w, m, integrator="rk4", h=0.25, steps=100, progress=False).checked()
    energy = np.array([total_energy(system, 0.0, *state)[0] for state in zip(flow.w, flow.m, strict=True)])
    loss = np.array([objective.value(x)[0] for x in flow.w])
    balance = energy[0] - energy_identity_residual(system, flow).dissipated[:, 0]
    return Panel(
        "Muon-LITE's flow with its exact mask (χ = 3, 6×4)",
        "t",
        "loss and energy",
        (
            Curve("f", flow.times, loss),
            Curve("E = f + ηφ(m)", flow.times, energy),
            Curve("E(0) − ∫ηαφ dt", flow.times, balance, "reference"),
        ),
    )
