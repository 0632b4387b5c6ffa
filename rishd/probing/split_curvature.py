r"""Curvature of the sharp and the flat block in an optimizer's metric, and the steps that certificates allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from discretizations.certificate import coupled_curvatures
from discretizations.stability import descent_limit, stable_limit
from rishd.probing.block_hessian import BlockHessian, on_vectors
from rishd.probing.frozen import Geometry
from rishd.probing.lanczos import top_eigenpairs

#: Limit on κ, by claim.
LIMITS: dict[str, Callable[[Any, Any], np.ndarray]] = {"C9 (descent)": descent_limit, "C6 (stability)": stable_limit}
BETA_FLAT = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)  # values tried, in the theory's units


@dataclass(frozen=True)
class Allowance:
    r"""The χ that a limit allows.

    Args:
        rule: A key of :data:`LIMITS`.
        largest_lr: Largest learning rate at which the sharp block of the base method is within the limit.
        lr: Learning rate of the run; ``None`` if unknown.
        beta_flat: β₂ in the theory's units, shape ``(betas,)``.
        chi: Largest χ at each β₂ with the flat block as close to its limit as the sharp block, shape ``(betas,)``.
        chi_at_lr: The same at the run's learning rate with both blocks at their limits; NaN if the sharp block already
            exceeds its limit.
    """

    rule: str
    largest_lr: float
    lr: float | None
    beta_flat: np.ndarray
    chi: np.ndarray
    chi_at_lr: np.ndarray


@dataclass(frozen=True)
class SplitCurvature:
    r"""Block curvatures of :math:`F^{-1/2}HF^{-1/2}`.

    Args:
        optimizer: Optimizer with the metric and mask.
        sharp: λ_max(H_ss).
        flat: λ_max(H_ff).
        coupling: ‖H_sf‖.
        sharp_bound: L_s at t = 1.
        flat_bound: L_f at t = 1.
        coverage: Mean of ‖PX‖² over the top eigenvectors X of the block's plain Hessian.
        chance: The same for random directions.
        allowances: One per rule.
    """

    optimizer: str
    sharp: float
    flat: float
    coupling: float
    sharp_bound: float
    flat_bound: float
    coverage: float
    chance: float
    allowances: tuple[Allowance, ...]

    @property
    def speedup(self) -> float:
        """L_s/L_f, the flat speed-up χ(1 + αβ₂)/(1 + αβ₁) that C9 certifies at the sharp block's margin."""
        return self.sharp_bound / self.flat_bound


def split_curvature(
    optimizer: str,
    hessian: BlockHessian,
    name: str,
    geometry: Geometry,
    top: np.ndarray,
    *,
    lr: float | None,
    seed: int = 0,
) -> SplitCurvature:
    r"""Measure the blocks and evaluate claim C9 (and C6) on them.

    Args:
        optimizer: Name, for the record.
        hessian: The model's Hessian.
        name: Name of the parameter.
        geometry: Metric and mask.
        top: Top eigenvectors of the block, shape ``(p, k)``.
        lr: Learning rate of the run; ``None`` if unknown.
        seed: Seed of the Lanczos start vectors.
    """
    like = hessian.parameters[name]
    dtype = like.detach().reshape(-1)[:1].cpu().numpy().dtype

    def curved(x: Tensor) -> Tensor:
        image: Tensor = geometry.root(hessian.times(name, geometry.root(x)))
        return image

    def sharp(x: Tensor) -> Tensor:
        kept: Tensor = x - geometry.flat(x)
        return kept

    def largest(apply: Any) -> float:
        found = top_eigenpairs(on_vectors(apply, like), like.numel(), 1, seed=seed, dtype=dtype).values[0]
        return max(0.0, float(found))

    in_sharp = largest(lambda x: sharp(curved(sharp(x))))
    in_flat = largest(lambda x: geometry.flat(curved(geometry.flat(x))))
    coupling = largest(lambda x: sharp(curved(geometry.flat(curved(sharp(x)))))) ** 0.5
    sharp_bound, flat_bound = (float(x) for x in coupled_curvatures(in_sharp, in_flat, coupling))
    vectors = [like.new_tensor(np.ascontiguousarray(column)).reshape(like.shape) for column in top.T]
    coverage = float(np.mean([float((sharp(x) ** 2).sum()) for x in vectors]))
    beta = np.array(BETA_FLAT)
    allowances = []
    for rule, limit in LIMITS.items():
        within = float(limit(geometry.alpha, geometry.beta))
        flat_limits = limit(geometry.alpha, beta)
        chi_at_lr = np.full(len(beta), np.nan)
        if lr is not None:
            eta = lr * geometry.gain
            slack = within / eta - in_sharp  # part of the sharp block's limit that remains for the coupling, t‖H_sf‖
            if slack > 0:
                balance = slack / coupling if coupling > 0 else np.inf
                chi_at_lr = flat_limits / (eta * coupled_curvatures(in_sharp, in_flat, coupling, balance)[1])
        allowances.append(
            Allowance(
                rule,
                within / (geometry.gain * in_sharp) if in_sharp > 0 else float("inf"),
                lr,
                beta,
                flat_limits / within * sharp_bound / flat_bound,
                chi_at_lr,
            )
        )
    return SplitCurvature(
        optimizer, in_sharp, in_flat, coupling, sharp_bound, flat_bound, coverage, geometry.chance, tuple(allowances)
    )
