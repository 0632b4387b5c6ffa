"""What a step does with one batch of tensors, as it is or in a form that compiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lite.adamw import adamw_rule
from lite.finiteness import guarded, guarded_state
from lite.matrix_rule import MatrixRule, rule_update
from lite.rounding import rounded_stochastically, rounds_stochastically
from lite.tensor_batches import TensorBatch
from lite.tensor_settings import as_tensor, traced_settings


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

    Args:
        rule: The rule of matrices.
        group: The batch's parameter group.
        batch: Parameters, gradients and state.
        usable: Whether all gradients of the step are finite, 0-dimensional; ``None`` if they are not checked.
    """
    if usable is not None:
        usable = usable.to(batch.entries[0].w.device)  # gradients may lie on several devices
    if group["rule"] != "adamw" and rule.step_in_place(group, batch, usable):
        return
    w, g, state = batch.w, batch.inputs["g"], batch.state
    rounds = rounds_stochastically(group, w)
    if rounds:
        w, g = w.float(), g.float()  # a rule that works in bfloat16 would round to nearest first
    if usable is not None:
        g = torch.where(usable, g, 0.0)  # factorisations raise for numbers that are not finite
    if group["rule"] == "adamw":
        new_w, after = rule_update(adamw_rule(group), w, g, state, eta=group["lr"])
        new_w, new_state = guarded(usable, new_w, w), guarded_state(usable, after, state)
    else:
        step, numbers = batch.entries[0].step, batch.numbers
        new_w, new_state = rule.guarded_update(group, w, g, state, step=step, numbers=numbers, usable=usable)
    batch.write(rounded_stochastically(new_w) if rounds else new_w, new_state)
