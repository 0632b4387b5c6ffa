"""Quadratics of a matrix variable with a Kronecker-product Hessian, and linear regressions of this form."""

from __future__ import annotations

import numpy as np
from scipy.stats import ortho_group

from riemannian_ode.arrays import inner, like, namespace
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import Array
from riemannian_ode.metric import check_positive_definite
from toy_landscapes.arguments import check_coordinates, checked_sharp_rank, finite_array
from toy_landscapes.finite_sum import FiniteSum, gather
from toy_landscapes.landscape import Landscape
from toy_landscapes.layout import Layout


class KroneckerQuadratic(Landscape):
    r""":math:`f(W) = \tfrac12\mathrm{tr}[(W - W_*)^\top A(W - W_*)B] + f_*`, with Hessian :math:`A \otimes B`.

    w holds W row by row, p = m·n, so the Hessian's matrix is ``kron(A, B)`` and
    ``KroneckerMetric(left=A, right=B)`` is Newton's metric. The Hessian's eigenvalues are all products
    :math:`a_ib_j` with eigenvectors :math:`x_i y_j^\top`.

    Args:
        left: A, symmetric positive definite, shape ``(m, m)``.
        right: B, symmetric positive definite, shape ``(n, n)``.
        minimizer: W_*, shape ``(m, n)``; 0 by default.
        minimum: f_*.
        sharp_rank: d_s; a tenth of p by default, at least 1.

    Raises:
        ValueError: for factors that are not symmetric positive definite, or shapes that do not match.

    Source: textbook; the model problem of Shampoo's and K-FAC's Kronecker approximations.
    """

    def __init__(
        self,
        left: Array,
        right: Array,
        *,
        minimizer: Array | None = None,
        minimum: float = 0.0,
        sharp_rank: int | None = None,
    ) -> None:
        check_positive_definite(left, name="left")
        check_positive_definite(right, name="right")
        self.left, self.right = finite_array("left", left, (None, None)), finite_array("right", right, (None, None))
        self.matrix_shape = (len(self.left), len(self.right))
        self.layout = Layout({"weight": self.matrix_shape})
        self.dimension = self.layout.dimension
        self.sharp_rank = checked_sharp_rank(sharp_rank, self.dimension)
        matrix = np.zeros(self.matrix_shape) if minimizer is None else minimizer
        self.minimizer = finite_array("minimizer", matrix, self.matrix_shape).reshape(-1)
        self.minimum = float(minimum)
        (a, x), (b, y) = np.linalg.eigh(self.left), np.linalg.eigh(self.right)
        products = np.multiply.outer(a, b).reshape(-1)
        order = np.argsort(-products, kind="stable")
        self.eigenvalues = products[order]
        i, j = np.divmod(order[: self.sharp_rank], b.size)
        self._sharp_basis = (x[:, None, i] * y[None, :, j]).reshape(self.dimension, self.sharp_rank)

    def value(self, w: Array) -> Array:
        offset = self._offset(w)
        return 0.5 * inner(offset, self.hvp(w, offset)) + self.minimum

    def gradient(self, w: Array) -> Array:
        return self.hvp(w, self._offset(w))

    def hvp(self, w: Array, v: Array) -> Array:
        matrix = self.layout.unpack(v)["weight"]
        return (like(self.left, v) @ matrix @ like(self.right, v)).reshape(v.shape)

    def hessian(self, w: Array) -> Array:
        return like(np.kron(self.left, self.right), w) + 0.0 * w[..., None]  # one copy per member

    def _offset(self, w: Array) -> Array:
        check_coordinates(w, self.dimension)
        return w - like(self.minimizer, w)

    def sharp_basis(self, w: Array) -> Array:
        """Top-d_s eigenvectors, shape ``(p, d_s)``: the same for every member."""
        return like(self._sharp_basis, w)


class LinearRegression(KroneckerQuadratic, FiniteSum):
    r"""Linear regression of vectors, :math:`f(W) = \frac1{2N}\sum_i (Wx_i - y_i)^\top A(Wx_i - y_i)`.

    It is the :class:`KroneckerQuadratic` with :math:`B = \frac1N\sum_i x_ix_i^\top`, the least-squares solution W_* and
    its residual f_*. f_i is the i-th term.

    Args:
        inputs: x_i, shape ``(N, n)``, of rank n.
        targets: y_i, shape ``(N, m)``.
        output_weight: A, symmetric positive definite, shape ``(m, m)``; the identity by default.
        sharp_rank: d_s; a tenth of p by default, at least 1.

    Raises:
        ValueError: for shapes that do not match, or inputs that do not span R^n.
    """

    def __init__(
        self, inputs: Array, targets: Array, *, output_weight: Array | None = None, sharp_rank: int | None = None
    ) -> None:
        self.inputs = finite_array("inputs", inputs, (None, None))
        self.targets = finite_array("targets", targets, (len(self.inputs), None))
        self.samples, n = self.inputs.shape
        rank = int(np.linalg.matrix_rank(self.inputs))
        if rank < n:
            raise ValueError(f"inputs has rank {rank} < n = {n}; give more samples, or fewer input coordinates.")
        weight = np.eye(self.targets.shape[1]) if output_weight is None else output_weight
        weight = finite_array("output_weight", weight, (self.targets.shape[1],) * 2)
        solution = np.linalg.lstsq(self.inputs, self.targets, rcond=None)[0].T
        residuals = self.inputs @ solution.T - self.targets
        super().__init__(
            weight,
            self.inputs.T @ self.inputs / self.samples,
            minimizer=solution,
            minimum=0.5 * float(np.mean(np.sum(residuals @ weight * residuals, axis=1))),
            sharp_rank=sharp_rank,
        )

    @classmethod
    def synthetic(
        cls,
        output_spectrum: Array,
        input_spectrum: Array,
        *,
        samples: int,
        noise: float = 0.1,
        seed: int | np.random.Generator,
        sharp_rank: int | None = None,
    ) -> LinearRegression:
        """Data whose A and B have exactly these eigenvalues, with random eigenvectors (Haar).

        Args:
            output_spectrum: Eigenvalues of A, positive, shape ``(m,)``.
            input_spectrum: Eigenvalues of B, positive, shape ``(n,)``.
            samples: N ≥ n.
            noise: Standard deviation of the noise on each y before the fit.
            seed: Random seed or generator.
            sharp_rank: d_s.

        Raises:
            ValueError: for N < n or spectra that are not positive.
        """
        rng = np.random.default_rng(seed)
        outputs = finite_array("output_spectrum", output_spectrum, (None,))
        spectrum = finite_array("input_spectrum", input_spectrum, (None,))
        for name, eigenvalues in (("output_spectrum", outputs), ("input_spectrum", spectrum)):
            require_positive(f"min({name})", float(eigenvalues.min()), "covariances have positive eigenvalues")
        if samples < spectrum.size:
            raise ValueError(f"samples = {samples!r} must be at least the number of inputs, {spectrum.size}.")
        x, y = _random_frame(outputs.size, rng), _random_frame(spectrum.size, rng)
        white = np.linalg.qr(rng.normal(size=(samples, spectrum.size)))[0] * np.sqrt(samples)  # exact covariance I
        inputs = white * np.sqrt(spectrum) @ y.T
        truth = rng.normal(size=(outputs.size, spectrum.size))
        targets = inputs @ truth.T + noise * rng.normal(size=(samples, outputs.size))
        return cls(inputs, targets, output_weight=(x * outputs) @ x.T, sharp_rank=sharp_rank)

    def batch_gradient(self, w: Array, indices: Array) -> Array:
        inputs, targets = gather(self.inputs, indices, w), gather(self.targets, indices, w)
        xp, weight = namespace(w), self.layout.unpack(w)["weight"]
        residuals = inputs @ xp.matrix_transpose(weight) - targets
        return (like(self.left, w) @ xp.matrix_transpose(residuals) @ inputs).reshape(w.shape) / indices.shape[-1]


def _random_frame(size: int, rng: np.random.Generator) -> np.ndarray:
    frame: np.ndarray = ortho_group.rvs(size, random_state=rng) if size > 1 else np.eye(1)
    return frame
