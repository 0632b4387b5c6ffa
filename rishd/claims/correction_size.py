"""Claims C13 and C13b: the size of the Riemannian correction R along optimizers' flows, and what it depends on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from discretizations.proofs import dynamics
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Identity, Measurement, Panel, Proof
from rishd.claims.instances import relative
from rishd.studies.correction import CorrectionRuns, correction_runs

_METRICS = ("Adam", "Muon", "SOAP")
_EPSILON = 0.1
_RATES, _CURVATURES = (1e-2, 3e-3), (0.3, 3.0)
_GROUP, _STEPS = 40, 5  # of the scaling check: instances that share a landscape, and their steps
_EXPONENTS = {"Adam": 3, "Muon": 3, "SOAP": 3, "Adam, √v + ε": 2}  # powers of 1/ε in R's size
_STRONG = 1000.0  # ε so large that gradients of size 1 hardly change the metric


@register_claim("C13", "size of the correction R", expected="measured", seconds=12)
def correction_size(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The size of R relative to the other forces on the momentum, and the effect of dropping it.

    Statement: measurements only: :math:`\lVert R\rVert/\lVert-\alpha m + g\rVert`,
    :math:`\lVert R\rVert/\lVert g\rVert`, and the distance of flows with and without :math:`R`, for the metrics of
    Adam, Muon and SOAP as functions of the position.

    Hypotheses: :math:`F(w)` is the optimizer's metric with :math:`\nabla f(w)` instead of its averages, regularised by
    :math:`\epsilon`; :math:`\alpha = 0.1`, :math:`\beta = 1`.

    Proof: none; C2 gives R's exact part in the energy, and C13b shows what its size depends on.

    Check: random starts at two learning rates and two curvatures; an instance is a pair of complete runs of the update
    rule. The study `rishd study correction` varies learning rate and curvature systematically.

    Finding: :math:`R` is not small. At these learning rates it is about a fifth of the gradient, and more than half of
    the other forces on the momentum.

    Source: measured here; arXiv:2602.22681 sets R = 0.
    """
    count = max(1, instances // (len(_RATES) * len(_CURVATURES)))
    evidence: list[Evidence] = []
    curves = []
    for name in _METRICS:
        runs = [
            correction_runs(name, curvature, rate, rng.normal(size=(count, 6)), epsilon=_EPSILON)
            for curvature in _CURVATURES
            for rate in _RATES
        ]
        share, of_gradient, distance = (
            np.concatenate(parts)
            for parts in (
                [np.median(run.share, axis=0) for run in runs],
                [np.median(run.of_gradient, axis=0) for run in runs],
                [run.distance for run in runs],
            )
        )
        evidence += [
            Measurement(f"‖R‖/‖−αm + g‖, median along the flow, {name}'s metric", share),
            Measurement(f"‖R‖/‖g‖, median along the flow, {name}'s metric", of_gradient),
            Measurement(f"distance of flows with and without R over ‖w − w*‖, {name}'s metric", distance),
        ]
        curves += [
            Curve(f"‖R‖/‖g‖, {name}", np.sort(of_gradient), _shares(of_gradient)),
            Curve(f"distance, {name}", np.sort(distance), _shares(distance), "bound"),
        ]
    return [
        *evidence,
        Panel(
            "R along optimizers' flows, and the effect of dropping it",
            "‖R‖/‖g‖; distance of flows with and without R",
            "share of instances",
            tuple(curves),
            log="x",
        ),
    ]


@register_claim("C13b", "scaling of the size of R", seconds=8)
def correction_laws(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The size of R depends on two numbers, and falls with the third or second power of the regularisation.

    Statement: with :math:`n = F^{-1}m`,

    .. math:: n^\top R = \frac{1}{2}n^\top(D_{\dot w}F)n .

    For a metric of :math:`\nabla f(w)` and :math:`\epsilon` that is homogeneous of degree one in both,
    :math:`f(w) \to ab^2f(w/b)` (:math:`af` on quadratics), :math:`w \to bw`, :math:`\epsilon \to ab\epsilon`,
    :math:`\eta \to b\eta` do not change the flow in units of :math:`w`, nor
    :math:`\lVert R\rVert/\lVert-\alpha m + g\rVert`. As :math:`\epsilon \to \infty`, this ratio falls as
    :math:`\epsilon^{-3}` for metrics that depend on :math:`\epsilon^2`, like Adam's :math:`\sqrt{v + \epsilon^2}`,
    Muon's and SOAP's here, and as :math:`\epsilon^{-2}` for Adam's original :math:`\sqrt v + \epsilon`.

    Hypotheses: :math:`F` positive definite and differentiable; for the scaling, metrics of the gradient as in C13.

    Proof: docs/theory, claim C13; symbolic: the first identity in dimension 3, any metric, by jets.

    Check: pairs of five-step runs on random scales; ratios at ε = 1000 and 10000.

    Source: derived in docs/theory.
    """
    groups = max(1, round(instances / _GROUP))
    size = min(instances, _GROUP)
    scaled = {name: np.concatenate([_scaling(rng, name, size) for _ in range(groups)]) for name in _METRICS}
    fall = {name: _fall(rng, name, instances) - exponent for name, exponent in _EXPONENTS.items()}
    return [
        Proof("power of R, dimension 3, any metric", [dynamics.correction_power_jets(3)]),
        *(
            Identity(
                f"run on another scale against the same run, {name}'s metric", residual, 1e-8, "rounding, amplified"
            )
            for name, residual in scaled.items()
        ),
        *(
            Identity(
                f"exponent of ε⁻¹ in ‖R‖/‖−αm + g‖, minus {_EXPONENTS[name]}, {name}",
                np.abs(residual),
                0.01,
                "next order at ε = 1000",
            )
            for name, residual in fall.items()
        ),
        _panel(rng),
    ]


def _shares(values: np.ndarray) -> np.ndarray:
    return np.arange(1, values.size + 1) / values.size


def _scaling(rng: np.random.Generator, name: str, n: int) -> np.ndarray:
    """Differences of ratios and distances between a run and the same run on another scale."""
    a, b = np.exp(rng.uniform(-2.0, 2.0, 2))
    curvature, epsilon, eta = rng.uniform(0.3, 3.0), rng.uniform(0.05, 0.5), rng.uniform(0.025, 0.035)
    starts = rng.normal(size=(n, 6))
    run = correction_runs(name, curvature, eta, starts, epsilon=epsilon, steps=_STEPS)
    other = correction_runs(name, a * curvature, b * eta, b * starts, epsilon=a * b * epsilon, steps=_STEPS)
    worst: np.ndarray = np.maximum(
        relative((run.share - other.share).T, run.share.T),
        np.abs(run.distance - other.distance) / run.distance,
    )
    return worst


def _fall(rng: np.random.Generator, name: str, n: int) -> np.ndarray:
    """Exponent of 1/ε in the size of R."""
    starts = rng.normal(size=(n, 6))
    near, far = (_typical(correction_runs(name, 1.0, 0.03, starts, epsilon=e)) for e in (_STRONG, 10.0 * _STRONG))
    return np.asarray(np.log10(near / far))


def _typical(runs: CorrectionRuns) -> np.ndarray:
    return np.asarray(np.median(runs.share, axis=0))


def _panel(rng: np.random.Generator) -> Panel:
    """Plot of the median ratio over ε."""
    epsilon = np.geomspace(1e-2, 1e2, 7)
    starts = rng.normal(size=(8, 6))
    curves = [
        Curve(
            name,
            epsilon,
            np.array([np.median(correction_runs(name, 1.0, 0.01, starts, epsilon=float(e)).share) for e in epsilon]),
        )
        for name in _EXPONENTS
    ]
    steep = epsilon >= 3.0
    references = [
        Curve(f"∝ ε⁻{'³' if power == 3 else '²'}", epsilon[steep], 0.3 * (epsilon[steep] / 3.0) ** -power, "reference")
        for power in (3, 2)
    ]
    return Panel(
        "The correction against the regularisation of the metric",
        "ε / gradient (curvature 1, ‖w‖ of order 1)",
        "median ‖R‖/‖−αm + g‖",
        (*curves, *references),
        log="xy",
    )
