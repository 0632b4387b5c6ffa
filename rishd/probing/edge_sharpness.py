r"""Generalised sharpness of Muon and of LITE's flat block: λ_max of :math:`D^{1/2}\nabla^2f\,D^{1/2}` (claim C21).

The metric of the optimizer's next step is held fixed. With momentum :math:`m_k = \theta m_{k-1} + cg_k`,
:math:`c = \alpha = 1 - \theta`, covector :math:`\tilde m = m + \nu g` and Nesterov's :math:`\nu`, an oscillation
:math:`(-1)^k\xi` has :math:`\eta D\nabla^2f\,\xi = 2\xi` with

.. math::
    D = \left(\tfrac c{2-\alpha} + \nu\right)F_{\tilde m}^{-1} \quad\text{(Muon)}, \qquad
    D = \chi\,Q\left[\left(\tfrac c{2-\alpha} + \nu\right)F_{\tilde m}^{-1} + \beta_2F_g^{-1}\right]Q
    \quad\text{(LITE's flat block)},

since LITE's Hessian damping is added after the polar factor, so the gradient gets a separate metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lite import Muon, MuonLITE
from lite.declaration import MOMENTUM
from riemannian_ode.flow import Projector, lookahead, momentum_step
from rishd.probing.frozen import FrozenOptimizer, Geometry, geometry
from rishd.probing.lanczos import top_eigenpairs

_TOLERANCE = 1e-2  # relative tolerance


class EdgeSharpness(NamedTuple):
    """λ_max of D∇²f for Muon and for LITE's flat block, at learning rate 1; the edge is at 2/η."""

    muon: float
    flat: float


@dataclass(frozen=True)
class MetricFactor:
    """The factor R = sQF^{-1/2}, matrix by matrix; a metric D is the sum of RRᵀ.

    Args:
        scale: s.
        metrics: F of every matrix.
        flat: Q of every matrix.
    """

    scale: float
    metrics: Sequence[Geometry]
    flat: Sequence[Projector]

    def apply(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Apply R to the matrices."""
        return [q(self.scale * f.root(x)) for f, q, x in zip(self.metrics, self.flat, parts, strict=True)]

    def transposed(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Apply Rᵀ to the matrices."""
        return [self.scale * f.root(q(x)) for f, q, x in zip(self.metrics, self.flat, parts, strict=True)]


def edge_sharpness(
    model: nn.Module,
    optimizer: MuonLITE,
    graph: Sequence[Tensor],
    *,
    chi: float,
    beta_flat: float,
    sharp_fraction: float,
    seed: int = 0,
) -> EdgeSharpness:
    """Sharpness at the optimizer's next step, for both methods with its momentum.

    Args:
        model: Model whose parameters with ``requires_grad`` are matrices, all in the optimizer.
        optimizer: Muon or MuonLITE after at least one step, all matrices in one group.
        graph: Gradients of these parameters, with ``create_graph=True``.
        chi: χ of LITE.
        beta_flat: β₂, published units.
        sharp_fraction: r.
        seed: Seed of the Lanczos start vectors.
    """
    muon, flat = edge_metrics(
        model,
        optimizer,
        [g.detach() for g in graph],
        chi=chi,
        beta_flat=beta_flat,
        sharp_fraction=sharp_fraction,
    )
    matrices = [p for p in model.parameters() if p.requires_grad]
    return EdgeSharpness(_largest(graph, matrices, muon, seed), _largest(graph, matrices, flat, seed))


def edge_metrics(
    model: nn.Module,
    optimizer: MuonLITE,
    gradients: Sequence[Tensor],
    *,
    chi: float,
    beta_flat: float,
    sharp_fraction: float,
) -> tuple[list[MetricFactor], list[MetricFactor]]:
    """Factors of D for Muon and for LITE's flat block; arguments as for :func:`edge_sharpness`."""
    matrices = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rule = optimizer.update_rule(optimizer.param_groups[0], (1, 1))
    seen = dict(zip(matrices, gradients, strict=True))
    covectors = {}
    for name, p in matrices.items():
        m = momentum_step(optimizer.state[p][MOMENTUM], seen[name], alpha=rule.alpha, gain=rule.gain)
        covectors[name] = lookahead(m, seen[name], rule.nesterov)
    of_momentum, of_gradient = (_first_step(model, x, sharp_fraction) for x in (covectors, seen))
    # The covector of a first step is c + ν times its gradient, and F has degree 1.
    first = rule.gain + rule.nesterov
    of_covector = first * (rule.gain / (2.0 - rule.alpha) + rule.nesterov)
    everything, flat = [_same] * len(matrices), [metric.flat for metric in of_momentum]
    return [MetricFactor(of_covector**0.5, of_momentum, everything)], [
        MetricFactor((chi * of_covector) ** 0.5, of_momentum, flat),
        MetricFactor((chi * beta_flat * first) ** 0.5, of_gradient, flat),
    ]


def _same(x: Tensor) -> Tensor:
    return x


def _first_step(model: nn.Module, gradients: Mapping[str, Tensor], sharp_fraction: float) -> list[Geometry]:
    """Muon's metric and LITE's mask at a first step with these gradients."""
    frozen = FrozenOptimizer(
        model, lambda own: Muon([p for p in own.parameters() if p.requires_grad], 1.0, weight_decay=0.0, ns_steps=0)
    )
    frozen.observe(gradients)
    found = (geometry(frozen, name, sharp_fraction) for name in gradients)
    return [metric for metric in found if metric is not None]


def _largest(graph: Sequence[Tensor], matrices: list[nn.Parameter], factors: list[MetricFactor], seed: int) -> float:
    """λ_max of D∇²f for D the sum of RRᵀ, computed as λ_max of (R₁ R₂ …)ᵀ∇²f(R₁ R₂ …)."""
    sizes = [p.numel() for p in matrices]

    def product(x: np.ndarray) -> np.ndarray:
        v = [torch.zeros_like(p) for p in matrices]
        for factor, own in zip(factors, np.split(x, len(factors)), strict=True):
            pieces = torch.split(torch.as_tensor(own).to(v[0]), sizes)
            shaped = [piece.reshape(p.shape) for piece, p in zip(pieces, matrices, strict=True)]
            v = [a + b for a, b in zip(v, factor.apply(shaped), strict=True)]
        image = torch.autograd.grad(graph, matrices, v, retain_graph=True)
        return torch.cat([part.flatten() for factor in factors for part in factor.transposed(image)]).numpy()

    dimension = len(factors) * sum(sizes)
    return max(0.0, float(top_eigenpairs(product, dimension, 1, seed=seed, tolerance=_TOLERANCE).values[0]))
