"""Layouts: the position of matrices in the flat coordinate vector w.

A landscape of matrices keeps w flat, as flows and integrators do; its layout says which coordinates form which matrix.
Blocks are stored one after the other, each row by row, so that a block's slice of w is what
:class:`riemannian_ode.structured_metric.KroneckerMetric` and :class:`riemannian_ode.varying_metric.GramRootMetric` call
w for a matrix of that shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from riemannian_ode.arrays import namespace
from riemannian_ode.flow import Array
from toy_landscapes.arguments import check_coordinates


@dataclass(frozen=True)
class Block:
    """One matrix or vector parameter of a landscape.

    Args:
        name: Its name.
        shape: Its shape as an array; (m, n) for a matrix.
        start: Index of its first coordinate in w.
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    @property
    def coordinates(self) -> slice:
        """Its slice of the last axis of w."""
        return slice(self.start, self.start + self.size)


class Layout(Mapping[str, Block]):
    """Blocks by name, in the order of their coordinates.

    Args:
        shapes: Name to shape of each block, in order.

    Raises:
        ValueError: if there are no blocks or a length is not positive.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if not shapes or any(n < 1 for shape in shapes.values() for n in shape):
            raise ValueError(f"shapes = {dict(shapes)!r} must name at least one block, all of positive lengths.")
        self._blocks: dict[str, Block] = {}
        self.dimension = 0
        for name, shape in shapes.items():
            self._blocks[name] = Block(name, tuple(shape), self.dimension)
            self.dimension += self._blocks[name].size

    def __getitem__(self, name: str) -> Block:
        return self._blocks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def unpack(self, w: Array) -> dict[str, Array]:
        """Parameters by name, each of shape ``(*ensemble, *shape)``; views where the array library allows it.

        Args:
            w: Coordinates, shape ``(*ensemble, p)``.

        Raises:
            ValueError: if w does not have p coordinates.
        """
        check_coordinates(w, self.dimension)
        return {
            block.name: w[..., block.coordinates].reshape(*w.shape[:-1], *block.shape)
            for block in self._blocks.values()
        }

    def pack(self, parameters: Mapping[str, Array]) -> Array:
        """Coordinates of shape ``(*ensemble, p)`` from parameters of shape ``(*ensemble, *shape)``.

        Raises:
            ValueError: for missing, unknown or wrongly shaped parameters.
        """
        if set(parameters) != set(self._blocks):
            raise ValueError(f"parameters has {sorted(parameters)}; the layout has {sorted(self._blocks)}.")
        flat = []
        for name, block in self._blocks.items():
            array = parameters[name]
            ensemble = tuple(array.shape[: array.ndim - len(block.shape)])
            if tuple(array.shape[len(ensemble) :]) != block.shape:
                raise ValueError(f"{name} has shape {tuple(array.shape)}; its last axes must be {block.shape}.")
            flat.append(array.reshape(*ensemble, block.size))
        return namespace(flat[0]).concat(flat, axis=-1)

    def mask(self, *names: str) -> np.ndarray:
        """Boolean mask of the named blocks' coordinates, shape ``(p,)``."""
        mask = np.zeros(self.dimension, dtype=bool)
        for name in names:
            mask[self._blocks[name].coordinates] = True
        return mask
