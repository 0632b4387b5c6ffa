"""Hessian-vector products of a model's loss, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from rishd.probing.evaluation import evaluating
from rishd.probing.lanczos import Product
from rishd.probing.loss_graphs import LossGraphs, Pass, on_parts
from rishd.probing.trained_model import Inputs, loss_and_count


class BlockHessian(LossGraphs):
    """Diagonal blocks of the Hessian of the mean loss on fixed sequences.

    Args:
        model: A causal language model whose attention can be differentiated twice (``attn_implementation="eager"``).
        batches: Inputs of the model's passes; the loss is the mean over all counted tokens.
        names: Parameters to keep graphs for.

    Raises:
        ValueError: for an unknown parameter.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Inputs], names: Sequence[str]) -> None:
        known = dict(model.named_parameters())
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(f"the model has no parameter {', '.join(missing)}.")
        with evaluating(model):  # without dropout, a deterministic function
            passes = (Pass(*loss_and_count(model, inputs)) for inputs in batches)
            super().__init__(passes, {name: known[name] for name in names})

    def times(self, name: str, direction: Tensor) -> Tensor:
        """H v for one parameter's block, shape of the parameter."""
        return self.apply("hessian", {name: direction})[name]

    def product(self, name: str) -> Product:
        """H v for NumPy vectors of shape ``(p,)``, in row-major order."""
        parameter = self.parameters[name]
        return on_vectors(lambda v: self.times(name, v), parameter)


def on_vectors(apply: Callable[[Tensor], Tensor], like: Tensor) -> Product:
    """:func:`rishd.probing.loss_graphs.on_parts` for one tensor."""
    return on_parts(lambda x: {"": apply(x[""])}, {"": like})
