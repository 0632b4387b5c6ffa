"""A two-layer network on fixed synthetic data, with hand-written derivatives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from riemannian_ode.arrays import like, namespace
from riemannian_ode.flow import Array
from toy_landscapes.activation import ActivationName, activate
from toy_landscapes.arguments import checked_sharp_rank, finite_array
from toy_landscapes.curvature import hessian_from_products
from toy_landscapes.finite_sum import FiniteSum, gather
from toy_landscapes.layout import Layout


class _Pass(NamedTuple):
    """Intermediate values of a forward pass that the derivatives need; rows are samples."""

    inputs: Array
    hidden: Array
    slope: Array
    curvature: Array
    residual: Array


class TwoLayerNetwork(FiniteSum):
    r""":math:`f(W_1, W_2) = \frac1{2N}\sum_i\lVert W_2\varphi(W_1x_i) - y_i\rVert^2`.

    w holds W₁ (h, n) row by row, then W₂ (m, h) row by row, p = h(n + m); ``layout`` has the blocks ``"hidden"`` and
    ``"output"``. f_i is the i-th term.

    Args:
        inputs: x_i, shape ``(N, n)``.
        targets: y_i, shape ``(N, m)``.
        width: h, number of hidden units.
        activation: φ, ``"tanh"`` or ``"softplus"``.
        minimizer: A known global minimum with f = 0, shape ``(p,)``, as :meth:`teacher_student` has.
        sharp_rank: d_s; a tenth of p by default, at least 1.

    Raises:
        ValueError: for shapes that do not match, a width below 1, or an unknown activation.

    Source: textbook; derivatives derived here and tested against autograd.
    """

    def __init__(
        self,
        inputs: Array,
        targets: Array,
        *,
        width: int,
        activation: ActivationName = "tanh",
        minimizer: Array | None = None,
        sharp_rank: int | None = None,
    ) -> None:
        self.inputs = finite_array("inputs", inputs, (None, None))
        self.targets = finite_array("targets", targets, (len(self.inputs), None))
        self.samples, n = self.inputs.shape
        self.layout = Layout({"hidden": (width, n), "output": (self.targets.shape[1], width)})
        self.dimension = self.layout.dimension
        self.sharp_rank = checked_sharp_rank(sharp_rank, self.dimension)
        self.activation = activation
        self.minimizer = None if minimizer is None else finite_array("minimizer", minimizer, (self.dimension,))
        activate(activation, np.zeros(1))  # raises now for an unknown name

    @classmethod
    def teacher_student(
        cls,
        *,
        inputs: int,
        width: int,
        outputs: int,
        samples: int,
        activation: ActivationName = "tanh",
        noise: float = 0.0,
        seed: int | np.random.Generator,
        sharp_rank: int | None = None,
    ) -> TwoLayerNetwork:
        """A network with standard normal inputs and the targets of a random network of the same width (the teacher).

        Without noise the teacher is a global minimum with f = 0, stored as ``minimizer``.

        Args:
            inputs: n.
            width: h.
            outputs: m.
            samples: N.
            activation: φ.
            noise: Standard deviation of the noise on the targets.
            seed: Random seed or generator.
            sharp_rank: d_s.
        """
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(samples, inputs))
        hidden = rng.normal(size=(width, inputs)) / np.sqrt(inputs)
        output = rng.normal(size=(outputs, width)) / np.sqrt(width)
        y = activate(activation, x @ hidden.T)[0] @ output.T
        y = y + noise * rng.normal(size=y.shape)
        teacher = np.concatenate([hidden.reshape(-1), output.reshape(-1)]) if noise == 0 else None
        return cls(x, y, width=width, activation=activation, minimizer=teacher, sharp_rank=sharp_rank)

    def initial(self, seed: int | np.random.Generator, ensemble: tuple[int, ...] = ()) -> np.ndarray:
        """Random weights with variance 1/fan-in, shape ``(*ensemble, p)``.

        Args:
            seed: Random seed or generator.
            ensemble: Axes of the ensemble.
        """
        rng = np.random.default_rng(seed)
        blocks = self.layout.values()
        return np.concatenate([rng.normal(size=(*ensemble, b.size)) / np.sqrt(b.shape[1]) for b in blocks], axis=-1)

    def value(self, w: Array) -> Array:
        residual = self._forward(w, like(self.inputs, w), like(self.targets, w)).residual
        return 0.5 * (residual**2).sum((-2, -1)) / self.samples

    def gradient(self, w: Array) -> Array:
        return self._gradient(w, like(self.inputs, w), like(self.targets, w))

    def batch_gradient(self, w: Array, indices: Array) -> Array:
        return self._gradient(w, gather(self.inputs, indices, w), gather(self.targets, indices, w))

    def hvp(self, w: Array, v: Array) -> Array:
        xp, run = namespace(w), self._forward(w, like(self.inputs, w), like(self.targets, w))
        weights, change = self.layout.unpack(w), self.layout.unpack(v)
        d_input = run.inputs @ xp.matrix_transpose(change["hidden"])
        d_hidden = run.slope * d_input
        d_residual = d_hidden @ xp.matrix_transpose(weights["output"]) + run.hidden @ xp.matrix_transpose(
            change["output"]
        )
        back = run.residual @ weights["output"]
        d_back = d_residual @ weights["output"] + run.residual @ change["output"]
        d_delta = d_back * run.slope + back * run.curvature * d_input
        d_output = xp.matrix_transpose(d_residual) @ run.hidden + xp.matrix_transpose(run.residual) @ d_hidden
        return (
            self.layout.pack({"hidden": xp.matrix_transpose(d_delta) @ run.inputs, "output": d_output}) / self.samples
        )

    def hessian(self, w: Array) -> Array:
        return hessian_from_products(self.hvp, w)

    def _gradient(self, w: Array, inputs: Array, targets: Array) -> Array:
        xp, run = namespace(w), self._forward(w, inputs, targets)
        delta = (run.residual @ self.layout.unpack(w)["output"]) * run.slope
        blocks = {
            "hidden": xp.matrix_transpose(delta) @ run.inputs,
            "output": xp.matrix_transpose(run.residual) @ run.hidden,
        }
        return self.layout.pack(blocks) / inputs.shape[-2]

    def _forward(self, w: Array, inputs: Array, targets: Array) -> _Pass:
        xp, weights = namespace(w), self.layout.unpack(w)
        hidden, slope, curvature = activate(self.activation, inputs @ xp.matrix_transpose(weights["hidden"]))
        residual = hidden @ xp.matrix_transpose(weights["output"]) - targets
        return _Pass(inputs, hidden, slope, curvature, residual)
