"""The optimizer shell: parameter groups to rules, state, loading, and checks of gradients."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

RULES = ("muon", "adamw")
_RULE_STATE = {"muon": {"momentum"}, "adamw": {"first_moment", "second_moment", "step", "hi", "lo"}}
_OPTIONAL_STATE = {"rho"}


class NonFiniteError(RuntimeError):
    """A gradient, parameter or loss is not finite; the message names it."""


class LITEOptimizer(torch.optim.Optimizer):
    """Base of the LITE optimizers: one rule per parameter group, all state in tensors.

    A group has ``rule`` (``"muon"`` or ``"adamw"``) and that rule's hyperparameters; schedulers may change
    ``lr``, ``chi``, ``beta_sharp`` and ``beta_flat`` at any step.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ValueError: for hyperparameters out of range or parameters that the group's rule cannot take.
        """
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group(group, [p for p in group["params"] if p.grad is not None])
        return loss

    @abstractmethod
    def step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Update the parameters of one group that have gradients."""

    @abstractmethod
    def init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Create the state of parameters that have none yet."""

    @abstractmethod
    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range, naming argument, value and remedy."""

    def init_state(self) -> None:
        """Create all state before the first step, e.g. for ``torch.distributed.checkpoint``."""
        for group in self.param_groups:
            self.init_group(group, group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, keeping every tensor's own dtype (float32 state of bfloat16 parameters too).

        Raises:
            ValueError: if groups, rules, parameter names or shapes differ, naming the difference.
        """
        self._check_loadable(state_dict)
        super().load_state_dict(state_dict)
        # torch casts floating-point state to the parameter's dtype; put the saved values back as they were.
        for index, p in self._indexed_parameters():
            saved = state_dict["state"].get(index)
            if saved is not None:
                self.state[p] = {
                    key: value.to(p.device, copy=True) if isinstance(value, Tensor) else value
                    for key, value in saved.items()
                }

    def _indexed_parameters(self) -> Iterator[tuple[int, Tensor]]:
        yield from enumerate(p for group in self.param_groups for p in group["params"])

    def _check_loadable(self, state_dict: dict[str, Any]) -> None:
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                f"the checkpoint has {len(saved_groups)} parameter groups, this optimizer {len(self.param_groups)}; "
                "build it from the same model with the same param_groups."
            )
        for i, (saved, own) in enumerate(zip(saved_groups, self.param_groups, strict=True)):
            for key in ("rule", "mask", "param_names"):
                if saved.get(key) != own.get(key):
                    raise ValueError(
                        f"group {i} has {key} = {_short(saved.get(key))} in the checkpoint but {_short(own.get(key))} "
                        "here; load it into the optimizer it was saved from."
                    )
            if len(saved["params"]) != len(own["params"]):
                raise ValueError(
                    f"group {i} has {len(saved['params'])} parameters in the checkpoint, {len(own['params'])} here."
                )
        rules = [group["rule"] for group in self.param_groups for _ in group["params"]]
        for index, p in self._indexed_parameters():
            saved = state_dict["state"].get(index)
            if saved is None:
                continue
            keys = set(saved) - _OPTIONAL_STATE
            if keys != _RULE_STATE[rules[index]]:
                raise ValueError(
                    f"parameter {index} has state {sorted(keys)} in the checkpoint, but rule {rules[index]!r} needs "
                    f"{sorted(_RULE_STATE[rules[index]])}; it was saved by another optimizer."
                )
            for key, value in saved.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != p.shape:
                    raise ValueError(
                        f"parameter {index} has shape {tuple(p.shape)}, but its saved {key} has {tuple(value.shape)}; "
                        "the checkpoint is of another model."
                    )


def require_range(group: dict[str, Any], name: str, lower: float, upper: float, remedy: str) -> None:
    """Refuse a hyperparameter outside [lower, upper].

    Raises:
        ValueError: naming argument, value and remedy.
    """
    try:
        value = float(group[name])
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {group[name]!r} must be a number: {remedy}.") from None
    if not (math.isfinite(value) and lower <= value <= upper):
        span = f"at least {lower:g}" if math.isinf(upper) else f"between {lower:g} and {upper:g}"
        raise ValueError(f"{name} = {group[name]!r} must be finite and {span}: {remedy}.")


def check_finite_gradients(named_parameters: Iterable[tuple[str, Tensor]], *, step: int | None = None) -> None:
    """Stop if a gradient is not finite; one device sync while all is well.

    Args:
        named_parameters: ``model.named_parameters()``.
        step: Optimizer step, for the message.

    Raises:
        NonFiniteError: naming the step and every parameter whose gradient is not finite.
    """
    named = [(name, p.grad) for name, p in named_parameters if p.grad is not None]
    if not named or bool(torch.nn.utils.get_total_norm([g for _, g in named]).isfinite()):
        return
    bad = [name for name, g in named if not bool(g.isfinite().all())]
    if not bad:
        return  # the norm overflowed, no entry did
    when = "" if step is None else f" at step {step}"
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise NonFiniteError(
        f"the gradient became non-finite{when} in {', '.join(bad[:5])}{more}; lower the learning rate, warm up "
        "longer, or look at the batch."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
