"""Checks of the arguments of landscapes."""

from __future__ import annotations

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.flow import Array


def finite_array(name: str, values: Array, shape: tuple[int | None, ...]) -> np.ndarray:
    """A copy of ``values`` as a float64 numpy array, checked against a shape.

    Args:
        name: The argument's name as the caller wrote it.
        values: Numbers.
        shape: Length of each axis; ``None`` accepts any positive length.

    Raises:
        ValueError: for another shape, an empty array, or numbers that are not finite.
    """
    array = np.array(to_numpy(values), dtype=np.float64)
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if not fits or array.size == 0 or not np.isfinite(array).all():
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has shape {array.shape}; give finite numbers of shape ({wanted}).")
    return array


def symmetric(name: str, values: Array) -> np.ndarray:
    """``values`` as a symmetric numpy float64 matrix.

    Raises:
        ValueError: for a matrix that is not square, finite and symmetric to 1e−10 of its largest entry.
    """
    array = finite_array(name, values, (None, None))
    if array.shape[0] != array.shape[1] or not np.allclose(array, array.T, rtol=0, atol=1e-10 * np.abs(array).max()):
        raise ValueError(f"{name} with shape {array.shape} is not symmetric; symmetrise it with (A + Aᵀ)/2.")
    symmetrised: np.ndarray = 0.5 * (array + array.T)
    return symmetrised


def check_coordinates(w: Array, dimension: int) -> None:
    """Refuse points with the wrong number of coordinates.

    Raises:
        ValueError: naming the shape and the number of coordinates.
    """
    if w.ndim == 0 or w.shape[-1] != dimension:
        raise ValueError(f"w has shape {tuple(w.shape)}; its last axis must hold {dimension} coordinates.")


def checked_sharp_rank(sharp_rank: int | None, dimension: int) -> int:
    """The given d_s, or by default p/10 rounded, at least 1 (LITE's published sharp fraction, arXiv:2602.22681).

    Raises:
        ValueError: for a rank outside 0 … p.
    """
    rank = max(1, round(0.1 * dimension)) if sharp_rank is None else sharp_rank
    if not 0 <= rank <= dimension:
        raise ValueError(f"sharp_rank = {sharp_rank!r} must lie between 0 and p = {dimension}.")
    return rank
