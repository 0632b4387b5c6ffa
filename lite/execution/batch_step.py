"""What a step does with one batch of tensors, as it is or in a form that compiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from discretizations.update_rule import UpdateRule
from lite.execution import fused_step
from lite.execution.factors_in_place import FACTORS, with_factors_in_place
from lite.execution.finiteness import guarded, guarded_state
from lite.execution.rounding import rounded_stochastically
from lite.execution.tensor_batches import TensorBatch
from lite.matrix_rule import MatrixRule, matrix_shape, rounds_stochastically, rule_update
from lite.parameters.tensor_settings import as_tensor, traced_settings


def traced_batch(rule: MatrixRule, group: dict[str, Any], batch: TensorBatch) -> tuple[dict[str, Any], TensorBatch]:
    """Settings and batch in which only tensors change from step to step, see :meth:`MatrixRule.phase`.

    Args:
        rule: The rule of matrices.
        group: The batch's parameter group.
        batch: Of one step.
    """
    first = batch.entries[0]
    settings = traced_settings(group, first.w.device)
    if group["rule"] == "adamw":
        return settings, batch
    settings["count"] = as_tensor(first.step, first.w.device)
    phase = rule.phase(group, first.step)
    entries = [entry._replace(step=phase, numbers=tuple(entry.numbers)) for entry in batch.entries]
    return settings, TensorBatch(entries)  # torch.compile knows tuples better than ranges


def step_batch(rule: MatrixRule, group: dict[str, Any], batch: TensorBatch, usable: Tensor | None) -> None:
    """Update parameters and state of a batch in place.

    It chooses how: fused C++ where that is supported, with Kronecker factors in place, or by the plain formulas.

    Args:
        rule: The rule of matrices.
        group: The batch's parameter group.
        batch: Parameters, gradients and state.
        usable: Whether all gradients of the step are finite, 0-dimensional; ``None`` if they are not checked.
    """
    first = batch.entries[0]
    if usable is not None:
        usable = usable.to(first.w.device)  # gradients may lie on several devices
    rounds = rounds_stochastically(group, first.w)
    declared = _declared(rule, group, first.w)
    if declared is not None and not rounds and fused_step.step_batch_(*declared, batch, usable):
        return
    w, g, state = batch.w, batch.inputs["g"], batch.state
    if rounds:
        w, g = w.float(), g.float()  # a rule that works in bfloat16 would round to nearest first
    if usable is not None:
        g = torch.where(usable, g, 0.0)  # factorisations raise for numbers that are not finite
    turn: dict[str, Any] = {"step": first.step, "numbers": batch.numbers}
    written: dict[str, Tensor] = {}  # in place
    if declared is None:
        new_w, after = rule.matrix_update(group, w, g, state, **turn)
    else:
        update, eta = declared
        if (in_place := with_factors_in_place(update, usable)) is not None:
            update, written = in_place, {key: state[key] for key in FACTORS if key in state}
        new_w, after = rule_update(update, w, g, state, eta=eta, **turn, is_phase="count" in group)
    new_w, new_state = guarded(usable, new_w, w), guarded_state(usable, after, state) | written
    batch.write(rounded_stochastically(new_w) if rounds else new_w, new_state)


def _declared(rule: MatrixRule, group: dict[str, Any], w: Tensor) -> tuple[UpdateRule, Any] | None:
    """Update rule and η of a group's tensors; ``None`` for matrices of a rule with a ``matrix_update`` of its own."""
    if group["rule"] == "adamw":
        return rule.adamw_rule(group), group["lr"]
    if type(rule).matrix_update is not MatrixRule.matrix_update:
        return None
    shape = matrix_shape(w)
    return rule.update_rule(group, shape), rule.learning_rate(group, shape)
