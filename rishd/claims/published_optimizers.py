"""Independent implementations of published optimizers, as references for the correspondence table.

Nothing here is shared with the package's update rule. A path consists of the parameters after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Gradient: TypeAlias = Callable[[Tensor], Tensor]


def torch_paths(
    build: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    starts: Sequence[Tensor],
    gradients: Sequence[Gradient],
    steps: int,
) -> Tensor:
    """Parameters of a torch optimizer after every step, stacked after the axis of steps.

    Args:
        build: Parameters ↦ optimizer.
        starts: One tensor per parameter, of equal shapes.
        gradients: One function per parameter.
        steps: Number of steps.
    """
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = build(parameters)
    path = []
    for _ in range(steps):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient(parameter.detach())
        optimizer.step()
        path.append(torch.stack([parameter.detach() for parameter in parameters]))
    return torch.stack(path)


def shampoo_path(start: Tensor, gradient: Gradient, steps: int, *, lr: float, eps: float) -> Tensor:
    """Shampoo with sums: W ← W − η (L^{1/4} ⊗ R^{1/4})⁻¹ vec(G), by a linear solve with the full Kronecker product.

    Args:
        start: W, a matrix.
        gradient: W ↦ G.
        steps: Number of steps.
        lr: η.
        eps: L and R start at εI.

    Source: Gupta, Koren and Singer, arXiv:1802.09568, Algorithm 1.
    """
    rows, columns = start.shape
    left, right = eps * np.eye(rows), eps * np.eye(columns)
    w, path = start, []
    for _ in range(steps):
        g = gradient(w).numpy()
        left, right = left + g @ g.T, right + g.T @ g
        metric = np.kron(_fourth_root(left), _fourth_root(right))
        w = w - lr * torch.as_tensor(np.linalg.solve(metric, g.reshape(-1)).reshape(g.shape))
        path.append(w)
    return torch.stack(path)


def averaged_shampoo_path(
    start: Tensor,
    gradient: Gradient,
    steps: int,
    *,
    lr: float,
    eps: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> Tensor:
    """Shampoo with bias-corrected averages of momentum and factors, decoupled decay, and no grafting.

    Args:
        start: W, a matrix.
        gradient: W ↦ G.
        steps: Number of steps.
        lr: Learning rate.
        eps: Added to the averaged factors.
        beta1: θ₁.
        beta2: θ₂.
        weight_decay: λ.

    Source: Shi et al., arXiv:2309.06497.
    """
    rows, columns = start.shape
    left, right, m = np.zeros((rows, rows)), np.zeros((columns, columns)), np.zeros((rows, columns))
    w, path = start, []
    for t in range(1, steps + 1):
        g = gradient(w).numpy()
        m = beta1 * m + (1 - beta1) * g
        left, right = beta2 * left + (1 - beta2) * g @ g.T, beta2 * right + (1 - beta2) * g.T @ g
        bias = 1 - beta2**t
        metric = np.kron(
            _fourth_root(left / bias + eps * np.eye(rows)), _fourth_root(right / bias + eps * np.eye(columns))
        )
        direction = np.linalg.solve(metric, (m / (1 - beta1**t)).reshape(-1)).reshape(g.shape)
        w = (1 - lr * weight_decay) * w - lr * torch.as_tensor(direction)
        path.append(w)
    return torch.stack(path)


def soap_path(
    start: Tensor,
    gradient: Gradient,
    steps: int,
    *,
    lr: float,
    eps: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    frequency: int,
) -> Tensor:
    """SOAP: Adam on the coefficients ⟨q_i, G q_j⟩ in eigenbases refreshed by Gram–Schmidt; decay after the step.

    Args:
        start: W, a matrix.
        gradient: W ↦ G.
        steps: Number of steps, not counting the first gradient, which only sets the first bases.
        lr: Learning rate.
        eps: ε.
        beta1: θ₁.
        beta2: θ₂.
        weight_decay: λ.
        frequency: Steps between refreshes.

    Source: Vyas et al., arXiv:2409.11321, Algorithm 3, and its authors' code.
    """
    w, m, v, path = start.numpy(), np.zeros(start.shape), np.zeros(start.shape), []
    g = gradient(start).numpy()
    factors = [(1 - beta2) * g @ g.T, (1 - beta2) * g.T @ g]
    bases = [np.linalg.svd(factor)[0] for factor in factors]
    for t in range(1, steps + 1):
        g = gradient(torch.as_tensor(w)).numpy()
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * _coefficients(bases, g) ** 2
        size = np.sqrt(1 - beta2**t) / (1 - beta1**t) * _coefficients(bases, m) / (np.sqrt(v) + eps)
        step = np.einsum("ij,ai,bj->ab", size, bases[0], bases[1])
        w = (1 - lr * weight_decay) * (w - lr * step)
        path.append(torch.as_tensor(w))
        factors = [beta2 * old + (1 - beta2) * new for old, new in zip(factors, (g @ g.T, g.T @ g), strict=True)]
        if t % frequency == 0:
            for side, factor in enumerate(factors):
                order = np.argsort([q @ factor @ q for q in bases[side].T])[::-1]
                v = np.take(v, order, axis=side)
                bases[side] = np.stack(list(_gram_schmidt(factor @ bases[side][:, order])), axis=1)
    return torch.stack(path)


def lion_path(
    start: Tensor, gradient: Gradient, steps: int, *, lr: float, beta1: float, beta2: float, weight_decay: float
) -> Tensor:
    """Lion: the sign of an interpolation between momentum and gradient.

    Args:
        start: w.
        gradient: w ↦ g.
        steps: Number of steps.
        lr: Learning rate.
        beta1: θ₁, of the interpolation.
        beta2: θ₂, of the momentum.
        weight_decay: λ.

    Source: Chen et al., arXiv:2302.06675, Algorithm 2.
    """
    w, m, path = start, torch.zeros_like(start), []
    for _ in range(steps):
        g = gradient(w)
        w = w - lr * (torch.sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)
        m = beta2 * m + (1 - beta2) * g
        path.append(w)
    return torch.stack(path)


def normuon_path(
    start: Tensor,
    gradient: Gradient,
    steps: int,
    *,
    lr: float,
    mu: float,
    beta2: float,
    weight_decay: float,
    coefficients: tuple[float, float, float],
) -> Tensor:
    """NorMuon: Muon's five Newton–Schulz steps, rows divided by the root of their second moment, fixed update norm.

    The final norm is the norm before rows are scaled, which for an exact polar factor is the paper's.

    Args:
        start: W, a matrix.
        gradient: W ↦ G.
        steps: Number of steps.
        lr: Learning rate.
        mu: θ of the momentum.
        beta2: θ₂ of the rows' second moment.
        weight_decay: λ.
        coefficients: Coefficients of a Newton–Schulz step.

    Source: Li et al., arXiv:2510.05491, Algorithm 1.
    """
    a, b, c = coefficients
    w, m, v, path = start.numpy(), np.zeros(start.shape), np.zeros(len(start)), []
    for _ in range(steps):
        g = gradient(torch.as_tensor(w)).numpy()
        m = mu * m + (1 - mu) * g
        o = m / np.sqrt((m * m).sum())
        for _ in range(5):
            o = a * o + b * (o @ o.T) @ o + c * (o @ o.T) @ ((o @ o.T) @ o)
        v = beta2 * v + (1 - beta2) * (o * o).mean(axis=1)
        scaled = o / (np.sqrt(v) + 1e-8)[:, None]
        scaled = scaled * np.sqrt((o * o).sum() / (scaled * scaled).sum())
        w = w - lr * weight_decay * w - 0.2 * np.sqrt(max(w.shape)) * lr * scaled
        path.append(torch.as_tensor(w))
    return torch.stack(path)


def kl_path(
    start: Tensor,
    gradient: Gradient,
    steps: int,
    *,
    is_shampoo: bool,
    lr: float,
    eps: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    frequency: int,
) -> Tensor:
    """KL-SOAP or KL-Shampoo: factors fitted by the Kullback–Leibler divergence, eigenvalues averaged in stored bases.

    Eigenvalues start at the root mean square of the first gradient (0.1 in the authors' code), and metric and decay use
    the gradient of the same step, as in the paper.

    Args:
        start: W, a matrix.
        gradient: W ↦ G.
        steps: Number of steps, not counting the first gradient, which only sets the first bases.
        is_shampoo: Whether the eigenvalues define the metric, as opposed to an elementwise average.
        lr: Learning rate.
        eps: ε.
        beta1: θ₁.
        beta2: θ₂.
        weight_decay: λ.
        frequency: Steps between refreshes.

    Source: Lin et al., arXiv:2509.03378.
    """
    w, m, v, path = start.numpy(), np.zeros(start.shape), np.zeros(start.shape), []
    g = gradient(start).numpy()
    bases = [np.linalg.svd(g @ g.T)[0], np.linalg.svd(g.T @ g)[0]]
    values = [np.full(side, np.sqrt((g * g).mean())) for side in g.shape]
    factors = [(1 - beta2) * x for x in _whitened(bases, values, g, eps)]
    for t in range(1, steps + 1):
        g = gradient(torch.as_tensor(w)).numpy()
        m = beta1 * m + (1 - beta1) * g
        squares = _coefficients(bases, g) ** 2
        v = beta2 * v + (1 - beta2) * squares
        new = (squares @ (1 / (values[1] + eps)) / len(g.T), (1 / (values[0] + eps)) @ squares / len(g))
        products = _whitened(bases, values, g, eps)
        factors = [beta2 * old + (1 - beta2) * x for old, x in zip(factors, products, strict=True)]
        values = [beta2 * old + (1 - beta2) * x for old, x in zip(values, new, strict=True)]
        root = np.sqrt(np.outer(*values)) + eps if is_shampoo else (np.sqrt(v) + eps) / np.sqrt(1 - beta2**t)
        size = _coefficients(bases, m) / root / (1 - beta1**t)
        w = w - lr * (np.einsum("ij,ai,bj->ab", size, bases[0], bases[1]) + weight_decay * w)
        path.append(torch.as_tensor(w))
        if t % frequency == 0:
            for side, factor in enumerate(factors):
                order = np.argsort([q @ factor @ q for q in bases[side].T])[::-1]
                v, values[side] = np.take(v, order, axis=side), values[side][order]
                bases[side] = np.stack(list(_gram_schmidt(factor @ bases[side][:, order])), axis=1)
    return torch.stack(path)


def _whitened(
    bases: Sequence[np.ndarray], values: Sequence[np.ndarray], g: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """G R⁻¹ Gᵀ/n and Gᵀ L⁻¹ G/m."""
    left, right = (q @ np.diag(1 / (d + eps)) @ q.T for q, d in zip(bases, values, strict=True))
    return g @ right @ g.T / len(g.T), g.T @ left @ g / len(g)


def _coefficients(bases: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """⟨q_i, X q_j⟩."""
    return np.asarray(np.einsum("ai,ab,bj->ij", bases[0], x, bases[1]))


def _fourth_root(matrix: np.ndarray) -> np.ndarray:
    u, s, _ = np.linalg.svd(matrix)
    root: np.ndarray = (u * s**0.25) @ u.T
    return root


def _gram_schmidt(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """Orthonormal columns, one after the other."""
    columns: list[Any] = []
    for column in matrix.T:
        rest = column
        for earlier in columns * 2:  # two passes are enough
            rest = rest - (earlier @ rest) * earlier
        columns.append(rest / np.linalg.norm(rest))
        yield columns[-1]
