"""Claim C12: the flow's semi-implicit Euler at h = 1 is the update rule is the optimizer, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discretizations.flat_split import subspace_complement, top_right_subspace
from discretizations.polar import polar_express
from discretizations.update_rule import lite_step
from lite import MuonLITE
from riemannian_ode import RISHD, ConstantMetric, ConstantSplit, PreconditionerMetric, simulate
from riemannian_ode.split import complement
from rishd.claims.evidence import Evidence, Identity
from rishd.claims.instances import curved_metric, from_spectrum, random_bases, rippled_quadratics

_STEPS = 10


def optimizer_equivalence(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""Semi-implicit Euler with h = 1 and R = 0 is the update rule, and the update rule is the optimizer.

    Statement: semi-implicit Euler for the flow with :math:`h = 1`, the update rule

    .. math::

       m_k = (1 - \alpha)\,m_{k-1} + g_k, \qquad w_{k+1} = w_k - \eta\,u(w_k, m_k, g_k),

    and the optimizer of ``lite`` give the same bits in float64, on the same backend and unbatched.

    Hypotheses: :math:`R` off; for Muon the metric is the preconditioner :math:`X \mapsto \mathrm{msign}(X)`,
    :math:`a = \mathrm{msign}(\tilde M)`, :math:`d = \mathrm{msign}(g)`.

    Proof: they call the same functions of riemannian_ode.flow (docs/theory, claim C12).

    Check: 10 steps each. numpy with constant and state-dependent metrics and LITE split: simulate against lite_step.
    torch with matrices: simulate against lite_step against MuonLITE(mask="exact").

    Source: arXiv:2602.22681, Algorithm 1.
    """
    constant = np.array([_constant_metric_gap(rng) for _ in range(instances)])
    varying = np.array([_state_dependent_gap(rng) for _ in range(instances)])
    muon = np.array([_muon_gap(rng) for _ in range(instances)])
    exact = "equality to the last bit"
    return [
        Identity("simulate = lite_step, constant metric and LITE split (numpy)", constant, 0.0, exact),
        Identity("simulate = lite_step, state-dependent metric, R off (numpy)", varying, 0.0, exact),
        Identity("simulate = lite_step, Muon's metric and LITE split (torch)", muon[:, 0], 0.0, exact),
        Identity("lite_step = MuonLITE (torch)", muon[:, 1], 0.0, exact),
    ]


def _constant_metric_gap(rng: np.random.Generator) -> float:
    p = int(rng.integers(2, 9))
    sharp_rank = int(rng.integers(0, p))
    objective = rippled_quadratics(rng, 1, p)
    basis = random_bases(rng, 1, p)
    metric = ConstantMetric(from_spectrum(basis, rng.uniform(0.5, 2.0, (1, p))))
    sharp = basis[..., :sharp_rank]
    settings: dict[str, Any] = {
        "alpha": rng.uniform(0.05, 1.0),
        "eta": rng.uniform(0.01, 0.3),
        "chi": rng.uniform(1, 3),
    }
    beta, beta_flat = np.sort(rng.uniform(0.0, 2.0, 2)).tolist()
    system = RISHD.from_optimizer(
        objective, metric, beta=beta, beta_flat=beta_flat, flat=ConstantSplit(sharp), **settings
    )
    w = rng.normal(size=(1, p))
    flow = simulate(system, w, steps=_STEPS).checked()
    m = np.zeros_like(w)
    for _ in range(_STEPS):
        w, m = lite_step(
            w,
            m,
            objective.gradient(w),
            precondition=lambda x: metric.raise_index(x, x),
            split=lambda *_: complement(sharp),
            beta_sharp=beta,
            beta_flat=beta_flat,
            **settings,
        )
    return float(np.maximum(np.abs(flow.w[-1] - w).max(), np.abs(flow.m[-1] - m).max()))  # keeps a NaN, max() may not


def _state_dependent_gap(rng: np.random.Generator) -> float:
    p = 3
    objective, metric = rippled_quadratics(rng, 1, p), curved_metric(rng, 1, p)
    alpha, eta, beta = rng.uniform(0.05, 1.0), rng.uniform(0.01, 0.3), rng.uniform(0.0, 2.0)
    system = RISHD.from_optimizer(objective, metric, alpha=alpha, eta=eta, beta=beta, correction=False)
    w = rng.normal(size=(1, p))
    flow = simulate(system, w, steps=_STEPS).checked()
    m = np.zeros_like(w)
    for _ in range(_STEPS):
        here = w
        w, m = lite_step(
            w,
            m,
            objective.gradient(w),
            eta=eta,
            alpha=alpha,
            precondition=lambda x, here=here: metric.raise_index(here, x),  # type: ignore[misc]  # binds this step's w
            nesterov=beta,
        )
    return float(np.maximum(np.abs(flow.w[-1] - w).max(), np.abs(flow.m[-1] - m).max()))  # keeps a NaN, max() may not


@dataclass(frozen=True)
class _MatrixRegression:
    """f(W) = ½‖AW − C‖²_F on the flattened matrix."""

    left: Tensor
    target: Tensor
    shape: tuple[int, int]

    def value(self, w: Tensor) -> Tensor:
        return 0.5 * ((self.left @ w.reshape(self.shape) - self.target) ** 2).sum()

    def gradient(self, w: Tensor) -> Tensor:
        return (self.left.T @ (self.left @ w.reshape(self.shape) - self.target)).reshape(-1)


def _muon_gap(rng: np.random.Generator) -> tuple[float, float]:
    rows, columns = (int(x) for x in rng.integers(3, 9, 2))
    shape = (rows, columns)
    theta, chi, fraction = float(rng.uniform(0.5, 0.98)), float(rng.uniform(1.1, 3.0)), float(rng.uniform(0.1, 0.6))
    beta_sharp, beta_flat = np.sort(rng.uniform(-0.4, 1.5, 2)).tolist()
    lr = float(rng.uniform(1e-3, 0.1))
    eta = lr * (0.2 * max(shape) ** 0.5)
    rank = round(fraction * min(shape))
    objective = _MatrixRegression(
        torch.as_tensor(rng.normal(size=(rows, rows))), torch.as_tensor(rng.normal(size=shape)), shape
    )
    w0 = torch.as_tensor(rng.normal(size=rows * columns))
    alpha, nesterov = 1.0 - theta, (1.0 - theta) / theta

    def matrix_split(covector: Tensor) -> Any:
        return subspace_complement(top_right_subspace(covector.reshape(shape), rank))

    system = RISHD.from_optimizer(
        objective,
        PreconditionerMetric(lambda x: polar_express(x.reshape(shape)).reshape(-1)),
        alpha=alpha,
        gain=alpha,
        nesterov=nesterov,
        eta=eta,
        beta=beta_sharp,
        beta_flat=beta_flat,
        chi=chi,
        flat=lambda point: lambda x: matrix_split(point.covector)(x.reshape(shape)).reshape(-1),
    )
    flow = simulate(system, w0, steps=_STEPS).checked()

    w, m = w0.reshape(shape), torch.zeros(shape, dtype=torch.float64)
    p = torch.nn.Parameter(w0.reshape(shape).clone())
    optimizer = MuonLITE(
        [p],
        lr,
        momentum=theta,
        weight_decay=0.0,
        chi=chi,
        beta_sharp=beta_sharp,
        beta_flat=beta_flat,
        sharp_fraction=fraction,
        mask="exact",
    )
    for _ in range(_STEPS):
        w, m = lite_step(
            w,
            m,
            objective.gradient(w).reshape(shape),
            eta=eta,
            alpha=alpha,
            gain=alpha,
            nesterov=nesterov,
            precondition=polar_express,
            split=lambda covector, _: matrix_split(covector),
            chi=chi,
            beta_sharp=beta_sharp,
            beta_flat=beta_flat,
        )
        p.grad = objective.gradient(p.detach()).reshape(shape)
        optimizer.step()
    return float((flow.w[-1].reshape(shape) - w).abs().max()), float((w - p.detach()).abs().max())
