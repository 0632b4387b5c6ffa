"""Claim C9: energies that the update rule never increases, and how tight they are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from discretizations.certificate import (
    Certificate,
    block_curvatures,
    descent_form,
    lookahead_certificate,
    noise_growth,
)
from discretizations.proofs import lyapunov
from discretizations.stability import descent_limit, stable_limit, step_matrix
from riemannian_ode import Objective
from riemannian_ode.arrays import matvec
from rishd.claims import constants
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Evidence, Identity, Measurement, Panel, Proof
from rishd.claims.geometry import SplitGeometry, Step, geometry_box, split_geometry
from rishd.claims.instances import RippledQuadratic, from_spectrum, rotations
from rishd.claims.sharpness import limits_panel
from rishd.claims.trial import Box, Inequality, Parameters, Range, draw, try_bounds
from rishd.claims.valleys import VALLEY_BOX, bounded_valleys

_STEPS = 120
_NOISY_STEP = 4  # step at which the noise's effect is averaged, with nonzero momentum
_SHARED: Box = {
    "momentum": Range(-1.0, 1.0),
    "alpha": Range(0.02, 1.0, log=True),
    "balance": Range(0.05, 20.0, log=True),  # values of t in the coupling
    "share": Range(0.1, 1.05),  # of the largest certified learning rate; beyond 1 the claim is not applicable
    "noise": Range(0.01, 1.0, log=True),
}
_VALLEY_BOX: Box = {
    **VALLEY_BOX,
    "metric": Range(0.5, 2.0, 2, log=True),
    "chi": Range(1.0, 30.0, log=True),
    "beta_sharp": Range(-0.45, 3.0),
    "beta_gap": Range(0.0, 5.0),
    "start": Range(-6.0, 6.0, 2),
    **_SHARED,
}
_RIPPLE_P = 4
_RIPPLE_BOX: Box = {
    **geometry_box(_RIPPLE_P, beta_sharp=(-0.45, 3.0)),
    "axes": Range(-0.5, 0.5, _RIPPLE_P * (_RIPPLE_P - 1) // 2),
    "spectrum": Range(0.02, 3.0, _RIPPLE_P, log=True),
    "ripple": Range(0.0, 1.0, _RIPPLE_P),
    "start": Range(-4.0, 4.0, _RIPPLE_P),
    **_SHARED,
}


@dataclass(frozen=True)
class Problem:
    """Objectives with geometry and curvature bounds, shape ``(n, 2)``: L and ℓ of the sharp and the flat block."""

    objective: Objective
    geometry: SplitGeometry
    curvature: np.ndarray
    negative: np.ndarray


@register_claim("C9", "descent certificate of the update rule", seconds=5)
def descent_certificate(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Energies that never increase along the update rule, on nonconvex objectives with coupled blocks.

    Statement: if :math:`\nabla^2f \preceq L_sP + L_fQ` and in each block :math:`\kappa = \eta\lambda_{\max}(A)L`
    satisfies

    .. math:: \kappa \le \frac{2\alpha}{1 + \alpha\beta},

    then :math:`E_k = f(w_k) + \frac{\eta(1 - \alpha)}{2}m_{k-1}^\top Am_{k-1}` never increases. If also
    :math:`\nabla^2f \succeq -(\ell_sP + \ell_fQ)`, then

    .. math:: f(w_k + c\,\eta Am_{k-1}) + \frac{\eta\varphi}{2}m_{k-1}^\top Am_{k-1}

    never increases up to a larger :math:`\kappa`, in closed form. White gradient noise of variance :math:`\sigma^2` per
    coordinate adds at most

    .. math:: \sum\frac{\eta a\sigma^2}{2}\left[\varphi + \kappa(1 - c + \beta)^2\right]

    to the expected change.

    Hypotheses: :math:`A`, :math:`B`, :math:`P` constant and commuting; :math:`0 < \alpha \le 1`,
    :math:`\beta > -\frac{1}{2 - \alpha}`; the curvature bounds on every segment between iterates, and with lookahead
    also on those from :math:`w_k` to :math:`w_k + c\,\eta Am_{k-1}` and to :math:`w_{k+1} + c\,\eta Am_k`.

    Proof: docs/theory, claim C9; symbolic: the change of the energy, the determinant and the sign of the form that
    bounds it.

    Check: meandering river valleys (p = 2) and rippled quadratics (p = 4) whose curvature bounds hold everywhere, with
    the coupling :math:`L_s = \lambda_{\max}(H_{ss}) + t\lVert H_{sf}\rVert`,
    :math:`L_f = \lambda_{\max}(H_{ff}) + \lVert H_{sf}\rVert/t`, with random momenta and learning rates up to 105% of
    the certified one. The ratio of guaranteed to actual decrease, step by step and in total; the effect of noise by
    summing over all signs of Rademacher noise.

    Sharpness: without lookahead, quadratics with :math:`\nabla^2f = L_sP + L_fQ` attain the decrease and the noise, and
    C9b shows that no larger :math:`\kappa` can be certified. With lookahead no instance is known that attains them.

    Finding: the weight :math:`1 - \alpha` of the momentum certifies more than the :math:`(1 - \alpha)^2` that the
    energy of C2 suggests. Without a bound on the negative curvature no weight certifies more (C9b).

    Source: derived in docs/theory.
    """
    parameters = draw(_VALLEY_BOX, rng, instances)
    alpha = rng.uniform(0.01, 1.0, instances)
    beta = rng.uniform(-0.45, 5.0, instances)
    share = np.exp(rng.uniform(-7.0, 7.0, instances))
    return [
        Proof("change of the energy, and when its bound is negative semidefinite", lyapunov.descent_certificate()),
        *try_bounds(lambda x: _bounds(_valley(x), x, "river valleys"), _VALLEY_BOX, rng, instances),
        *try_bounds(lambda x: _bounds(_rippled(x), x, "rippled quadratics"), _RIPPLE_BOX, rng, instances),
        *constants.descent_constants(rng),
        Identity(
            "largest eigenvalue of the form at the limits",
            _worst_eigenvalue(alpha, beta, share),
            1e-8,
            "√ε where the limit is a double root",
        ),
        Identity(
            "E with c = 0 rises on a quadratic at κ = 1.001 of its limit, worst momentum (share of exceptions)",
            _falls_beyond(alpha, beta),
            0.0,
            "yes or no",
        ),
        Measurement(
            "limit with weight 1 − α over limit with weight (1 − α)²",
            descent_limit(alpha, beta) / _limit_of_weight(alpha, beta, (1.0 - alpha) ** 2),
        ),
        Measurement(
            "linear limit (C6) over the limit of E with c = 0", stable_limit(alpha, beta) / descent_limit(alpha, beta)
        ),
        Measurement(
            "learning rate at which E with c = 0 first rises on a river valley, over the certified one (at most 64)",
            _first_rise(_valley(parameters), parameters),
        ),
        limits_panel(0.0),
        limits_panel(1.0),
    ]


def _valley(parameters: Parameters) -> Problem:
    valleys = bounded_valleys(parameters)
    n = len(parameters["chi"])
    geometry = split_geometry({**parameters, "rotation": np.zeros((n, 1))})  # the metric is diagonal in (s, u)
    across, along, coupling = valleys.curvature_blocks
    balance = parameters["balance"]
    curvature = np.stack([across + balance * coupling, along + coupling / balance], axis=-1)
    return Problem(valleys, geometry, curvature, np.stack(valleys.negative_blocks, axis=-1))


def _rippled(parameters: Parameters) -> Problem:
    geometry = split_geometry(parameters, sharp_rank=2)
    # The steep axes lie near the sharp subspace, but not in it, so the blocks are coupled.
    axes = geometry.basis @ rotations(parameters["axes"], _RIPPLE_P)
    matrix = from_spectrum(axes, np.sort(parameters["spectrum"])[:, ::-1])
    objective = RippledQuadratic(matrix, parameters["ripple"])
    wave = parameters["ripple"][:, :, None] * np.eye(_RIPPLE_P)
    upper = block_curvatures(matrix + wave, geometry.sharp, parameters["balance"])
    lower = block_curvatures(wave - matrix, geometry.sharp, parameters["balance"])
    return Problem(objective, geometry, np.stack(upper, axis=-1), np.stack(lower, axis=-1))


def _bounds(problem: Problem, parameters: Parameters, where: str) -> Mapping[str, Inequality]:
    alpha, damping = parameters["alpha"][:, None], problem.geometry.damping
    limit = descent_limit(alpha, damping)
    plain = Certificate(limit, np.zeros_like(limit), 1.0 - alpha + 0.0 * limit)
    ahead = lookahead_certificate(alpha, damping, problem.negative / problem.curvature)
    out = {}
    for name, certificate in (("no lookahead", plain), ("lookahead", ahead)):
        decrease, noise = _trial(problem, certificate, parameters)
        out[f"guaranteed over actual decrease, {name}, {where}"] = decrease
        out[f"effect of noise over its bound, {name}, {where}"] = noise
    return out


def _trial(problem: Problem, certificate: Certificate, parameters: Parameters) -> tuple[Inequality, Inequality]:
    geometry, alpha = problem.geometry, parameters["alpha"]
    strength = geometry.largest_a * problem.curvature
    eta = parameters["share"] * (certificate.limit / strength).min(-1)
    within = {"κ at most the certificate's limit in each block": (eta[:, None] * strength <= certificate.limit).all(-1)}
    energy = _Energy(problem, certificate, alpha, eta)
    start = parameters["start"]
    push = parameters["momentum"][:, None] * start
    steps = list(geometry.run(problem.objective, start, push, alpha=alpha, eta=eta, steps=_STEPS))
    first = before = energy(start, push)
    guaranteed, broken = np.zeros(len(start)), np.zeros(len(start), dtype=bool)
    rounding = 1e-12 * np.abs(first)
    for step in steps:
        after, promise = energy(step.new_w, step.new_m), energy.promise(step)
        broken |= (before - after < promise - rounding) | (after > before + rounding)
        guaranteed, before = guaranteed + promise, after
    decrease = Inequality(np.where(broken, np.inf, guaranteed), first - before, within)
    return decrease, energy.noise(steps[_NOISY_STEP], parameters["noise"], within)


class _Energy:
    """The energy f(w + cηAm) + (ηφ/2)mᵀAm, its guaranteed decrease, and the effect of noise on it."""

    def __init__(self, problem: Problem, certificate: Certificate, alpha: np.ndarray, eta: np.ndarray) -> None:
        geometry = problem.geometry
        self.problem, self.alpha, self.eta = problem, alpha, eta
        self.lookahead, self.weight = geometry.spread(certificate.lookahead), geometry.spread(certificate.weight)
        self.ahead = geometry.matrix(eta[:, None] * self.lookahead * geometry.a)
        self.kappa = eta[:, None] * geometry.a * geometry.spread(problem.curvature)
        negative = eta[:, None] * geometry.a * geometry.spread(problem.negative)
        self.form = descent_form(
            self.kappa,
            alpha[:, None],
            geometry.b,
            lookahead=self.lookahead,
            weight=self.weight,
            negative=negative,
        )

    def __call__(self, w: np.ndarray, m: np.ndarray) -> np.ndarray:
        geometry = self.problem.geometry
        kinetic = 0.5 * self.eta * geometry.form(m, self.weight * geometry.a)
        return np.asarray(self.problem.objective.value(w + matvec(self.ahead, m)) + kinetic)

    def promise(self, step: Step) -> np.ndarray:
        """The decrease that the form guarantees."""
        geometry = self.problem.geometry
        transposed = np.swapaxes(geometry.basis, -1, -2)
        m, g = matvec(transposed, step.m), matvec(transposed, step.g)
        form = self.form[..., 0, 0] * m**2 + 2.0 * self.form[..., 0, 1] * m * g + self.form[..., 1, 1] * g**2
        return np.asarray(-self.eta * (geometry.a * form).sum(-1))

    def noise(self, step: Step, sigma: np.ndarray, hypotheses: Mapping[str, np.ndarray]) -> Inequality:
        """Mean change of the energy over all signs of the noise, beyond the guaranteed decrease, and its bound."""
        geometry = self.problem.geometry
        p = step.w.shape[-1]
        change = np.zeros(len(sigma))
        for signs in itertools.product((-1.0, 1.0), repeat=p):
            noisy = step.g + sigma[:, None] * matvec(geometry.basis, np.broadcast_to(signs, step.g.shape))
            change += self(*geometry.step(step.w, step.m, noisy, alpha=self.alpha, eta=self.eta)) / 2**p
        growth = noise_growth(self.kappa, geometry.b, lookahead=self.lookahead, weight=self.weight)
        added = change - self(step.w, step.m) + self.promise(step)
        return Inequality(added, self.eta * sigma**2 * (geometry.a * growth).sum(-1), hypotheses)


def _worst_eigenvalue(alpha: np.ndarray, beta: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Largest eigenvalue of the form at the limit, with and without lookahead; nonpositive if E falls."""
    limit, ahead = descent_limit(alpha, beta), lookahead_certificate(alpha, beta, share)
    forms = (
        descent_form(limit, alpha, beta, lookahead=0.0, weight=1.0 - alpha),
        descent_form(
            ahead.limit, alpha, beta, lookahead=ahead.lookahead, weight=ahead.weight, negative=share * ahead.limit
        ),
    )
    return np.asarray(np.max([np.linalg.eigvalsh(form)[:, -1] for form in forms], axis=0))


def _falls_beyond(alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Whether E fails to rise on λw²/2 slightly beyond its limit, from the form's worst state."""
    kappa, weight = 1.001 * descent_limit(alpha, beta), 1.0 - alpha
    values, vectors = np.linalg.eigh(descent_form(kappa, alpha, beta, lookahead=0.0, weight=weight))
    # In (w, μ) with μ = ηam and g = κw/(ηa), the energy is (κw² + φμ²)/(2ηa).
    state = np.stack([vectors[:, 1, 1] / kappa, vectors[:, 0, 1]], axis=-1)
    after = matvec(step_matrix(kappa, alpha, beta), state)
    energies = [kappa * x[:, 0] ** 2 + weight * x[:, 1] ** 2 for x in (state, after)]
    return np.asarray((energies[1] <= energies[0]) | (values[:, 1] <= 0), dtype=np.float64)


def _limit_of_weight(alpha: np.ndarray, beta: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Largest κ with a negative semidefinite form at c = 0: the determinant is linear in κ."""
    at_0, at_1 = (np.linalg.det(descent_form(kappa, alpha, beta, lookahead=0.0, weight=weight)) for kappa in (0.0, 1.0))
    return np.asarray(at_0 / (at_0 - at_1))


def _first_rise(problem: Problem, parameters: Parameters) -> np.ndarray:
    alpha = parameters["alpha"]
    limit = descent_limit(alpha[:, None], problem.geometry.damping)
    certificate = Certificate(limit, np.zeros_like(limit), 1.0 - alpha[:, None] + 0.0 * limit)
    certified = (limit / (problem.geometry.largest_a * problem.curvature)).min(-1)
    rises = np.full(len(alpha), 64.0)
    for factor in np.geomspace(64.0, 1.0, 25):
        energy = _Energy(problem, certificate, alpha, factor * certified)
        rose = np.zeros(len(alpha), dtype=bool)
        run = problem.geometry.run(
            problem.objective, parameters["start"], alpha=alpha, eta=factor * certified, steps=_STEPS
        )
        with np.errstate(over="ignore", invalid="ignore"):  # members that diverge far beyond the limit count as rising
            for step in run:
                before, after = energy(step.w, step.m), energy(step.new_w, step.new_m)
                rose |= ~(after <= before + 1e-12 * np.abs(before))
        rises = np.where(rose, factor, rises)
    return rises
