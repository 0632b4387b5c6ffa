r"""Metrics: the preconditioner of an optimizer as the geometry of its parameter space.

A metric is :math:`F_{ij}(w)`, symmetric positive definite. It lowers the index of velocities (:math:`F v`), raises
that of gradients and momenta (:math:`F^{-1} m`), and its derivative enters the flow through the Riemannian correction

.. math::
    R_i = \Gamma^k_{ij} v^j m_k = \tfrac12\left[(D_vF)\,n - (D_nF)\,v + \nabla_w(v^\top F(w)\, n)\right]_i,
    \qquad n = F^{-1}m,

i.e. two directional derivatives and one gradient instead of the p³ array of Christoffel symbols.

Source: arXiv:2602.22681, eqs. (tangent) and (cotangent); the form of R is derived in docs/theory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np

from riemannian_ode.arrays import as_float_array, inner, like, matvec, namespace, to_numpy
from riemannian_ode.checks import require_method
from riemannian_ode.flow import Array

Variation = Literal["constant", "state", "history"]


class Metric(ABC):
    """Symmetric positive-definite form on velocities.

    Attributes:
        variation: ``"constant"`` (R = 0), ``"state"`` (F depends on w, R exact), or ``"history"`` (F depends on the
            covector or on past gradients, so no F(w) exists, R is set to 0 and the energy identities do not apply).
    """

    variation: ClassVar[Variation] = "constant"

    @abstractmethod
    def raise_index(self, w: Array, covector: Array) -> Array:
        """F(w)⁻¹ covector, shapes ``(*ensemble, p)``."""

    @abstractmethod
    def lower_index(self, w: Array, vector: Array) -> Array:
        """F(w) vector, shapes ``(*ensemble, p)``."""

    def correction(self, w: Array, velocity: Array, momentum: Array) -> Array | None:
        """Riemannian correction R, shape ``(*ensemble, p)``; ``None`` if it is identically zero."""
        return None

    def norm_squared(self, w: Array, vector: Array) -> Array:
        """‖v‖²_F = vᵀFv of a velocity, shape ``(*ensemble,)``."""
        return inner(vector, self.lower_index(w, vector))

    def conorm_squared(self, w: Array, covector: Array) -> Array:
        """‖m‖²_{F⁻¹} = mᵀF⁻¹m of a momentum or gradient, shape ``(*ensemble,)``."""
        return inner(covector, self.raise_index(w, covector))

    def check(self, w: Array) -> None:
        """Refuse a metric that is not symmetric positive definite at ``w``, or whose shape does not match ``w``.

        Raises:
            ValueError: giving the asymmetry, or the smallest eigenvalue and its member.
        """
        return

    def check_symmetry(self, w: Array) -> None:
        """Refuse a metric that is not symmetric at ``w``; ``simulate`` checks at every save.

        Only metrics whose matrix comes from a user's function can fail.

        Raises:
            ValueError: naming the asymmetry.
        """
        return


class Euclidean(Metric):
    """F = I: gradient descent, heavy ball, Nesterov."""

    def raise_index(self, w: Array, covector: Array) -> Array:
        return covector

    def lower_index(self, w: Array, vector: Array) -> Array:
        return vector


class ConstantMetric(Metric):
    r"""A constant matrix :math:`F`.

    Args:
        matrix: F, shape ``(p, p)`` or ``(*ensemble, p, p)``.

    Raises:
        ValueError: if it is not square, not finite, not symmetric (to 1e−10 of its norm), or not positive definite.
    """

    def __init__(self, matrix: Array) -> None:
        matrix = as_float_array("matrix", matrix)
        check_positive_definite(matrix)
        self.matrix = matrix
        xp = namespace(matrix)
        inverse = xp.linalg.inv(matrix)
        self.inverse = 0.5 * (inverse + xp.matrix_transpose(inverse))

    def raise_index(self, w: Array, covector: Array) -> Array:
        return matvec(like(self.inverse, covector), covector)

    def lower_index(self, w: Array, vector: Array) -> Array:
        return matvec(like(self.matrix, vector), vector)

    def check(self, w: Array) -> None:
        check_fits("matrix", self.matrix, w, 2)


class DiagonalMetric(Metric):
    r"""A constant diagonal :math:`F = \mathrm{diag}(d)`, Adam's and RMSprop's with frozen second moment.

    Args:
        diagonal: d, shape ``(p,)`` or ``(*ensemble, p)``.

    Raises:
        ValueError: if an entry is not finite and positive.
    """

    def __init__(self, diagonal: Array) -> None:
        diagonal = as_float_array("diagonal", diagonal)
        smallest = to_numpy(diagonal).min()
        if not smallest > 0:
            raise ValueError(
                f"diagonal has smallest entry {smallest:.3g}, F's smallest eigenvalue; a metric needs positive "
                "finite entries: take square roots of second moments and add an epsilon."
            )
        self.diagonal = diagonal

    def raise_index(self, w: Array, covector: Array) -> Array:
        return covector / like(self.diagonal, covector)

    def lower_index(self, w: Array, vector: Array) -> Array:
        return vector * like(self.diagonal, vector)

    def check(self, w: Array) -> None:
        check_fits("diagonal", self.diagonal, w, 1)


class PreconditionerMetric(Metric):
    r"""A preconditioner known only by its action on covectors, e.g. Muon's :math:`X \mapsto X(X^\top X)^{-1/2}`.

    The metric depends on the covector that it raises (or on history), so F(w) does not exist. The flow runs with R = 0,
    and the energy identities are "not applicable".

    Args:
        precondition: Covector ``(*ensemble, p)`` to velocity of the same shape.

    Raises:
        ValueError: if it is not a function.
    """

    variation: ClassVar[Variation] = "history"

    def __init__(self, precondition: Callable[[Array], Array]) -> None:
        require_method("precondition", precondition, "covector ↦ velocity, (*ensemble, p) to (*ensemble, p)")
        self.precondition = precondition

    def raise_index(self, w: Array, covector: Array) -> Array:
        return self.precondition(covector)

    def lower_index(self, w: Array, vector: Array) -> Array:
        raise ValueError("A preconditioner that depends on history has no F(w) to lower an index with.")


def check_positive_definite(matrix: Array, *, name: str = "matrix") -> None:
    """Refuse a matrix that is not a metric.

    Args:
        matrix: Shape ``(*ensemble, p, p)``.
        name: Name used in errors.

    Raises:
        ValueError: naming shape, asymmetry, or the smallest eigenvalue.
    """
    array = to_numpy(matrix)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2]:
        raise ValueError(f"{name} has shape {array.shape}; a metric needs a square matrix (*ensemble, p, p).")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a non-finite number; a metric must be finite.")
    check_symmetric(array, name=name)
    smallest = np.linalg.eigvalsh(0.5 * (array + np.swapaxes(array, -1, -2)))[..., 0]
    worst = float(smallest.min())
    if not worst > 0:
        where = f" in member {np.unravel_index(int(smallest.argmin()), smallest.shape)}" if smallest.ndim else ""
        raise ValueError(
            f"{name} is not positive definite: its smallest eigenvalue{where} is {worst:.6g}; "
            "a metric needs it positive (add ε·I, or clip the spectrum)."
        )


def check_symmetric(matrix: np.ndarray, *, name: str = "matrix") -> None:
    """Refuse a matrix that is not symmetric to 1e−10 (below double precision 1e−5) of its largest entry.

    Args:
        matrix: Shape ``(*ensemble, p, p)``; members with a non-finite entry pass.
        name: Name used in errors.

    Raises:
        ValueError: naming the asymmetry.
    """
    asymmetry = np.abs(matrix - np.swapaxes(matrix, -1, -2)).max((-1, -2))
    scale = np.abs(matrix).max((-1, -2))
    tolerance = 1e-10 if matrix.dtype == np.float64 else 1e-5  # above rounding of a product such as A Aᵀ
    bad = asymmetry > tolerance * scale
    if bad.any():
        worst = float(asymmetry[bad].max())
        raise ValueError(
            f"{name} is not symmetric: max |F − Fᵀ| = {worst:.3g} beside entries up to {float(scale[bad].max()):.3g}; "
            "symmetrise it with (F + Fᵀ)/2."
        )


def check_fits(name: str, array: Array, w: Array, trailing: int) -> None:
    """Refuse a metric's array whose last axes are not p, or whose leading ones are not the ensemble's.

    Args:
        name: Name used in errors.
        array: Shape ``(*ensemble, p, …)`` with ``trailing`` axes of length p.
        w: Positions, shape ``(*ensemble, p)``.
        trailing: 1 for a diagonal, 2 for a matrix.

    Raises:
        ValueError: naming both shapes.
    """
    p = w.shape[-1]
    if tuple(array.shape[array.ndim - trailing :]) != (p,) * trailing:
        raise ValueError(f"{name} has shape {tuple(array.shape)}, but w has {p} coordinates (shape {tuple(w.shape)}).")
    leading, ensemble = tuple(array.shape[: array.ndim - trailing]), tuple(w.shape[:-1])
    if leading and leading != ensemble:
        raise ValueError(f"{name} has ensemble axes {leading}, but w has {ensemble}; give one slice per member.")
