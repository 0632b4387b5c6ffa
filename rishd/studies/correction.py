r"""The correction study: the size of the Riemannian correction R, and the effect of dropping it (claim C13).

The metrics are those of Adam, Muon and SOAP as functions of the position: the gradient :math:`G = \nabla f(W)` replaces
its averages in the optimizers' memories, regularised by ε.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.preconditioners.second_moment import SecondMoment
from riemannian_ode import RISHD, GramRootMetric, Metric, Preconditioner, VaryingDiagonalMetric, VaryingMetric, simulate
from riemannian_ode.flow import Array, momentum_rate
from riemannian_ode.matrix_root import matrix_root
from riemannian_ode.memory import RememberedMetric
from riemannian_ode.memory_energy import rate_by_memory
from rishd.record import Record
from toy_landscapes import KroneckerQuadratic, Landscape

_SHAPE = (2, 3)
_ALPHA, _BETA = 0.1, 1.0
_THETA2 = 0.95  # θ₂ of averages
_SMALL = 0.1  # R relative to the other forces, below which it is called small
_UNNOTICED = 0.02  # relative change of the loss that is called none
_REACH = 0.15  # final ηt: a sign-like update of size η/α per step has then moved 1.5, about the distance of the start
_LEFT, _RIGHT = np.diag([1.0, 0.3]), np.diag([1.0, 0.3, 0.1])


class AtGradient(VaryingMetric):
    """A metric of positions from a metric of gradients, F(w) = F'(∇f(w)).

    Args:
        inner: F', a function of the gradient.
        landscape: f.
    """

    def __init__(self, inner: VaryingMetric, landscape: Landscape) -> None:
        self.inner, self.landscape = inner, landscape

    def action(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        return self.inner.action(self.landscape.gradient(x), w)

    def inverse(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        return self.inner.inverse(self.landscape.gradient(x), w)

    def check(self, w: Array) -> None:
        self.inner.check(self.landscape.gradient(w))


class FactoredRootMetric(VaryingMetric):
    r"""SOAP's metric of a matrix G with factorised second moments: :math:`L^{1/2}VR^{1/2}/\sqrt{\mathrm{tr}\,L}`.

    :math:`L = GG^\top + \epsilon^2I` and :math:`R = G^\top G + \epsilon^2I`; the eigenbasis is SOAP's.

    Args:
        shape: (m, n).
        epsilon: ε > 0.

    Source: Vyas et al., arXiv:2409.11321, Claim 1 (SOAP with factored second moments is Shampoo at power one half).
    """

    def __init__(self, shape: tuple[int, int], *, epsilon: float) -> None:
        self.shape, self.epsilon = shape, epsilon

    def _roots(self, x: Tensor) -> tuple[Tensor, Tensor]:
        g = x.reshape(-1, *self.shape)
        left, right = (
            gram + self.epsilon**2 * torch.eye(gram.shape[-1], dtype=x.dtype) for gram in (g @ g.mT, g.mT @ g)
        )
        trace = torch.diagonal(left, dim1=-2, dim2=-1).sum(-1)[:, None, None]
        return matrix_root(left) / trace.sqrt(), matrix_root(right)

    def action(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        left, right = self._roots(x)
        return lambda v: (left @ v.reshape(-1, *self.shape) @ right).reshape(v.shape)

    def inverse(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        left, right = self._roots(x)
        return lambda c: torch.linalg.solve(
            right, torch.linalg.solve(left, c.reshape(-1, *self.shape)), left=False
        ).reshape(c.shape)

    def check(self, w: Array) -> None:
        """Accept any matrix of the shape."""


def optimizer_metric(name: str, landscape: Landscape, epsilon: float) -> Metric:
    """Metric of an optimizer as a function of the position.

    Args:
        name: ``"Adam"`` with √(v + ε²), ``"Muon"``, ``"SOAP"``, or ``"Adam, √v + ε"`` as in Adam's code, whose
            derivative jumps where a gradient changes sign.
        landscape: f of a 2×3 matrix.
        epsilon: ε, in units of the gradient.
    """
    inner: VaryingMetric
    if name == "Adam":
        inner = VaryingDiagonalMetric(lambda g: (g**2 + epsilon**2).sqrt())
    elif name == "Adam, √v + ε":
        inner = VaryingDiagonalMetric(lambda g: g.abs() + epsilon)
    elif name == "Muon":
        inner = GramRootMetric(_SHAPE, epsilon=epsilon**2)
    else:
        inner = FactoredRootMetric(_SHAPE, epsilon=epsilon)
    return AtGradient(inner, landscape)


@dataclass(frozen=True)
class CorrectionRow:
    """Results for one metric, learning rate and curvature, over all starts.

    Args:
        metric: Name of the metric.
        eta: η.
        curvature: Largest Hessian eigenvalue.
        typical: Median over time and starts of ‖R‖/‖−αm + g‖ along the flow with R.
        of_gradient: Median of ‖R‖/‖g‖.
        distance: Largest distance between the flows with and without R, over the largest ‖w − w*‖; median of starts.
        loss_ratio: Mean of f along the flow with R over the mean without R; median of starts.
        of_memory: Median of ½‖Ḟn‖/‖−αm + g‖ along the optimizer's own flow, whose metric uses averages with θ₂ = 0.95;
            NaN for a metric without memory.
    """

    metric: str
    eta: float
    curvature: float
    typical: float
    of_gradient: float
    distance: float
    loss_ratio: float
    of_memory: float


@dataclass(frozen=True)
class CorrectionStudy(Record):
    """Results of the study.

    Args:
        alpha: α.
        beta: β in the theory's units.
        epsilon: ε of all metrics.
        rows: One row per metric, curvature and learning rate.
    """

    alpha: float
    beta: float
    epsilon: float
    rows: tuple[CorrectionRow, ...]

    def exponent(self, metric: str, variable: str) -> float:
        """Power p of typical ‖R‖/‖−αm + g‖ ∝ variable^p: least squares in logarithms, other variable fixed.

        Args:
            metric: Name of the metric.
            variable: ``"eta"`` or ``"curvature"``.
        """
        other = "curvature" if variable == "eta" else "eta"
        slopes = []
        for value in sorted({getattr(row, other) for row in self.rows}):
            rows = [row for row in self.rows if row.metric == metric and getattr(row, other) == value]
            x, y = np.log([getattr(row, variable) for row in rows]), np.log([row.typical for row in rows])
            slopes.append(float(np.polyfit(x, y, 1)[0]))
        return float(np.median(slopes))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return list(dict.fromkeys(row.metric for row in self.rows))

    @property
    def answer(self) -> str:
        """Whether R is small, and whether keeping it would help."""
        typical = float(np.median([row.typical for row in self.rows]))
        eta = max(row.eta for row in self.rows)
        moved = max(row.distance for row in self.rows if row.eta == eta)
        ratio = float(np.median([row.loss_ratio for row in self.rows]))
        verdict = "Yes, R is small" if typical < _SMALL else "No, R is not small"
        small = abs(ratio - 1.0) < _UNNOTICED
        effect = "hardly changes" if small else "lowers" if ratio < 1.0 else "raises"
        return (
            f"{verdict}: it is {typical:.2g} of the other forces on the momentum in the median, and dropping it moves "
            f"the flow by up to {100 * moved:.3g}% of its distance from the minimum. Keeping it {effect} the mean loss "
            f"({ratio:.3g} times that without, in the median)."
        )

    @property
    def conclusion(self) -> str:
        """The size of R, and whether it matters."""
        eta = min(row.eta for row in self.rows), max(row.eta for row in self.rows)
        ends = {
            name: [
                float(np.median([row.typical for row in self.rows if row.metric == name and row.eta == e])) for e in eta
            ]
            for name in self.metrics
        }
        sizes = "; ".join(
            f"{name} {low:.2g} at η = {eta[0]:g}, {high:.2g} at η = {eta[1]:g}, scaling as "
            f"η^{self.exponent(name, 'eta'):.2f} and curvature^{self.exponent(name, 'curvature'):.2f}"
            for name, (low, high) in ends.items()
        )
        small, large = ([row.distance for row in self.rows if row.eta == e] for e in eta)
        ratios = np.array([row.loss_ratio for row in self.rows])
        return (
            f"‖R‖ over the rest of the momentum's force is, in the median along a flow: {sizes}. "
            f"Dropping R moves the flow by {100 * min(small):.2g} to {100 * max(small):.2g}% of its distance from the "
            f"minimum at η = {eta[0]:g} and by {100 * min(large):.2g} to {100 * max(large):.2g}% at η = {eta[1]:g}; "
            f"the mean loss with R is {ratios.min():.3g} to {ratios.max():.3g} times that without. {self._of_memory()}"
        )

    def _of_memory(self) -> str:
        """Size of the force due to the metric's motion if averages replace the gradient."""
        rows = [row for row in self.rows if np.isfinite(row.of_memory)]
        parts = []
        for name in dict.fromkeys(row.metric for row in rows):
            own = [row for row in rows if row.metric == name]
            memory, gradient = ([getattr(row, key) for row in own] for key in ("of_memory", "typical"))
            parts.append(f"{name} {np.median(memory):.2g} against {np.median(gradient):.2g}")
        return (
            f"With the optimizer's averages (θ₂ = {_THETA2:g}) the force ½Ḟn, which replaces R in the energy, is in "
            f"the median of all settings {', '.join(parts)} for R."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per metric, curvature and learning rate."""
        return [
            {
                "metric": row.metric,
                "η": f"{row.eta:.3g}",
                "curvature": f"{row.curvature:.3g}",
                "typical ‖R‖/‖−αm + g‖": f"{row.typical:.2g}",
                "‖R‖/‖g‖": f"{row.of_gradient:.2g}",
                "distance without R": f"{row.distance:.2g}",
                "mean loss, with / without": f"{row.loss_ratio:.3g}",
                "½‖Ḟn‖ of averages": "" if np.isnan(row.of_memory) else f"{row.of_memory:.2g}",
            }
            for row in self.rows
        ]


def correction_study(*, quick: bool = False, seed: int = 0) -> CorrectionStudy:
    """Flows with and without R from the same starts on a quadratic of 2×3 matrices.

    Args:
        quick: Whether to use fewer learning rates, curvatures and starts.
        seed: Seed of the starts.
    """
    etas = np.geomspace(4e-3 if quick else 5e-4, 1e-2, 2 if quick else 5)
    curvatures = (0.3, 3.0) if quick else (0.3, 1.0, 3.0, 10.0)
    epsilon = 0.1
    starts = np.random.default_rng(seed).normal(size=(2 if quick else 8, _SHAPE[0] * _SHAPE[1]))
    rows = [
        correction_row(name, curvature, float(eta), starts, epsilon=epsilon)
        for name in ("Adam", "Muon", "SOAP")
        for curvature in curvatures
        for eta in etas
    ]
    return CorrectionStudy(_ALPHA, _BETA, epsilon, tuple(rows))


class CorrectionRuns(NamedTuple):
    """A pair of flows, with and without R, from every start.

    Args:
        share: ‖R‖/‖−αm + g‖ along the flow with R, shape ``(steps, n)``.
        of_gradient: ‖R‖/‖g‖, the same shape.
        distance: Largest distance between the two flows over the largest ‖w − w*‖, shape ``(n,)``.
        loss_ratio: Mean of f along the flow with R over the mean without R, shape ``(n,)``.
    """

    share: np.ndarray
    of_gradient: np.ndarray
    distance: np.ndarray
    loss_ratio: np.ndarray


def correction_runs(
    name: str, curvature: float, eta: float, starts: np.ndarray, *, epsilon: float, steps: int | None = None
) -> CorrectionRuns:
    """The optimizer's own scheme, semi-implicit Euler at h = 1, with and without R.

    Args:
        name: A name for :func:`optimizer_metric`.
        curvature: Largest Hessian eigenvalue.
        eta: η.
        starts: Starts, shape ``(n, 6)``.
        epsilon: ε.
        steps: Number of steps; 0.15/η by default.
    """
    landscape = KroneckerQuadratic(curvature * _LEFT, _RIGHT)
    metric = optimizer_metric(name, landscape, epsilon)
    systems = [
        RISHD.from_optimizer(landscape, metric, alpha=_ALPHA, eta=eta, beta=_BETA, correction=correction)
        for correction in (True, False)
    ]
    steps = round(_REACH / eta) if steps is None else steps
    exact, dropped = (simulate(system, starts, steps=steps, progress=False).checked() for system in systems)
    w, m = exact.w[1:], exact.m[1:]  # m = 0 and R = 0 at the start
    g = landscape.gradient(w)
    r = metric.correction(w, systems[0].rates(0.0, w, m)[0], m)
    size = np.zeros(w.shape[:-1]) if r is None else np.linalg.norm(r, axis=-1)
    losses = [landscape.value(flow.w).mean(0) for flow in (exact, dropped)]
    return CorrectionRuns(
        size / np.linalg.norm(momentum_rate(m, g, alpha=_ALPHA), axis=-1),
        size / np.linalg.norm(g, axis=-1),
        np.linalg.norm(exact.w - dropped.w, axis=-1).max(0) / np.linalg.norm(exact.w, axis=-1).max(0),
        losses[0] / losses[1],
    )


def correction_row(name: str, curvature: float, eta: float, starts: np.ndarray, *, epsilon: float) -> CorrectionRow:
    """Medians of :func:`correction_runs`, which has the same arguments."""
    runs = correction_runs(name, curvature, eta, starts, epsilon=epsilon)
    share, of_gradient, distance, ratio = (float(np.median(part)) for part in runs)
    memory = memory_force(name, curvature, eta, starts, epsilon=epsilon)
    return CorrectionRow(name, eta, curvature, share, of_gradient, distance, ratio, memory)


def memory_force(name: str, curvature: float, eta: float, starts: np.ndarray, *, epsilon: float) -> float:
    """Median of ½‖Ḟn‖/‖−αm + g‖ along an optimizer's own flow, or NaN for a metric without memory.

    With n = F⁻¹m, ½Ḟn is the force that would close the energy identity (claim C19), as R does for F(w). Arguments as
    for :func:`correction_runs`.
    """
    if name not in _OPTIMIZERS:
        return float("nan")
    landscape = KroneckerQuadratic(curvature * _LEFT, _RIGHT)
    preconditioner = _OPTIMIZERS[name](beta2=_THETA2, eps=epsilon)
    system = RISHD.from_optimizer(landscape, preconditioner, shape=_SHAPE, alpha=_ALPHA, eta=eta, beta=_BETA)
    flow = simulate(system, starts, steps=round(_REACH / eta), progress=False).checked()
    metric, shares = RememberedMetric(preconditioner, shape=_SHAPE), []
    for i in range(1, len(flow.times)):
        g = landscape.gradient(flow.w[i])
        m, memory = metric.at_state(flow.w[i], flow.m[i], g, {key: value[i] for key, value in flow.memory.items()})
        _, _, matrix = metric.shaped({}, flow.w[i], g)
        diagonal = 1.0 / preconditioner.raise_index(memory, torch.ones_like(m))  # F is diagonal in the frame
        turning = rate_by_memory(preconditioner, memory, matrix, partial(preconditioner.raise_index, covector=m))
        force = 0.5 * (diagonal * turning).flatten(1).norm(dim=-1).numpy()
        shares.append(force / np.linalg.norm(momentum_rate(flow.m[i], g, alpha=_ALPHA), axis=-1))
    return float(np.median(shares))


_OPTIMIZERS: Mapping[str, Callable[..., Preconditioner]] = {"Adam": SecondMoment, "SOAP": EigenbasisMoment}
