"""Sharp/flat splits of a flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from riemannian_ode.arrays import like, matvec, namespace, to_numpy
from riemannian_ode.flow import Array, Projector


class PhasePoint(NamedTuple):
    """Where a split is asked for: position w, covector m̃ that the metric raises, and a = F⁻¹m̃."""

    w: Array
    covector: Array
    preconditioned: Array


FlatSplit: TypeAlias = Callable[[PhasePoint], Projector]


def complement(basis: Array) -> Projector:
    """x ↦ x − V(Vᵀx): the projector off the span of orthonormal columns, without a p×p matrix.

    Args:
        basis: V, shape ``(p, d)`` or ``(*ensemble, p, d)``.
    """
    transposed = namespace(basis).matrix_transpose(basis)

    def project(x: Array) -> Array:
        return x - matvec(basis, matvec(transposed, x))

    return project


class ConstantSplit:
    """The split whose sharp subspace is the span of fixed orthonormal columns.

    Args:
        basis: V, shape ``(p, d_s)`` or ``(*ensemble, p, d_s)``, with VᵀV = I to 1e−8. For a metric other than a
            multiple of I its span must be invariant under F (then P and F commute, as claims C4 and C5 assume).

    Raises:
        ValueError: if the columns are not orthonormal.
    """

    def __init__(self, basis: Array) -> None:
        columns = to_numpy(basis)
        if columns.ndim < 2 or columns.shape[-1] > columns.shape[-2]:
            raise ValueError(f"basis has shape {columns.shape}; give (p, d_s) with d_s ≤ p orthonormal columns.")
        error = np.abs(np.swapaxes(columns, -1, -2) @ columns - np.eye(columns.shape[-1])).max(initial=0.0)
        if not error <= 1e-8:
            raise ValueError(f"basis is not orthonormal: max |VᵀV − I| = {error:.3g}; orthonormalise it with a QR.")
        self.basis = basis

    def __call__(self, point: PhasePoint) -> Projector:
        """x ↦ Qx at any point."""
        if self.basis.shape[-2] != point.w.shape[-1]:
            raise ValueError(
                f"basis has shape {tuple(self.basis.shape)}, but w has {point.w.shape[-1]} coordinates; give (p, d_s)."
            )
        return complement(like(self.basis, point.w))
