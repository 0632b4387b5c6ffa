r"""The update rule of a parameter group, and its step in three stages.

A subclass of :class:`lite.LITEOptimizer` declares only the update rule of a group of matrices: a preconditioner with
its coefficients. This determines a step,

.. math::
    (m, k) \leftarrow g, \quad \tilde m = m + \nu g \qquad\to\qquad u = \mathrm{LITE}(F_k^{-1}\tilde m, F_k^{-1}g)
    \qquad\to\qquad w \leftarrow w - \eta u

and also its three stages for a matrix that is sharded over several ranks: elementwise operations run on the shards, the
map runs on the whole matrix at its owner, and the move runs on the shards again. A single process runs the same stages
with one shard.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from discretizations.preconditioners.hypergradient_ratio import HypergradientRatio
from discretizations.update_rule import UpdateRule
from lite.adamw import adamw_rule
from lite.parameters.decay import decay_rate
from lite.parameters.parameter_entries import TensorEntry, group_views, row_ordered, state_key
from lite.parameters.tensor_settings import acts
from riemannian_ode.preconditioner import Memory, Preconditioner
from riemannian_ode.stages import Directed, TakenIn, direction_on_sphere, move, with_cautious_decay

PLAIN_FRACTION = 1e-6  # at or below this sharp fraction a matrix runs the base optimizer (published code)
ANY_SHAPE = (1, 1)  # for results that do not depend on the shape of matrices; the scale is not evaluated
MOMENTUM = "momentum"  # key of m in the state; all other keys belong to the memory


class Declaration(ABC):
    """What an optimizer declares about its matrices, and the stages of their step.

    Attributes:
        rule: Name of the rule, in a group's ``rule``.
        takes_any_shape: Whether the rule accepts parameters of any shape, each as one row.
        sharded_state: Keys of the state stored on the shards; by default the momentum of a rule that takes in gradients
            elementwise (:meth:`takes_in_on_shards`).
        travelling_state: Keys of sharded state that only the owner can update; this state travels to the owner and
            back.
        spare_state: Keys of the state of which a lower ``sharp_fraction`` needs fewer columns, or none.
        counts_gradients: Whether the update depends on the number of earlier gradients in a way that the memory does
            not record. A step then first waits until the device knows whether the previous step's gradients were
            finite, since gradients of a skipped step do not count.
        largest_cpu_batch: Most numbers in a batch on a CPU; ``None`` uses the limit of other devices.
    """

    rule: ClassVar[str]
    takes_any_shape: ClassVar[bool] = False
    sharded_state: tuple[str, ...] = ()
    travelling_state: tuple[str, ...] = ()
    spare_state: ClassVar[tuple[str, ...]] = ()
    counts_gradients: ClassVar[bool] = False
    largest_cpu_batch: ClassVar[int | None] = None

    @abstractmethod
    def update_rule(self, group: dict[str, Any], shape: tuple[int, int]) -> UpdateRule:
        """The update rule of matrices of a group.

        Args:
            group: A parameter group; its hyperparameters are read at every step, so schedules take effect.
            shape: (m, n) of the matrices.
        """

    def adamw_rule(self, group: dict[str, Any]) -> UpdateRule:
        """The update rule of an AdamW group, as published: without Hessian damping."""
        return adamw_rule(group)

    def learning_rate(self, group: dict[str, Any], shape: tuple[int, int]) -> Any:
        """Factor η of the direction for matrices of a shape: the group's ``lr``, times a scale if there is one."""
        return group["lr"]

    def momentum_dtype(self, group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        """Dtype of the momentum for parameters of a dtype; by default the same, but at least float32."""
        return torch.promote_types(dtype, torch.float32)

    def check_rule(self, group: dict[str, Any]) -> None:  # noqa: B027  # a rule may have nothing to refuse
        """Refuse hyperparameters of the rule that are out of range."""

    def check_matrices(self, group: dict[str, Any], entries: Sequence[TensorEntry]) -> None:  # noqa: B027  # as above
        """Refuse, before a step, settings of a group that do not fit the state of its matrices.

        Every rank checks all matrices by shapes and settings alone; on several ranks entries are on the meta device.
        """

    def matrix_state(self, group: dict[str, Any], w: Tensor) -> dict[str, Tensor]:
        """State of matrices before their first step: momentum and the preconditioner's memory.

        Args:
            group: Their parameter group.
            w: Parameters, shape ``(m, n)`` or ``(E, m, n)``; every state tensor has the same leading axis, if any.
                Only shape, dtype and device matter: an owner of shards has no values before the first step.
        """
        rule = self.update_rule(group, matrix_shape(w))
        m = torch.zeros_like(w, dtype=self.momentum_dtype(group, w.dtype))
        return {MOMENTUM: m, **rule.initial_memory(w, batch=w.ndim - 2)}

    def parameter_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        """State of a parameter, i.e. of all its matrices, before the first step.

        Args:
            group: Its parameter group.
            p: The parameter, or part of a stack of experts; values do not matter, as in :meth:`matrix_state`.
        """
        p = row_ordered(p)
        views = group_views(group, p)
        elementwise = self.elementwise_state(group)
        state: dict[str, Tensor] = {}
        for i, view in enumerate(views):
            for name, value in self.matrix_state(group, view).items():
                if name in elementwise:
                    state[name] = torch.zeros_like(p, dtype=value.dtype)
                else:
                    state[state_key(name, i, len(views))] = value
        return state

    def elementwise_state(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Keys of the state that have the parameter's shape."""
        return MOMENTUM, *self.update_rule(group, ANY_SHAPE).preconditioner.elementwise

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
        """One step for matrices of equal shape, all three stages, without changing the arguments.

        Args:
            group: Their parameter group.
            w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
            g: Gradients, shape of ``w``.
            state: State from :meth:`matrix_state`, with a batch axis if ``w`` has one.
            step: Number of earlier gradients of these matrices; in a compiled step, their :meth:`phase`.
            numbers: Running number of each matrix among those of its shape in the group, independent of the batch.

        Returns:
            New parameters and state; unchanged tensors may be returned as such.
        """
        return rule_update(
            self.update_rule(group, matrix_shape(w)),
            w,
            g,
            state,
            eta=self.learning_rate(group, matrix_shape(w)),
            step=step,
            numbers=numbers,
            is_phase="count" in group,
        )

    def squares_dtype(self, group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        """Dtype in which the rule computes sums of squares; gradients that overflow in it count as non-finite.

        By default that of the parameters, but at least float32. A rule that computes in a narrower dtype must override
        this.

        Args:
            group: A parameter group.
            dtype: Dtype of a parameter.
        """
        return torch.promote_types(dtype, torch.float32)

    def phase(self, group: dict[str, Any], step: int) -> int:
        """The value that a compiled :meth:`matrix_update` or :meth:`owner_direct` gets as ``step``.

        There is one compiled update per value. Steps with the same operations share a value.

        Args:
            group: A parameter group.
            step: Number of earlier gradients of its matrices.
        """
        return self.update_rule(group, ANY_SHAPE).preconditioner.phase(step)

    def matrix_cost(self, group: dict[str, Any], rows: int, columns: int) -> float:
        """Relative cost of one matrix m×n, used to divide work among ranks."""
        return self.update_rule(group, (rows, columns)).preconditioner.cost(rows, columns)

    def takes_in_on_shards(self, group: dict[str, Any]) -> bool:
        """Whether a shard can take in its part of the gradient, i.e. no frame and no memory of whole gradients."""
        preconditioner = self.update_rule(group, ANY_SHAPE).preconditioner
        has_averages_only = type(preconditioner).observe is Preconditioner.observe
        return has_averages_only and not preconditioner.has_frame and not preconditioner.rates()

    def shard_take_in(
        self, group: dict[str, Any], w: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """First stage, on a shard of a parameter; nothing is changed in place.

        Args:
            group: Its parameter group.
            w: Shard, any shape (it may be empty).
            g: Gradient, shape of ``w``.
            state: The :attr:`sharded_state` that does not travel, shape of ``w``.

        Returns:
            What the owner needs, by name, each of the shape of ``w``; and the sharded state after the step. Names and
                dtypes depend only on the group and the dtypes, so that all ranks agree on them.
        """
        if not self.takes_in_on_shards(group):
            return {"w": w, "g": g}, {}
        rule = self.update_rule(group, ANY_SHAPE)
        m = state[MOMENTUM]
        taken = rule.take_in(m, {}, g.to(m.dtype))
        sent = {"covector": taken.covector}
        if rule.is_damped or rule.ratio is not None:
            sent["g"] = taken.g
        if rule.splits_decay or rule.keeps_norm:
            sent["w"] = w
        return sent, {MOMENTUM: taken.m}

    def owner_direct(
        self, group: dict[str, Any], sent: dict[str, Tensor], state: dict[str, Tensor], *, step: int, numbers: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Second stage, on whole matrices of equal shape.

        Args:
            group: Their parameter group.
            sent: Results of :meth:`shard_take_in`, assembled to shape ``(m, n)`` or ``(batch, m, n)``.
            state: All state except that of :meth:`shard_take_in`.
            step: See :meth:`matrix_update`.
            numbers: See :meth:`matrix_update`.

        Returns:
            The reply, and the state after the step.
        """
        if not self.takes_in_on_shards(group):
            w = sent["w"]  # float32 if it will be rounded stochastically
            return self.matrix_update(group, w, sent["g"].to(w.dtype), state, step=step, numbers=numbers)
        covector = sent["covector"]
        shape = matrix_shape(covector)
        rule = self.update_rule(group, shape)
        taken = TakenIn(covector, state, sent.get("g"), covector)
        is_phase = "count" in group
        directed = rule.direct(taken, w=sent.get("w"), step=step + 1, numbers=numbers, is_phase=is_phase)
        wide = torch.promote_types(directed.u.dtype, torch.float32)  # as the move uses it in one process
        u = directed.u.to(wide)
        if rule.keeps_norm:
            return direction_on_sphere(sent["w"], u, eta=group["lr"]), directed.memory
        return self.learning_rate(group | {"lr": 1.0}, shape) * u, directed.memory

    def shard_move(self, group: dict[str, Any], w: Tensor, reply: Tensor) -> Tensor:
        """Third stage: the shard after the step.

        Args:
            group: Its parameter group.
            w: Shard before the step.
            reply: The owner's reply for this shard, shape of ``w``.
        """
        if not self.takes_in_on_shards(group):
            return reply
        rule = self.update_rule(group, ANY_SHAPE)
        directed = Directed(reply, reply, {})
        decay = decay_rate(group)
        if rule.is_cautious:
            directed = with_cautious_decay(directed, w, decay)
        elif acts(decay, 0.0) and not rule.splits_decay:  # else the reply has it
            directed = directed._replace(u=reply + (rule.chi_sharp * decay) * w)
        moved: Tensor = move(w, directed, eta=group["lr"])
        return moved

    def message_dtypes(self, group: dict[str, Any], w: Tensor) -> tuple[torch.dtype | None, torch.dtype]:
        """Dtypes of the messages to the owner (``None``: unchanged) and of the reply.

        Args:
            group: A parameter group.
            w: A shard of one of its parameters.
        """
        return None, torch.float32 if rounds_stochastically(group, w) else w.dtype


def rule_update(
    rule: UpdateRule,
    w: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    *,
    eta: Any,
    step: int = 0,
    numbers: Sequence[int] = (0,),
    is_phase: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All three stages of a step, without changing the arguments.

    Args:
        rule: The update rule.
        w: Parameters, shape ``(*batch, *shape)``.
        g: Gradients, shape of ``w``.
        state: Momentum and memory.
        eta: η.
        step: Number of earlier gradients, or their phase.
        numbers: See :meth:`riemannian_ode.preconditioner.Preconditioner.due`.
        is_phase: Whether ``step`` is a phase.

    Returns:
        New parameters, at least in the momentum's dtype, and new state.
    """
    m = state[MOMENTUM]
    memory: Memory = {key: value for key, value in state.items() if key != MOMENTUM}
    wide = torch.promote_types(m.dtype, memory["v"].dtype) if "v" in memory else m.dtype
    if not w.dtype == g.dtype == m.dtype == wide:
        w, g, m = w.to(torch.promote_types(w.dtype, wide)), g.to(wide), m.to(wide)
    if rule.preconditioner.skips_first and step == 0:
        return w, {MOMENTUM: state[MOMENTUM], **rule.preconditioner.first(memory, g)}
    count = step if rule.preconditioner.skips_first else step + 1
    taken = rule.take_in(m, memory, g)
    directed = rule.direct(taken, w=w, step=count, numbers=numbers, is_phase=is_phase)
    return rule.move(w, directed, eta=eta), {MOMENTUM: directed.m, **directed.memory}


def matrix_shape(w: Tensor) -> tuple[int, int]:
    """(m, n) of matrices ``(*batch, m, n)``; (1, 1) for vectors and numbers."""
    return (int(w.size(-2)), int(w.size(-1))) if w.ndim > 1 else ANY_SHAPE


def followed_ratio(group: Mapping[str, Any]) -> HypergradientRatio | None:
    """What sets χ of a group's matrices, beside the group's own number; ``None`` if nothing does."""
    return HypergradientRatio() if group["adapts_chi"] else None


def rounds_stochastically(group: Mapping[str, Any], w: Tensor) -> bool:
    """Whether parameters of a group are rounded stochastically: they are bfloat16 and the group asks for it."""
    return bool(group["stochastic_rounding"]) and w.dtype == torch.bfloat16
