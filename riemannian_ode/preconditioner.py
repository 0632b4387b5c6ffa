r"""Preconditioners with memory: an optimizer's metric as a map that depends on past gradients.

An optimizer's metric is rarely a function of w. It depends on a *memory* k of past gradients, mostly moving averages,

.. math:: \dot k = (1-\theta)\,(s(g) - k), \qquad k \leftarrow k + h(1-\theta)\,(s(g) - k),

and the flow has the state (w, m, k). Bias correction is also an average: the average of the number 1, started at 0. One
declaration, a subclass of :class:`Preconditioner`, serves the flow, the update rule, and the optimizers of ``lite``.

Arrays have the shape of the parameter, ``(*batch, *shape)``: a batch holds the members of an ensemble, or matrices of
equal shape. Memory is a dict of arrays that start with the batch axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from riemannian_ode.flow import Array, Projector, average_rate, average_step

Memory: TypeAlias = dict[str, Array]


class Preconditioner(ABC):
    r"""The inverse metric F⁻¹ of an optimizer: it takes gradients into its memory and raises covectors.

    A subclass declares its memory (:meth:`initial`, :meth:`rates`, :meth:`averaged`), the map (:meth:`raise_index`),
    and which directions are flat (:meth:`flat`). Everything else is shared: momentum, look-ahead, LITE's velocity,
    position.

    Some optimizers keep momentum in coordinates in which the metric is diagonal; SOAP uses an eigenbasis. The methods
    :meth:`to_frame` and :meth:`from_frame` declare such a *frame*, and :meth:`jump` changes it.

    Attributes:
        name: Its key in :data:`discretizations.preconditioners.PRECONDITIONERS`.
        needs_matrices: Whether parameters must be matrices ``(*batch, m, n)``.
        has_frame: Whether momentum is kept in a frame.
        differentiable: Whether torch's autograd can differentiate through its memory.
        elementwise: Keys of the memory that have the parameter's shape.
        masses: Keys of the memory that are averages of 1, used for bias correction.
    """

    name: ClassVar[str]
    needs_matrices: ClassVar[bool] = False
    has_frame: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    elementwise: ClassVar[tuple[str, ...]] = ()
    masses: ClassVar[tuple[str, ...]] = ()

    @property
    def is_linear(self) -> bool:
        """Whether F⁻¹, for a given memory, is linear and commutes with its flat projector."""
        return True

    @property
    def skips_first(self) -> bool:
        """Whether the first gradient only sets up the memory, without a step."""
        return False

    @property
    def degree(self) -> float | None:
        """Degree p if the direction is the gradient of a homogeneous potential φ(m) of degree p, else ``None``.

        A linear F⁻¹ has φ = ½⟨m, F⁻¹m⟩ and p = 2; the gradient of a norm has p = 1. The flow's energy follows from φ.
        """
        return 2.0 if self.is_linear else None

    @property
    def exact(self) -> Preconditioner:
        """The preconditioner that this one approximates and whose direction is such a gradient; else itself."""
        return self

    @property
    def has_split(self) -> bool:
        """Whether it has sharp directions of its own, so that χ and β_flat may differ from those of sharp ones."""
        return type(self).flat is not Preconditioner.flat

    def initial(self, w: Array, *, batch: int = 0) -> Memory:
        """Memory before the first gradient.

        Args:
            w: Parameters, shape ``(*batch, *shape)``; only shape, dtype and device matter.
            batch: Number of batch axes.
        """
        return {}

    def initial_mass(self, w: Array, *, batch: int = 0) -> Array:
        """The average of 1 before the first gradient, i.e. 0, shape ``(*batch,)``; in double precision if available."""
        if isinstance(w, np.ndarray):
            return np.zeros(w.shape[:batch])
        mass = w.new_zeros(w.shape[:batch])
        return mass if mass.device.type == "mps" else mass.double()

    def check_shape(self, shape: tuple[int, ...], *, batch: int = 0) -> None:
        """Refuse parameters that are not matrices, if :attr:`needs_matrices`.

        Raises:
            ValueError: giving the shape.
        """
        if self.needs_matrices and len(shape) - batch != 2:
            raise ValueError(
                f"w has shape {shape}; preconditioner {self.name!r} is made for matrices (m, n). "
                "Reshape w; for a flow give RISHD.from_optimizer shape=(m, n)."
            )

    def rates(self) -> Mapping[str, float | None]:
        """1 − θ of each average, per unit time, by key of the memory; ``None`` for a sum."""
        return {}

    def averaged(self, memory: Memory, g: Array, frame_g: Array) -> Memory:
        """The quantity s(g) that each average takes in, by key of the memory.

        Args:
            memory: Memory before the gradient.
            g: Gradient, shape ``(*batch, *shape)``.
            frame_g: The gradient in the frame; ``g`` itself without a frame.
        """
        return {}

    def observe(self, memory: Memory, g: Array, frame_g: Array, *, h: Any = 1.0) -> Memory:
        """Memory after taking in a gradient: an Euler step of :meth:`memory_rates`; h = 1 is the optimizer's.

        Args:
            memory: Memory before the gradient; it is not changed in place.
            g: Gradient.
            frame_g: The gradient in the frame.
            h: Step size, in units of time.
        """
        taken = self.averaged(memory, g, frame_g)
        rates = self.rates()
        return memory | {key: average_step(memory[key], s, rate=rates[key], h=h) for key, s in taken.items()}

    def memory_rates(self, memory: Memory, g: Array, frame_g: Array) -> Memory:
        """Rate of change of the memory; parts that are not averages do not change."""
        rates = self.rates()
        changes = {
            key: average_rate(memory[key], s, rate=rates[key]) for key, s in self.averaged(memory, g, frame_g).items()
        }
        return {key: changes[key] if key in changes else 0.0 * value for key, value in memory.items()}

    def admissible(self, memory: Memory) -> Memory:
        """The memory clipped to its bounds (e.g. second moments ≥ 0), which stages of integrators may leave."""
        return memory

    @abstractmethod
    def raise_index(self, memory: Memory, covector: Array) -> Array:
        """Apply F⁻¹ to a covector, both in the frame, shape ``(*batch, *shape)``."""

    def raise_two(self, memory: Memory, first: Array, second: Array) -> tuple[Array, Array]:
        """Apply :meth:`raise_index` to two covectors, for maps that are faster on both at once."""
        return self.raise_index(memory, first), self.raise_index(memory, second)

    def raise_step(
        self, memory: Memory, covector: Array, g: Array | None, *, h: Any = 1.0
    ) -> tuple[Array, Array | None, Memory]:
        """F⁻¹ of a step's covector and gradient, and the memory updated with what it learns from the raised covector.

        Args:
            memory: Memory after this step's gradient.
            covector: m̃.
            g: Gradient; ``None`` without damping.
            h: Step size, in units of time; 0 learns nothing.
        """
        if g is None:
            return self.raise_index(memory, covector), None, memory
        return *self.raise_two(memory, covector, g), memory

    def flat(self, memory: Memory, covector: Array, raised: Array | None, *, h: Any = 1.0) -> tuple[Projector, Memory]:
        """The flat projector x ↦ Qx in the frame, and the memory updated with what the mask learned in this step.

        Args:
            memory: Memory after this step's gradient.
            covector: m̃ that the metric raises.
            raised: F⁻¹m̃; ``None`` if :attr:`is_linear`.
            h: Step size, in units of time.

        Raises:
            ValueError: for a preconditioner without sharp directions.
        """
        raise self.no_split()

    def no_split(self) -> ValueError:
        """The error raised by a preconditioner without flat directions."""
        return ValueError(
            f"preconditioner {self.name!r} has no sharp directions; keep chi = 1 and beta_flat = beta_sharp."
        )

    def watch(self, memory: Memory, covector: Array) -> Memory:
        """Memory after a step without a split; a mask may keep learning."""
        return memory

    @property
    def masks_decay(self) -> bool:
        """Whether weight decay in flat directions is χ times that in sharp ones, so that the mask acts on w."""
        return True

    @property
    def applies_twice(self) -> bool:
        """Whether Q is the published soft mask, which the velocity applies twice to d."""
        return False

    def at_work(self, x: Array) -> Array:
        """A covector or vector in the dtype that :meth:`raise_index` uses, which also suits sending between ranks."""
        return x

    def to_frame(self, memory: Memory, x: Array) -> Array:
        """Coordinates of a covector or vector in the frame."""
        return x

    def from_frame(self, memory: Memory, x: Array) -> Array:
        """A covector or vector in the parameter's coordinates, from the frame."""
        return x

    def with_flat_decay(
        self, u: Array, flat: Projector, memory: Memory, shrinkage: Array, *, due: Sequence[int] | None
    ) -> Array:
        """u in the frame with the additional decay of flat directions; needed with a frame.

        Args:
            u: Direction, in the frame.
            flat: x ↦ Qx in the frame.
            memory: Memory of this step.
            shrinkage: (χ − χ_s)λw, not in the frame.
            due: Places in the batch whose frame jumps after this step of an optimizer; ``None`` in a flow.
        """
        return u + flat(self.to_frame(memory, shrinkage))

    def precondition(self, memory: Memory, covector: Array) -> Array:
        """Apply F⁻¹ to a covector, both in the parameter's coordinates, shape ``(*batch, *shape)``."""
        return self.from_frame(memory, self.raise_index(memory, self.to_frame(memory, covector)))

    def first(self, memory: Memory, g: Array) -> Memory:
        """Memory after the first gradient, which makes no step, if :attr:`skips_first`."""
        return memory

    def due(self, step: int, numbers: Sequence[int] = (0,)) -> list[int]:
        """Batch indices whose memory jumps after a step.

        Args:
            step: Gradients taken in so far, including this step's, but not the first one if :attr:`skips_first`.
            numbers: Running number of each matrix, so that matrices can jump in turn.
        """
        return []

    def phase(self, step: int) -> int:
        """The smallest step for which :meth:`due` and :meth:`jump` act as in this step."""
        return 0

    def jump(
        self, memory: Memory, m: Array, step: int, *, due: Sequence[int] = (0,), is_phase: bool = False
    ) -> tuple[Memory, Array]:
        """Memory and momentum after a jump such as a new frame; may change their arrays in place.

        Args:
            memory: Memory after a step.
            m: Momentum after the step, in the old frame.
            step: As for :meth:`due`.
            due: Its result.
            is_phase: Whether ``step`` is the :meth:`phase` instead of the step, as in compiled steps.
        """
        return memory, m

    def cost(self, rows: int, columns: int) -> float:
        """Operations per step for a matrix, used to divide work among ranks."""
        return float(rows * columns)


def spread(number: Array, x: Array) -> Array:
    """One number per batch member in the dtype of ``x``, with trailing axes of length 1 to broadcast against ``x``."""
    if number.dtype != x.dtype and hasattr(number, "is_floating_point") and number.is_floating_point():
        number = number.to(x.dtype)
    return number.reshape(number.shape + (1,) * (x.ndim - number.ndim))
