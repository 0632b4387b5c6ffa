"""Spectra of symmetric operators given by products: ARPACK for the top, stochastic quadrature for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

Product: TypeAlias = Callable[[np.ndarray], np.ndarray]

_BREAKDOWN = 1e-6  # relative to the largest coefficient; the Krylov space is then invariant up to float32 rounding


class Eigenpairs(NamedTuple):
    """Eigenvalues, descending, shape ``(k,)``, and orthonormal eigenvectors, shape ``(p, k)``."""

    values: np.ndarray
    vectors: np.ndarray


class SpectralMeasure(NamedTuple):
    """Shares of a vector's squared norm by eigenvalue: ``nodes`` (ascending) and ``weights`` (sum 1), ``(steps,)``."""

    nodes: np.ndarray
    weights: np.ndarray


def top_eigenpairs(
    product: Product,
    dimension: int,
    count: int,
    *,
    seed: int = 0,
    tolerance: float = 1e-3,
    dtype: np.dtype | None = None,
) -> Eigenpairs:
    """The largest eigenvalues and their eigenvectors, by the implicitly restarted Lanczos method.

    Args:
        product: v ↦ Hv for vectors of shape ``(p,)``.
        dimension: p.
        count: k, 0 < k < p.
        seed: Seed of the starting vector.
        tolerance: Relative accuracy of the eigenvalues.
        dtype: Dtype of the vectors, float64 by default.

    Returns:
        At least one pair; fewer than ``count`` if the others did not converge.

    Raises:
        ValueError: for a count out of range.

    Source: ARPACK's dsaupd through SciPy; Lehoucq, Sorensen and Yang (1998).
    """
    if not 0 < count < dimension:
        raise ValueError(f"count = {count!r} must lie between 1 and the dimension minus 1, {dimension - 1}.")
    kind = np.dtype(np.float64) if dtype is None else dtype
    operator = LinearOperator((dimension, dimension), matvec=product, dtype=kind)
    start = np.random.default_rng(seed).standard_normal(dimension).astype(kind)
    try:
        values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=tolerance)
    except ArpackNoConvergence as partial:
        values, vectors = partial.eigenvalues, partial.eigenvectors
        if not len(values):
            raise
    except ArpackError:
        if np.any(product(start)):
            raise
        return Eigenpairs(np.zeros(count), np.eye(dimension, count))  # the zero operator
    order = np.argsort(values)[::-1]
    return Eigenpairs(values[order].astype(np.float64), vectors[:, order])


def spectral_measure(product: Product, start: np.ndarray, steps: int) -> SpectralMeasure:
    r"""Distribution of a vector's squared norm over the spectrum, by Gaussian quadrature.

    .. math:: \frac{u^\top \phi(H) u}{\|u\|^2} \approx \sum_i \tau_i^2\,\phi(\theta_i)

    with Ritz values θ and the first components τ of the eigenvectors of Lanczos's tridiagonal matrix; exact for
    polynomials φ of degree 2·steps − 1. Every new vector is orthogonalised twice against all earlier ones.

    Args:
        product: v ↦ Hv for vectors of shape ``(p,)``.
        start: u, shape ``(p,)``, not zero.
        steps: Lanczos steps; fewer if the Krylov space closes earlier.

    Raises:
        ValueError: for a zero or non-finite vector.

    Source: Golub and Welsch (1969); Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017), section 3.
    """
    length = float(np.linalg.norm(start))
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"the starting vector has norm {length!r}; it must be finite and not zero.")
    basis = np.empty((min(steps, len(start)), len(start)))
    basis[0] = start / length
    diagonal: list[float] = []
    beside: list[float] = []
    for k in range(len(basis)):
        image = np.asarray(product(basis[k].astype(start.dtype)), dtype=np.float64)
        diagonal.append(float(basis[k] @ image))
        for _ in range(2):
            image -= basis[: k + 1].T @ (basis[: k + 1] @ image)
        size = float(np.linalg.norm(image))
        if k + 1 == len(basis) or size <= _BREAKDOWN * max(map(abs, (*diagonal, *beside))):
            break
        beside.append(size)
        basis[k + 1] = image / size
    tridiagonal = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    nodes, vectors = np.linalg.eigh(tridiagonal)
    return SpectralMeasure(nodes, vectors[0] ** 2)


def spectral_density(
    product: Product, dimension: int, *, probes: int, steps: int, seed: int = 0, dtype: np.dtype | None = None
) -> SpectralMeasure:
    """Density of eigenvalues by stochastic Lanczos quadrature: the mean measure of random ±1 vectors.

    Args:
        product: v ↦ Hv for vectors of shape ``(p,)``.
        dimension: p.
        probes: Number of random vectors.
        steps: Lanczos steps per vector.
        seed: Seed of the vectors.
        dtype: Dtype of the vectors, float64 by default.

    Returns:
        All nodes, ascending, with weights that sum to 1. Σ weights·φ(nodes) estimates tr φ(H)/p, unbiased except for
            the quadrature error.

    Source: Ubaru, Chen and Saad (2017), section 3; for networks Ghorbani, Krishnan and Xiao, arXiv:1901.10159.
    """
    rng = np.random.default_rng(seed)
    kind = np.dtype(np.float64) if dtype is None else dtype
    measures = [
        spectral_measure(product, rng.choice((-1.0, 1.0), dimension).astype(kind), steps) for _ in range(probes)
    ]
    nodes = np.concatenate([measure.nodes for measure in measures])
    weights = np.concatenate([measure.weights for measure in measures]) / probes
    order = np.argsort(nodes)
    return SpectralMeasure(nodes[order], weights[order])
