"""Schedules for any settings of a LITE optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch

from lite.parameters.group_checks import require_range
from lite.parameters.tensor_settings import set_number
from lite.schedules import SettingsScheduler, require_lite
from riemannian_ode.checks import require_choice, shown

Setting: TypeAlias = Literal["chi", "chi_sharp", "beta_sharp", "beta_flat", "sharp_fraction", "weight_decay"]
ByStep: TypeAlias = Callable[[int], float]
_RANGES: dict[Setting, tuple[float, float]] = {
    "chi": (0.0, math.inf),
    "chi_sharp": (0.0, math.inf),
    "beta_sharp": (math.nextafter(-1.0, 0.0), math.inf),
    "beta_flat": (math.nextafter(-1.0, 0.0), math.inf),
    "sharp_fraction": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
}


class SettingSchedule(SettingsScheduler):
    """χ, β, r and weight decay as functions of the step; the learning rate is left to other schedulers.

    .. code-block:: python

        schedule = SettingSchedule(optimizer, chi=lambda k: 2.0 - k / 1000, beta_flat={"matrix": lambda k: 1.0})

    Call ``step()`` after ``optimizer.step()``, alone or in a ``ChainedScheduler``. Create it before the optimizer's
    first step, which creates the state of LITE's masks. r may fall but must not rise above its first value, whose
    subspaces are kept. Functions are not saved; a resumed run must pass them again.

    Args:
        optimizer: A LITE optimizer.
        settings: Functions of the step k = 0, 1, … by setting (``chi``, ``chi_sharp``, ``beta_sharp``, ``beta_flat``,
            ``sharp_fraction``, ``weight_decay``): one function for all groups, or a mapping from a group's ``kind`` or
            number to a function. Other groups keep their own value.

    Raises:
        ValueError: for an optimizer without LITE, an unknown setting, kind or number, or a function that returns a
            value out of range, now or at a later step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, **settings: ByStep | Mapping[Any, ByStep]) -> None:
        if not settings:
            raise ValueError(f"no setting is given; name some of {', '.join(get_args(Setting))}.")
        groups = optimizer.param_groups
        require_lite(optimizer)
        self._functions: list[dict[Setting, ByStep]] = [{} for _ in groups]
        for name, given in settings.items():
            require_choice("setting", name, get_args(Setting))
            _check_keys(name, given, groups)
            for number, group in enumerate(groups):
                function = given.get(group.get("kind"), given.get(number)) if isinstance(given, Mapping) else given
                if function is not None:
                    self._functions[number][name] = function  # type: ignore[index]
        for group, functions in zip(groups, self._functions, strict=True):
            if functions:
                group["is_scheduled"] = True
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The number of the step."""
        return {"last_epoch": self.last_epoch}

    def apply(self) -> None:
        for group, functions in zip(self.optimizer.param_groups, self._functions, strict=False):
            values = {name: function(self.last_epoch) for name, function in functions.items()}
            for name, value in values.items():
                when = f"at step {self.last_epoch} its schedule gave it"
                require_range({name: value}, name, *_RANGES[name], when)
            for name, value in values.items():
                set_number(group, name, float(value))


def _check_keys(name: str, given: Any, groups: list[dict[str, Any]]) -> None:
    functions = given if isinstance(given, Mapping) else {None: given}
    known = {group.get("kind") for group in groups} - {None} | set(range(len(groups)))
    for key, function in functions.items():
        if isinstance(given, Mapping) and key not in known:
            raise ValueError(f"{name} is given for {shown(key)}, which is no group's kind or number; there are "
                             f"{', '.join(map(str, sorted(known, key=str)))}.")  # fmt: skip
        if not callable(function):
            raise ValueError(f"{name} = {shown(function)} must be a function of the step, e.g. lambda k: 2.0.")
