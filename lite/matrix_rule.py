"""What a rule of matrices says: its state, its update, and how the update is divided where ranks hold parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lite.finiteness import guarded, guarded_state
from lite.rounding import rounds_stochastically
from lite.tensor_batches import TensorBatch, TensorEntry


class MatrixRule(ABC):
    """A rule of matrices. :meth:`matrix_state` and :meth:`matrix_update` are all that it must have.

    Where a matrix is cut into shards that lie on several ranks, a step has three parts: each rank works on its shard
    (:meth:`shard_update`) and sends what the rule needs to the matrix's owner; the owner works on the whole matrix
    (:meth:`whole_update`) and sends the reply's shards back; each rank moves its shard (:meth:`shard_move`). By
    default the owner gets parameter and gradient, keeps all state and returns the new parameter, which is right for
    any rule. A rule with state that is updated number by number may leave it on the shards; state that only the owner
    can update may lie there, too, and travels to the owner and back.

    Attributes:
        rule: Name of the rule.
        elementwise_state: Keys of the state that have the parameter's shape.
        sharded_state: Those of them that lie on the shards.
        travelling_state: Those of the sharded ones that :meth:`whole_update` changes, not :meth:`shard_update`.
        spare_state: Keys of the state that a lower ``sharp_fraction`` needs less of, in columns, or not at all.
        counts_gradients: Whether the update depends on how many gradients came before. Then a step first waits until
            the device has found out whether the gradients of the step before were finite: those of a skipped step do
            not count.
    """

    rule: ClassVar[str]
    elementwise_state: ClassVar[tuple[str, ...]] = ("momentum",)
    sharded_state: tuple[str, ...] = ()
    travelling_state: tuple[str, ...] = ()
    spare_state: ClassVar[tuple[str, ...]] = ()
    counts_gradients: ClassVar[bool] = True

    @abstractmethod
    def matrix_state(self, group: dict[str, Any], w: Tensor) -> dict[str, Tensor]:
        """State of matrices before their first step.

        Args:
            group: Their parameter group.
            w: Parameters, shape ``(m, n)`` or ``(E, m, n)``; every state tensor has the same leading axis, if any.
                Only shape, dtype and device count: an owner of shards has no values before the first step.
        """

    @abstractmethod
    def matrix_update(
        self,
        group: dict[str, Any],
        w: Tensor,
        g: Tensor,
        state: dict[str, Tensor],
        *,
        step: int,
        numbers: Sequence[int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of matrices of equal shape, without changing the arguments.

        Args:
            group: Their parameter group.
            w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
            g: Gradients, shape of ``w``.
            state: What :meth:`matrix_state` made, with a batch axis if ``w`` has one.
            step: How many gradients these matrices have had before.
            numbers: Running number of each matrix among those of its shape in the group, whatever else is in the batch.

        Returns:
            New parameters and state; what does not change may be returned as it came.
        """

    def guarded_update(
        self,
        group: dict[str, Any],
        w: Tensor,
        g: Tensor,
        state: dict[str, Tensor],
        *,
        step: int,
        numbers: Sequence[int],
        usable: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """:meth:`matrix_update` where the gradients are usable, else no change.

        Args:
            group: As for :meth:`matrix_update`.
            w: Likewise.
            g: Likewise, zero where they are not usable.
            state: Likewise.
            step: Likewise.
            numbers: Likewise.
            usable: Whether the gradients are finite, 0-dimensional; ``None`` is yes.

        Returns:
            New parameters, and the state that changes.
        """
        new_w, new_state = self.matrix_update(group, w, g, state, step=step, numbers=numbers)
        return guarded(usable, new_w, w), guarded_state(usable, new_state, state)

    def step_in_place(self, group: dict[str, Any], batch: TensorBatch, usable: Tensor | None) -> bool:
        """A way of the rule's own to change parameters and state of a batch, for speed.

        Args:
            group: The batch's parameter group.
            batch: Parameters, gradients and state.
            usable: Whether the gradients are finite, 0-dimensional; ``None`` is yes.

        Returns:
            Whether it took the step, as :meth:`guarded_update` would; else nothing has changed.
        """
        return False

    def check_rule(self, group: dict[str, Any]) -> None:  # noqa: B027  # a rule may have nothing to refuse
        """Refuse the rule's own hyperparameters where they are out of range."""

    def check_matrices(self, group: dict[str, Any], entries: Sequence[TensorEntry]) -> None:  # noqa: B027  # likewise
        """Refuse settings of a group that the state of its matrices does not allow, before a step changes anything.

        On several ranks every one checks all matrices, by shapes and settings alone: entries are on the meta device.
        """

    def squares_dtype(self, group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        """Floating type in which the rule computes sums of squares; gradients that overflow there are not finite.

        By default the parameters', at least float32. A rule that computes in a narrower one must say so.

        Args:
            group: A parameter group.
            dtype: Floating type of a parameter.
        """
        return torch.promote_types(dtype, torch.float32)

    def phase(self, group: dict[str, Any], step: int) -> int:
        """What :meth:`matrix_update` gets as ``step`` where it is compiled, for rules that look at it.

        There is one compiled update for each number. A rule that makes the same operations at many steps gives them
        one number, and finds the true count in ``group["count"]``, a tensor.

        Args:
            group: A parameter group.
            step: How many gradients its matrices have had before.
        """
        return step

    def matrix_cost(self, group: dict[str, Any], rows: int, columns: int) -> float:
        """Cost of one matrix m×n beside others, by which work is divided: mn·min(m, n), as of matrix products."""
        return float(rows * columns * min(rows, columns))

    def shard_update(
        self, group: dict[str, Any], w: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """First part of a step, on a shard of a parameter; nothing is changed in place.

        Args:
            group: Its parameter group.
            w: Shard, any shape (it may be empty).
            g: Gradient, shape of ``w``.
            state: The :attr:`sharded_state` that does not travel, shape of ``w``.

        Returns:
            What the owner needs, by name, each of the shape of ``w``; and the sharded state after the step. Names and
            floating types may depend on the group and the types only, so that all ranks agree on them.
        """
        return {"w": w, "g": g}, {}

    def whole_update(
        self, group: dict[str, Any], inputs: dict[str, Tensor], state: dict[str, Tensor], *, step: int, numbers: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Second part, on whole matrices of equal shape.

        Args:
            group: Their parameter group.
            inputs: What :meth:`shard_update` made, put together, shape ``(m, n)`` or ``(batch, m, n)``.
            state: All state but that which :meth:`shard_update` had.
            step: See :meth:`matrix_update`.
            numbers: See :meth:`matrix_update`.

        Returns:
            The reply, and the state after the step.
        """
        w = inputs["w"]  # float32 where it is rounded stochastically
        return self.matrix_update(group, w, inputs["g"].to(w.dtype), state, step=step, numbers=numbers)

    def shard_move(self, group: dict[str, Any], w: Tensor, reply: Tensor) -> Tensor:
        """Third part: the shard after the step.

        Args:
            group: Its parameter group.
            w: Shard before the step.
            reply: The owner's reply for this shard, shape of ``w``.
        """
        return reply

    def message_dtypes(self, group: dict[str, Any], w: Tensor) -> tuple[torch.dtype | None, torch.dtype]:
        """Floating types in which numbers travel to the owner (``None``: in their own) and the reply travels back.

        Args:
            group: A parameter group.
            w: A shard of one of its parameters.
        """
        return None, torch.float32 if rounds_stochastically(group, w) else w.dtype


def narrowest_squares(rule: MatrixRule, groups: Iterable[dict[str, Any]]) -> torch.dtype:
    """Floating type in which squares of all gradients must stay finite, see :meth:`MatrixRule.squares_dtype`.

    Args:
        rule: The rule of matrices.
        groups: An optimizer's parameter groups.
    """
    for group in groups:
        for dtype in {p.dtype for p in group["params"]}:
            wide = torch.promote_types(dtype, torch.float32)
            if group["rule"] != "adamw":
                wide = rule.squares_dtype(group, dtype)
            if wide != torch.float64:
                return torch.float32
    return torch.float64
