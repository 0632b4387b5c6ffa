r"""Published schedules: learning rate, χ and β_flat as functions of the step.

k counts optimizer steps from 0, W is the warm-up, T the total, and
:math:`c(k; p, q)` is linear warm-up :math:`p(k+1)/W`, then a cosine from p to q.

Source: arXiv:2602.22681, published settings and code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, get_args

import torch
from torch.optim.lr_scheduler import LRScheduler

from lite.parameters.tensor_settings import set_number
from riemannian_ode.checks import require_choice
from riemannian_ode.rate_factors import Schedule, rate_factor, warmup_cosine

_MATRIX_RISE = 0.5  # χ of matrices rises from 1 over this fraction of the steps after warm-up (cosine runs)


def _check(schedule: str, warmup_steps: int, total_steps: int, min_ratio: float) -> None:
    require_choice("schedule", schedule, get_args(Schedule))
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps = {warmup_steps!r} must be at least 0 and below total_steps = {total_steps!r}; train longer "
            "or warm up less."
        )
    if not 0.0 <= min_ratio <= 1.0:
        raise ValueError(f"min_ratio = {min_ratio!r} must lie between 0 and 1: it is a fraction of the peak.")


def cosine_with_warmup(k: int, peak: float, minimum: float, *, warmup_steps: int, total_steps: int) -> float:
    r"""c(k; peak, minimum): linear warm-up :math:`p(k+1)/W`, then a cosine; constant after the last step.

    Args:
        k: Step, from 0.
        peak: Value after the warm-up.
        minimum: Value at ``total_steps``.
        warmup_steps: Warm-up W.
        total_steps: T > W.

    Source: arXiv:2602.22681, published code.
    """
    if k < warmup_steps:
        return peak * (k + 1) / warmup_steps
    return warmup_cosine(k, peak, minimum, warmup=warmup_steps, total=total_steps)


def learning_rate_factor(
    k: int, *, schedule: Schedule, warmup_steps: int, total_steps: int, min_ratio: float = 0.1
) -> float:
    """Learning rate at step k over its peak, for ``torch.optim.lr_scheduler.LambdaLR``.

    Linear warm-up k/W (0 in the first step), then a cosine to ``min_ratio``, or (wsd) constant until ⌊0.8T⌋ and then
    linear down to it.

    Args:
        k: Step, from 0.
        schedule: ``"cosine"`` or ``"wsd"``.
        warmup_steps: Warm-up W.
        total_steps: T > W.
        min_ratio: Last learning rate over the peak.

    Raises:
        ValueError: for an unknown schedule or steps out of range.

    Source: arXiv:2602.22681, published settings (min_ratio 0.1 for cosine, 0 for wsd).
    """
    _check(schedule, warmup_steps, total_steps, min_ratio)
    return rate_factor(k, schedule=schedule, warmup=warmup_steps, total=total_steps, min_ratio=min_ratio)


def flat_learning_rate_ratio(
    k: int,
    chi: float,
    *,
    schedule: Schedule,
    warmup_steps: int,
    total_steps: int,
    min_ratio: float = 0.1,
    is_matrix: bool = True,
) -> float:
    r"""χ at step k.

    Cosine runs: :math:`c(k; \chi, q)/c(k; 1, q)` with the same absolute minimum q, which decays to 1; matrices use 1
    until W, then at most :math:`1 + (\chi-1)(k-W)/(0.5(T-W))`. wsd runs: constant.

    Args:
        k: Step, from 0.
        chi: Peak χ ≥ 1.
        schedule: ``"cosine"`` or ``"wsd"``.
        warmup_steps: Warm-up W.
        total_steps: T > W.
        min_ratio: q, last learning rate over the peak.
        is_matrix: Whether the group runs a matrix rule (Muon, SOAP).

    Returns:
        A value in [1, chi].

    Source: arXiv:2602.22681, published code.
    """
    if schedule == "wsd":
        return chi
    if is_matrix and k < warmup_steps:
        return 1.0
    base, raised = (
        cosine_with_warmup(k, peak, min_ratio, warmup_steps=warmup_steps, total_steps=total_steps)
        for peak in (1.0, chi)
    )
    ratio = raised / base if base > 0 else 1.0
    if is_matrix:
        ratio = min(ratio, 1.0 + (chi - 1.0) * (k - warmup_steps) / ((total_steps - warmup_steps) * _MATRIX_RISE))
    return min(max(ratio, 1.0), chi)


def flat_damping(
    k: int, beta_sharp: float, beta_flat: float, *, schedule: Schedule, warmup_steps: int, total_steps: int
) -> float:
    r"""β_flat at step k: linear from β_sharp at W to β_flat at :math:`W + \lfloor T_f(T-W) \rfloor`.

    Args:
        k: Step, from 0.
        beta_sharp: β₁.
        beta_flat: Peak β₂.
        schedule: T_f is 0.5 for ``"cosine"``, 2W/T for ``"wsd"``.
        warmup_steps: Warm-up W.
        total_steps: T > W.

    Returns:
        A value in [β₁, β₂].

    Source: arXiv:2602.22681, published code.
    """
    fraction = 0.5 if schedule == "cosine" else min(1.0, 2.0 * warmup_steps / total_steps)
    length = int(fraction * (total_steps - warmup_steps))
    if k < warmup_steps or (k == warmup_steps and length > 0):
        return beta_sharp
    progress = 1.0 if length == 0 else min(1.0, (k - warmup_steps) / length)
    return beta_sharp + (beta_flat - beta_sharp) * progress


def _keep_peaks(group: dict[str, Any]) -> None:
    for peak, name in (("peak_chi", "chi"), ("peak_beta_flat", "beta_flat")):
        if peak not in group:
            group[peak] = float(group[name])


class SettingsScheduler(LRScheduler, ABC):
    """Base of schedulers for LITE's settings, which leave the learning rate to other schedulers."""

    def get_lr(self) -> list[Any]:
        """The current learning rates, which this schedule does not change."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Advance the settings to the next step."""
        super().step(epoch)
        self.apply()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state, with the settings of its step."""
        super().load_state_dict(state_dict)
        self.apply()

    @abstractmethod
    def apply(self) -> None:
        """Give the groups the settings of the current step."""


def require_lite(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose groups have no χ."""
    if not all("chi" in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} has no chi in its groups; give a LITE optimizer.")


class LITESchedule(SettingsScheduler):
    """Published schedules of χ and β_flat for every group; the learning rate is left to other schedulers.

    Call ``step()`` after ``optimizer.step()``, alone or in a ``ChainedScheduler`` with a scheduler of the learning
    rate. Peaks are the groups' values when the schedule is created; they are stored in the groups as ``peak_chi`` and
    ``peak_beta_flat``, so that resuming continues exactly.

    Args:
        optimizer: A LITE optimizer.
        total_steps: Total T.
        warmup_steps: Warm-up W.
        schedule: ``"cosine"`` or ``"wsd"``.
        min_ratio: Last learning rate over the peak, as in :func:`learning_rate_factor`.

    Raises:
        ValueError: for an unknown schedule, or steps out of range.

    Source: arXiv:2602.22681, published code.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        warmup_steps: int,
        schedule: Schedule = "cosine",
        min_ratio: float = 0.1,
    ) -> None:
        _check(schedule, warmup_steps, total_steps, min_ratio)
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.schedule: Schedule = schedule
        self.min_ratio = min_ratio
        require_lite(optimizer)
        for group in optimizer.param_groups:
            _keep_peaks(group)
            if group["peak_chi"] < 1.0:
                raise ValueError(
                    f"chi = {group['peak_chi']!r} is below 1, where the published schedule has no meaning: it raises χ "
                    "from 1 to its peak. Keep χ constant, or give it a SettingSchedule."
                )
        super().__init__(optimizer)

    def apply(self) -> None:
        k = self.last_epoch
        for group in self.optimizer.param_groups:
            _keep_peaks(group)  # including groups that were added later
            chi = flat_learning_rate_ratio(
                k,
                group["peak_chi"],
                schedule=self.schedule,
                warmup_steps=self.warmup_steps,
                total_steps=self.total_steps,
                min_ratio=self.min_ratio,
                is_matrix=group["rule"] != "adamw",
            )
            beta_flat = flat_damping(
                k,
                group["beta_sharp"],
                group["peak_beta_flat"],
                schedule=self.schedule,
                warmup_steps=self.warmup_steps,
                total_steps=self.total_steps,
            )
            set_number(group, "chi", chi)
            set_number(group, "beta_flat", beta_flat)
