"""One step for one batch of tensors, either plain or in a form that compiles."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from discretizations.update_rule import UpdateRule
from lite.declaration import Declaration, matrix_shape, rounds_stochastically, rule_update
from lite.execution import fused_step
from lite.execution.factors_in_place import FACTORS, with_factors_in_place
from lite.execution.finiteness import Guard
from lite.execution.rounding import rounded_stochastically
from lite.execution.tensor_batches import TensorBatch
from lite.parameters.tensor_settings import as_tensor, traced_settings

Batches: TypeAlias = list[tuple[dict[str, Any], TensorBatch]]  # each with the settings of its group


def traced_batch(
    declaration: Declaration, group: dict[str, Any], batch: TensorBatch
) -> tuple[dict[str, Any], TensorBatch]:
    """Settings and batch for compilation, in which only tensors change between steps; see :meth:`Declaration.phase`.

    Args:
        declaration: The optimizer's declaration of its matrices.
        group: The batch's parameter group.
        batch: The batch of one step.
    """
    first = batch.entries[0]
    settings = traced_settings(group, first.w.device)
    if group["rule"] == "adamw":
        return settings, batch
    settings["count"] = as_tensor(first.step, first.w.device)
    phase = declaration.phase(group, first.step)
    entries = [entry._replace(step=phase, numbers=tuple(entry.numbers)) for entry in batch.entries]
    return settings, TensorBatch(entries)  # torch.compile handles tuples better than ranges


def step_batches(declaration: Declaration, batches: Batches, usable: Tensor | None) -> None:
    """Update parameters and state of all batches of a step in place.

    Args:
        declaration: The optimizer's declaration of its matrices.
        batches: Batches, each with the settings of its group.
        usable: Whether all gradients of the step are finite, 0-dimensional; ``None`` if they are not checked.
    """
    guards: dict[torch.device, Guard] = {}
    for group, batch in batches:
        device = batch.entries[0].w.device  # parameters may be on several devices
        if device not in guards:
            guards[device] = Guard(None if usable is None else usable.to(device))
        _step_batch(declaration, group, batch, guards[device])


def _step_batch(declaration: Declaration, group: dict[str, Any], batch: TensorBatch, guard: Guard) -> None:
    """Choose how a batch is updated: fused C++ if supported, Kronecker factors in place, or plain formulas."""
    first = batch.entries[0]
    rounds = rounds_stochastically(group, first.w)
    declared = _declared(declaration, group, first.w)
    if declared is not None and not rounds and fused_step.step_batch_(*declared, batch, guard):
        return
    w, g, state = batch.w, batch.inputs["g"], batch.state
    if rounds:
        w, g = w.float(), g.float()  # a rule that works in bfloat16 would round to nearest first
    if guard.usable is not None:
        g = torch.where(guard.usable, g, 0.0)  # factorisations raise for non-finite numbers
    turn: dict[str, Any] = {"step": first.step, "numbers": batch.numbers}
    written: dict[str, Tensor] = {}  # in place
    if declared is None:
        new_w, after = declaration.matrix_update(group, w, g, state, **turn)
    else:
        update, eta = declared
        if (in_place := with_factors_in_place(update, guard)) is not None:
            update, written = in_place, {key: state[key] for key in FACTORS if key in state}
        new_w, after = rule_update(update, w, g, state, eta=eta, **turn, is_phase="count" in group)
    old = list(state.values())
    changed = {
        key: value.clone()
        if any(value is x for x in old)
        else value  # otherwise another key's old state might be overwritten first
        for key, value in after.items()
        if value is not state[key]
    }
    # When compiled, dynamo loses separate writes into 0-dimensional float64 tensors (seen in torch 2.13).
    if len(batch.entries) == 1 and not rounds and not torch.compiler.is_compiling():
        guard.overwrite_(w, new_w)
        for key, value in changed.items():
            guard.overwrite_(state[key], value)
        return
    new_w = guard.chosen(new_w, w)
    new_state = {key: guard.chosen(value, state[key]) for key, value in changed.items()}
    batch.write(rounded_stochastically(new_w) if rounds else new_w, new_state | written)


def _declared(declaration: Declaration, group: dict[str, Any], w: Tensor) -> tuple[UpdateRule, Any] | None:
    """Update rule and η for a group's tensors; ``None`` for matrices whose optimizer overrides ``matrix_update``."""
    if group["rule"] == "adamw":
        return declaration.adamw_rule(group), group["lr"]
    if type(declaration).matrix_update is not Declaration.matrix_update:
        return None
    shape = matrix_shape(w)
    return declaration.update_rule(group, shape), declaration.learning_rate(group, shape)
