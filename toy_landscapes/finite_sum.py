"""Landscapes that are averages over data, with mini-batch gradients."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from riemannian_ode.arrays import is_torch, like, namespace
from riemannian_ode.flow import Array
from toy_landscapes.landscape import Landscape


class FiniteSum(Landscape):
    r""":math:`f(w) = \frac1N\sum_{i=1}^N f_i(w)`.

    Attributes:
        samples: N.
    """

    samples: int

    @abstractmethod
    def batch_gradient(self, w: Array, indices: Array) -> Array:
        r"""Gradient over a batch, :math:`\frac1b\sum_{i\in\text{batch}}\nabla f_i(w)`, one batch per member.

        Args:
            w: Points, shape ``(*ensemble, p)``.
            indices: Samples of each member's batch in 0 … N−1, integers of shape ``(*ensemble, b)``, an array of the
                same kind as w.

        Returns:
            Shape ``(*ensemble, p)``.
        """

    def sample_gradients(self, w: Array) -> Array:
        """∇f_i(w) of every sample, shape ``(*ensemble, N, p)``."""
        copies = w[..., None, :] + like(np.zeros((self.samples, 1)), w)
        indices = np.zeros((*w.shape[:-1], self.samples, 1), dtype=np.int64) + np.arange(self.samples)[:, None]
        return self.batch_gradient(copies, as_indices(indices, w))

    def gradient_covariance(self, w: Array) -> Array:
        r"""Covariance of a single sample's gradient.

        .. math:: C(w) = \frac1N\sum_i(\nabla f_i - \nabla f)(\nabla f_i - \nabla f)^\top

        The gradient over b samples drawn with replacement has covariance C/b.

        Args:
            w: Points, shape ``(*ensemble, p)``.

        Returns:
            Shape ``(*ensemble, p, p)``.
        """
        deviations = self.sample_gradients(w) - self.gradient(w)[..., None, :]
        return namespace(w).matrix_transpose(deviations) @ deviations / self.samples


def as_indices(indices: np.ndarray, reference: Array) -> Array:
    """Integers for use with ``reference``: a tensor on its device if it is a tensor (``like`` would give floats)."""
    if not is_torch(reference):
        return indices
    import torch

    return torch.as_tensor(indices, device=reference.device)


def gather(rows: np.ndarray, indices: Array, reference: Array) -> Array:
    """``rows[indices]`` as an array like ``reference``.

    Args:
        rows: Data, numpy, shape ``(N, *shape)``.
        indices: Shape ``(*ensemble, b)``.
        reference: Array that sets the kind, dtype and device of the result.

    Returns:
        Shape ``(*ensemble, b, *shape)``.
    """
    return like(rows, reference)[indices]
