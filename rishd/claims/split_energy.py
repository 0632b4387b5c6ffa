"""Claim C4: the energy identity with LITE's split, and a bound on the flat part of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from discretizations.proofs import lyapunov
from riemannian_ode import ConstantMetric, Trajectory, dissipation, energy_identity_residual
from riemannian_ode.dynamics import RISHD
from rishd.claims import constants
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Hypothesis, Identity, Measurement, Panel, Proof
from rishd.claims.flows import solve, time_integral
from rishd.claims.geometry import geometry_box, split_geometry
from rishd.claims.instances import RippledQuadratic, from_spectrum, rotations
from rishd.claims.trial import Box, Inequality, Parameters, Range, draw, try_bounds

_P = 3
_PHASES = ((0.5, 96), (3.0, 128), (20.5, 288))
_BOX: Box = {
    **geometry_box(_P),
    "axes": Range(-2.0, 2.0, _P * (_P - 1) // 2),  # eigenbasis of the objective, different from the metric's
    "spectrum": Range(0.05, 2.0, _P, log=True),
    "ripple": Range(0.0, 1.0, _P),
    "start": Range(-3.0, 3.0, _P),
    "momentum": Range(-1.0, 1.0, _P),
    "alpha": Range(0.05, 2.0, log=True),
    "eta": Range(0.05, 0.3, log=True),
}


_FLAT = "∫ηχβ₂‖Qg‖² over its bound"


@register_claim("C4", "energy identity and integral bound with the split", seconds=5)
def split_energy_identity(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The energy identity with the split, and the bound on the flat gradient.

    Statement: :math:`E = f + \frac{\eta}{2}m^\top Am` obeys :math:`\dot E = -\eta\,[\alpha m^\top Am + g^\top ABg]`;
    hence

    .. math::

       \int_0^\infty \eta\chi\beta_2\lVert Qg\rVert^2_{F^{-1}}\,dt
       \le f(w_0) - \inf f + \frac{\eta}{2}m_0^\top Am_0 .

    Hypotheses: :math:`A = F^{-1}(P + \chi Q)` and :math:`B = \beta_1P + \beta_2Q` constant and commuting, :math:`\eta`
    constant, :math:`\beta_1, \beta_2 \ge 0`, :math:`\inf f > -\infty`.

    Proof: docs/theory, claim C4; symbolic in two blocks, to which commuting reduces the problem.

    Check: nonconvex objectives in another eigenbasis than the metric's, by DOP853. In one instance of nine the metric
    does not commute with the split; there the claim is not applicable, and the residual is measured.

    Sharpness: flat quadratics attain the bound as :math:`\alpha \to 0`, when only :math:`\chi\beta_2` damps.

    Source: derived in docs/theory; arXiv:2602.22681 has a bound of this kind on river valleys.
    """
    tilted = instances // 8
    parameters = draw(_BOX, rng, instances + tilted)
    system, flow = _flow(parameters, tilted)
    residual = energy_identity_residual(system, flow).residual
    commutes = Hypothesis("F and P commute", _commutator(system) <= 1e-10)
    bounds = try_bounds(_bounds, _BOX, rng, instances, slack=1e-6)
    return [
        Proof("two blocks", lyapunov.split_energy()),
        Identity(
            "energy balance along the flow, p = 3", residual, 1e-6, "integrator and quadrature", hypotheses=(commutes,)
        ),
        *bounds,
        *constants.split_bound(rng),
        *(
            [Measurement("energy balance where F and P do not commute", residual[~commutes.met])]
            if not commutes.met.all()
            else []
        ),
        _panel(),
    ]


def _flow(parameters: Parameters, tilted: int = 0) -> tuple[RISHD, Trajectory]:
    """The flows; in the first ``tilted`` flows the metric has the objective's eigenbasis instead of the split's."""
    geometry = split_geometry(parameters)
    axes = rotations(parameters["axes"], _P)
    objective = RippledQuadratic(from_spectrum(axes, parameters["spectrum"]), parameters["ripple"])
    system = geometry.flow(objective, alpha=parameters["alpha"], eta=parameters["eta"])
    if tilted:
        basis = np.where(np.arange(len(axes))[:, None, None] < tilted, axes, geometry.basis)
        system = replace(system, metric=ConstantMetric(from_spectrum(basis, parameters["metric"])), check_split=False)
    return system, solve(system, parameters["start"], parameters["momentum"], phases=_PHASES)


def _commutator(system: RISHD) -> np.ndarray:
    """‖FP − PF‖/‖F‖ of each member."""
    metric, sharp = np.asarray(system.metric.matrix), np.asarray(system.flat.basis)  # type: ignore[attr-defined, union-attr]
    projector = sharp @ np.swapaxes(sharp, -1, -2)
    difference = metric @ projector - projector @ metric
    return np.asarray(np.linalg.norm(difference, axis=(-2, -1)) / np.linalg.norm(metric, axis=(-2, -1)))


def _bounds(parameters: Parameters) -> dict[str, Inequality]:
    system, flow = _flow(parameters)
    parts = [dissipation(system, float(t), w, m) for t, w, m in zip(flow.times, flow.w, flow.m, strict=True)]
    flat = time_integral(flow.times, np.stack([part.flat for part in parts]))[-1]
    geometry = split_geometry(parameters)
    start = system.objective.value(flow.w[0]) + 0.5 * parameters["eta"] * geometry.form(flow.m[0], geometry.a)
    hypotheses = {
        "F and P commute": _commutator(system) <= 1e-10,
        "β₁, β₂ ≥ 0": (geometry.beta_sharp >= 0) & (geometry.beta_flat >= 0),
    }
    return {_FLAT: Inequality(flat, start, hypotheses)}


def _panel() -> Panel:
    """Plot of the flat gradient that one instance dissipates, and its bound, for growing χ."""
    chi = np.geomspace(1.0, 16.0, 9)
    one = np.ones(len(chi))
    parameters = {
        "rotation": np.tile([0.3, -0.2, 0.5], (len(chi), 1)),
        "metric": np.tile([1.0, 0.8, 1.25], (len(chi), 1)),
        "chi": chi,
        "beta_sharp": one,
        "beta_gap": 2.0 * one,
        "axes": np.tile([0.0, 0.4, -0.3], (len(chi), 1)),
        "spectrum": np.tile([2.0, 0.3, 0.1], (len(chi), 1)),
        "ripple": np.tile([0.2, 0.3, 0.3], (len(chi), 1)),
        "start": np.tile([2.0, -2.5, 2.0], (len(chi), 1)),
        "momentum": np.zeros((len(chi), _P)),
        "alpha": 0.5 * one,
        "eta": 0.1 * one,
    }
    flat = _bounds(parameters)[_FLAT]
    weight = parameters["eta"] * chi * 3.0
    return Panel(
        "Flat gradient dissipated as χ grows (one instance, β₂ = 3)",
        "χ",
        "∫‖Qg‖² dt",
        (Curve("measured", chi, flat.value / weight), Curve("bound of C4", chi, flat.limit / weight, "bound")),
        log="xy",
    )
