r"""Products with the Hessian, Gauss–Newton and empirical Fisher matrix of a mean loss, from retained graphs.

With outputs f(w) of examples n = 1, …, N, their Jacobian J, and the loss :math:`L = \frac1N\sum_n\ell_n(f_n)`,

.. math::
    \nabla^2L, \qquad G = J^\top\,\nabla_f^2L\,J, \qquad
    E = \frac1N\sum_n\nabla\ell_n\nabla\ell_n^\top

Products are second backward passes through the graphs of the first, so any model works that supports double backward.
Forward derivatives are not needed; SiLU's gradient, for example, has none in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from riemannian_ode.checks import one_line
from rishd.probing.lanczos import Product
from rishd.probing.parameter_choice import ProbeError

Operator: TypeAlias = Literal["hessian", "gauss-newton", "fisher"]
OPERATORS: tuple[Operator, ...] = ("hessian", "gauss-newton", "fisher")


@dataclass(frozen=True)
class Pass:
    """A batch after the model's forward pass.

    Args:
        loss: Mean loss over its examples, 0-dimensional.
        count: Number of examples.
        output: The loss's input, with examples along the first axis; ``None`` if unknown.
        loss_of: Output ↦ loss.
    """

    loss: Tensor
    count: int
    output: Tensor | None = None
    loss_of: Callable[[Tensor], Tensor] | None = None


class LossGraphs:
    """Curvature of the mean loss over passes, in chosen parameters.

    It uses the memory of two training passes over all batches until the object is deleted; the Gauss–Newton matrix and
    the empirical Fisher matrix need a third.

    Args:
        passes: Batches after the forward pass.
        parameters: Parameters by name.
        with_outputs: Whether to support products other than the Hessian's.

    Raises:
        ProbeError: for a loss that is not a finite number, or a model that cannot be differentiated twice.

    Source: Pearlmutter, Neural Computation 6 (1994), Hessian; Schraudolph, Neural Computation 14 (2002), Gauss–Newton.
    """

    def __init__(self, passes: Iterable[Pass], parameters: Mapping[str, Tensor], *, with_outputs: bool = False) -> None:
        self.parameters = parameters
        self.counts: list[int] = []
        self._gradients: list[dict[str, Tensor]] = []
        self._outputs: list[_OutputGraph] = []
        total = 0.0
        for number, one in enumerate(passes):
            loss = float(one.loss.detach())
            if not math.isfinite(loss):
                raise ProbeError(
                    f"the loss of batch {number} is {loss}; look at that batch, or probe an earlier checkpoint."
                )
            if not one.loss.requires_grad:
                raise ProbeError(
                    f"the loss of batch {number} has no gradient; the model or the loss runs under torch.no_grad()."
                )
            total += one.count * loss
            found = _differentiated([one.loss], list(parameters.values()), create_graph=True)
            self._gradients.append(dict(zip(parameters, found, strict=True)))
            self.counts.append(one.count)
            if with_outputs:
                self._outputs.append(_OutputGraph(one, parameters))
        if not self.counts:
            raise ProbeError("batches is empty; give at least one.")
        self.loss = total / sum(self.counts)
        self._shares = [count / sum(self.counts) for count in self.counts]

    def batch_gradients(self) -> list[dict[str, Tensor]]:
        """Gradient of each batch's loss, by parameter name."""
        return [{name: g.detach() for name, g in part.items()} for part in self._gradients]

    def gradient(self, name: str) -> Tensor:
        """Gradient of the mean loss, shape of the parameter."""
        parts = zip(self._shares, self._gradients, strict=True)
        return torch.stack([share * part[name].detach() for share, part in parts]).sum(0)

    def apply(self, operator: Operator, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Product of an operator's block for some parameters with a vector.

        Args:
            operator: Name of the operator.
            directions: One direction per parameter of the block, in its shape.
        """
        names, vectors = list(directions), list(directions.values())
        inputs = [self.parameters[name] for name in names]
        total = [torch.zeros_like(x) for x in inputs]
        for number, share in enumerate(self._shares):
            if operator == "hessian":
                part = self._gradients[number]
                images = _differentiated([part[name] for name in names], inputs, vectors)
            else:
                images = self._outputs[number].product(operator, self.parameters, directions)
            total = [x + share * image for x, image in zip(total, images, strict=True)]
        return dict(zip(names, total, strict=True))


def on_parts(apply: Callable[[dict[str, Tensor]], dict[str, Tensor]], like: Mapping[str, Tensor]) -> Product:
    """Turn a map of named tensors into a map of NumPy vectors of shape ``(p,)``, which concatenate the tensors.

    Args:
        apply: X ↦ LX.
        like: Tensors that set names, shapes, dtypes and devices.
    """
    ends = np.cumsum([x.numel() for x in like.values()])[:-1]

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = zip(like.items(), np.split(vector.reshape(-1), ends), strict=True)
        parts = {name: torch.as_tensor(np.ascontiguousarray(v)).to(x).reshape(x.shape) for (name, x), v in pieces}
        return np.concatenate([x.detach().reshape(-1).cpu().numpy() for x in apply(parts).values()])

    return product


def common_dtype(parameters: Mapping[str, Tensor]) -> np.dtype:
    """NumPy dtype of vectors over all parameters."""
    return np.result_type(*(np.dtype(str(p.dtype).removeprefix("torch.")) for p in parameters.values()))


class _OutputGraph:
    """Jacobian of a batch's output, and derivatives of its loss with respect to the output."""

    def __init__(self, one: Pass, parameters: Mapping[str, Tensor]) -> None:
        if one.output is None or one.loss_of is None:
            raise ProbeError("gauss-newton and fisher need the model's output apart from its loss.")
        self._output = one.output
        self._covector = torch.zeros_like(one.output, requires_grad=True)
        pulled = _differentiated([one.output], list(parameters.values()), [self._covector], create_graph=True)
        self._pulled = dict(zip(parameters, pulled, strict=True))
        self._point = one.output.detach().requires_grad_()
        (self._slope,) = _differentiated([one.loss_of(self._point)], [self._point], create_graph=True)

    def product(
        self, operator: Operator, parameters: Mapping[str, Tensor], directions: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """GX or EX of this batch."""
        # Jᵀy is linear in y, so its derivative with respect to y along X is JX.
        (pushed,) = _differentiated([self._pulled[name] for name in directions], [self._covector], directions.values())
        if operator == "gauss-newton":
            (covector,) = _differentiated([self._slope], [self._point], [pushed])
        else:
            slope = self._slope.detach()
            along = (slope * pushed).flatten(1).sum(1) if slope.ndim > 1 else slope * pushed
            # The slope contains ∂ℓₙ/∂fₙ divided by N.
            covector = len(slope) * slope * along.reshape(-1, *[1] * (slope.ndim - 1))
        return _differentiated([self._output], [parameters[name] for name in directions], [covector])


def _differentiated(
    values: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Iterable[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Σ weight·∂value/∂input for every input, keeping the graph. Values without a graph count as constant."""
    paired = zip(values, weights, strict=True) if weights is not None else ((value, None) for value in values)
    moving = [(value, weight) for value, weight in paired if value.requires_grad]
    if not moving:
        return tuple(torch.zeros_like(x) for x in inputs)
    outputs, given = zip(*moving, strict=True)
    try:
        return torch.autograd.grad(
            outputs,
            inputs,
            None if weights is None else given,
            create_graph=create_graph,
            retain_graph=True,
            materialize_grads=True,
        )
    except RuntimeError as problem:
        if "out of memory" in str(problem):
            raise
        raise ProbeError(
            f"the model cannot be differentiated twice: {one_line(problem, 200)}. Fused attention is the usual cause: "
            "load the model with attn_implementation='eager', or name other parameters."
        ) from problem
