"""Hessian-vector products of a model's loss, one parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rishd.probing.lanczos import Product
from rishd.probing.trained_model import Inputs, loss_and_count


class BlockHessian:
    """Diagonal blocks of the Hessian of the mean loss on fixed sequences.

    The gradient's graph is kept, so that a product is one more backward pass through it. Memory is that of two
    training passes over all sequences, held until the object is gone.

    Args:
        model: A causal language model whose attention can be differentiated twice (``attn_implementation="eager"``).
        batches: Inputs of the model's passes; the loss is the mean over all tokens that count.
        names: Parameters to keep graphs for.

    Raises:
        ValueError: for an unknown parameter.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Inputs], names: Sequence[str]) -> None:
        known = dict(model.named_parameters())
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(f"the model has no parameter {', '.join(missing)}.")
        self.parameters: Mapping[str, Tensor] = {name: known[name] for name in names}
        self.loss = 0.0
        self._gradients: list[dict[str, Tensor]] = []
        counts = []
        was_training = model.training
        model.eval()  # no dropout: one function
        for inputs in batches:
            loss, count = loss_and_count(model, inputs)
            gradients = torch.autograd.grad(loss, list(self.parameters.values()), create_graph=True)
            self._gradients.append(dict(zip(self.parameters, gradients, strict=True)))
            self.loss += count * float(loss.detach())
            counts.append(count)
        model.train(was_training)
        self.loss /= sum(counts)
        self._shares = [count / sum(counts) for count in counts]

    def gradient(self, name: str) -> Tensor:
        """Gradient of the mean loss, shape of the parameter."""
        parts = zip(self._shares, self._gradients, strict=True)
        return torch.stack([share * part[name].detach() for share, part in parts]).sum(0)

    def times(self, name: str, direction: Tensor) -> Tensor:
        """H v for one parameter's block, shape of the parameter."""
        parameter = self.parameters[name]
        total = torch.zeros_like(parameter)
        for share, part in zip(self._shares, self._gradients, strict=True):
            (product,) = torch.autograd.grad(
                part[name], parameter, grad_outputs=direction, retain_graph=True, materialize_grads=True
            )
            total += share * product
        return total

    def product(self, name: str) -> Product:
        """The same for NumPy vectors of shape ``(p,)``, row-major."""
        parameter = self.parameters[name]
        return on_vectors(lambda v: self.times(name, v), parameter)


def on_vectors(apply: object, like: Tensor) -> Product:
    """A map of tensors of one shape as a map of NumPy vectors.

    Args:
        apply: X ↦ LX.
        like: Gives shape, dtype and device.
    """

    def product(vector: np.ndarray) -> np.ndarray:
        tensor = torch.as_tensor(np.ascontiguousarray(vector.reshape(-1))).to(like).reshape(like.shape)
        image: np.ndarray = apply(tensor).detach().reshape(-1).cpu().numpy()  # type: ignore[operator]
        return image

    return product
