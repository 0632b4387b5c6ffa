"""Helpers for numpy and torch arrays beyond operators: namespaces, conversion, batched products."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from riemannian_ode.flow import Array


def namespace(x: Array) -> Any:
    """Array module (array-api-compat's numpy or torch) of an array."""
    return array_api_compat.array_namespace(x)


def is_torch(x: Any) -> bool:
    """Whether ``x`` is a torch tensor; the check does not import torch."""
    return bool(array_api_compat.is_torch_array(x))


def tracks(x: Any) -> bool:
    """Whether torch's autograd records operations on ``x``: it requires gradients, and they are enabled."""
    if not getattr(x, "requires_grad", False):
        return False
    import torch

    return torch.is_grad_enabled()


def to_numpy(x: Array) -> np.ndarray:
    """``x`` as a numpy array on the CPU, without a copy where possible."""
    return x.detach().cpu().numpy() if is_torch(x) else np.asarray(x)


def like(x: Any, reference: Array) -> Array:
    """``x`` as an array of the kind, dtype and device of ``reference``."""
    if is_torch(reference):
        import torch

        return torch.as_tensor(x, dtype=reference.dtype, device=reference.device)
    return np.asarray(to_numpy(x) if is_torch(x) else x, dtype=reference.dtype)


def inner(x: Array, y: Array) -> Array:
    """Sum of products over the last axis, shape ``(*ensemble,)``."""
    return (x * y).sum(-1)


def matvec(matrix: Array, vector: Array) -> Array:
    """Batched matrix–vector product: ``(*batch, p, q)`` times ``(*batch, q)``, leading axes broadcast."""
    if matrix.ndim == 2:
        return vector @ matrix.T  # one matrix product for the whole ensemble instead of one per member
    return (matrix @ vector[..., None])[..., 0]


def eigh(matrices: Array) -> tuple[Array, Array]:
    """Eigenvalues (ascending) and orthonormal eigenvectors of symmetric matrices; NaN for non-finite matrices.

    LAPACK would reject the whole batch because of one non-finite matrix, such as a lost ensemble member's.

    Args:
        matrices: Shape ``(*batch, p, p)``.
    """
    xp = namespace(matrices)
    sound = xp.isfinite(matrices).all(-1).all(-1)
    values, vectors = xp.linalg.eigh(xp.where(sound[..., None, None], matrices, 0.0))
    return xp.where(sound[..., None], values, xp.nan), xp.where(sound[..., None, None], vectors, xp.nan)


def as_float_array(name: str, x: Any) -> Array:
    """``x`` as a floating-point array (numpy float64 unless it is a torch or numpy float already).

    Raises:
        ValueError: if ``x`` is empty, complex or not finite.
    """
    if is_torch(x):
        array, finite = x, bool(x.isfinite().all())
        floating = x.is_floating_point()
    else:
        array = np.asarray(x)
        if np.issubdtype(array.dtype, np.integer):
            array = array.astype(np.float64)
        floating = np.issubdtype(array.dtype, np.floating)
        finite = bool(np.isfinite(array).all()) if floating else False
    if not floating:
        raise ValueError(f"{name} has dtype {array.dtype}; give real floating-point numbers (float64 for theory).")
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; its last axis must hold the coordinates.")
    if not finite:
        raise ValueError(f"{name} holds a non-finite number; start from finite values.")
    return array
