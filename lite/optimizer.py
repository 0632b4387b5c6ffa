"""The optimizer shell: parameter groups to rules, batches of matrices, state, loading, and bad gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lite.adamw import AdamWRule, AdamWState, adamw_update, initial_adamw_state
from lite.checkpoints import check_loadable
from lite.finiteness import ON_NONFINITE, FinitenessWatch, OnNonfinite, finite_per_tensor, guarded, guarded_state
from lite.group_checks import check_group, parameter_names
from lite.matrix_view import matrix_views
from lite.rounding import rounded_stochastically
from lite.tensor_batches import RunningNumbers, TensorBatch, TensorEntry, largest_batch, tensor_batches

_ADAMW_KEYS = ("first_moment", "second_moment", "step", "hi", "lo")


class LITEOptimizer(torch.optim.Optimizer):
    """Base of the LITE optimizers: matrices by a rule of their own, everything else by AdamW-LITE.

    A subclass names its rule, makes the state of a batch of matrices and updates it: :meth:`matrix_state` and
    :meth:`matrix_update`. Parameter groups, layouts, batches, checkpoints and bad gradients are dealt with here.

    Args:
        params: ``param_groups(model)``, or tensors or groups as for any torch optimizer (then all must be matrices
            unless a group says ``rule="adamw"``).
        lr: Learning rate η.
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 1, learning-rate ratio of flat directions.
        beta_sharp: β₁ > −1, Hessian damping of sharp directions, in the rule's units.
        beta_flat: β₂ ≥ β₁, the same for flat directions.
        sharp_fraction: r in [0, 1], fraction of directions that count as sharp.
        chi_sharp: χ_s ≥ 0, learning-rate ratio of sharp directions; 1 but in ablations.
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.
        on_nonfinite: What a gradient that is not finite does, found without a device sync: ``"raise"`` skips that step
            and raises at a later one, once the device has got there; ``"skip"`` skips it; ``"ignore"`` never looks.
        stochastic_rounding: Whether bfloat16 parameters are rounded up or down at random, without bias.
        settings: The rule's own hyperparameters, to be seen and set in groups.

    Attributes:
        rule: Name of the rule of matrices.
        elementwise_state: Keys of the rule's state that have the parameter's shape.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.
    """

    rule: ClassVar[str]
    elementwise_state: ClassVar[tuple[str, ...]] = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        weight_decay: float = 0.1,
        chi: float = 2.0,
        beta_sharp: float = 0.0,
        beta_flat: float = 0.0,
        sharp_fraction: float = 0.1,
        chi_sharp: float = 1.0,
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        on_nonfinite: OnNonfinite = "raise",
        stochastic_rounding: bool = False,
        **settings: Any,
    ) -> None:
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(f"on_nonfinite = {on_nonfinite!r} is unknown. Choose one of: {', '.join(ON_NONFINITE)}.")
        self.on_nonfinite = on_nonfinite
        self._watch = FinitenessWatch()
        self._steps_made = 0
        defaults = {
            "rule": self.rule,
            "kind": "matrix",
            "layout": "matrix",
            "blocks": None,
            "block_axis": -2,
            "lr": lr,
            "weight_decay": weight_decay,
            "chi": chi,
            "beta_sharp": beta_sharp,
            "beta_flat": beta_flat,
            "sharp_fraction": sharp_fraction,
            "chi_sharp": chi_sharp,
            "adamw_betas": tuple(adamw_betas),
            "eps": eps,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults | settings)

    @abstractmethod
    def matrix_state(self, group: dict[str, Any], w: Tensor) -> dict[str, Tensor]:
        """State of matrices before their first step.

        Args:
            group: Their parameter group.
            w: Parameters, shape ``(m, n)`` or ``(E, m, n)``; every state tensor has the same leading axis, if any.
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

    def largest_batch(self, w: Tensor) -> int:
        """How many numbers a batch of tensors like ``w`` may hold."""
        return largest_batch(sum(p.numel() for group in self.param_groups for p in group["params"]))

    def __getstate__(self) -> dict[str, Any]:
        # torch's names three attributes only. A copy starts with nothing to watch: events on a device have no copies.
        own = {"on_nonfinite": self.on_nonfinite, "_steps_made": self._steps_made, "_watch": FinitenessWatch()}
        return super().__getstate__() | own

    def check_rule(self, group: dict[str, Any]) -> None:
        """Refuse the rule's own hyperparameters where they are out of range."""

    def check_matrices(self, group: dict[str, Any], entries: Sequence[TensorEntry]) -> None:
        """Refuse settings of a group that the state of its matrices does not allow, before a step changes anything."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ValueError: for hyperparameters out of range or parameters that the group's rule cannot take.
        """
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1], rule=self.rule, known=self.defaults)
            self.check_rule(self.param_groups[-1])
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

        Raises:
            NonFiniteError: for a gradient of an earlier step, with ``on_nonfinite="raise"``.
        """
        self._watch.check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, self._entries(group)) for group in self.param_groups]
        for group, entries in work:
            if group["rule"] != "adamw":
                self.check_matrices(group, entries)
        usable = self._usable_gradients()
        for group, entries in work:
            for batch in tensor_batches(entries, self.largest_batch):
                self._step_batch(group, batch, usable)
            if group["rule"] != "adamw":
                group["steps"] = [k + (p.grad is not None) for k, p in zip(_steps(group), group["params"], strict=True)]
        self._steps_made += 1
        return loss

    def check_gradients(self) -> None:
        """Wait for the device and raise if a gradient of a step made so far was not finite.

        Raises:
            NonFiniteError: naming the step and the parameters.
        """
        self._watch.check(wait=True)

    def init_state(self) -> None:
        """Create all state before the first step, e.g. for ``torch.distributed.checkpoint``."""
        for group in self.param_groups:
            self._init_group(group, group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, keeping every tensor's own dtype (float32 state of bfloat16 parameters too).

        Raises:
            ValueError: if groups, rules, parameter names or shapes differ, naming the difference.
        """
        check_loadable(state_dict, self.param_groups, self._initial_state)
        super().load_state_dict(state_dict)
        # torch casts floating-point state to the parameter's dtype; put the saved values back as they were.
        for index, p in enumerate(p for group in self.param_groups for p in group["params"]):
            saved = state_dict["state"].get(index)
            if saved is not None:
                self.state[p] = {
                    key: value.to(p.device, copy=True) if isinstance(value, Tensor) else value
                    for key, value in saved.items()
                }

    def _usable_gradients(self) -> Tensor | None:
        """Whether this step's gradients are finite, on the device; ``None`` where nobody asks."""
        named = [
            (str(name), p.grad)
            for group in self.param_groups
            for name, p in zip(parameter_names(group), group["params"], strict=True)
            if p.grad is not None
        ]
        for name, g in named:
            if g.is_sparse:
                raise ValueError(
                    f"the gradient of {name} is sparse; dense ones are needed (nn.Embedding(sparse=False))."
                )
        if self.on_nonfinite == "ignore" or not named:
            return None
        flags = finite_per_tensor([g for _, g in named])
        if self.on_nonfinite == "raise":
            self._watch.note(self._steps_made, [name for name, _ in named], flags)
        return flags.all()

    def _init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = self._initial_state(group, p)

    def _initial_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        if group["rule"] == "adamw":
            return dict(zip(_ADAMW_KEYS, initial_adamw_state(p), strict=True))
        views = _views(group, p)
        state: dict[str, Tensor] = {}
        for i, view in enumerate(views):
            for key, value in self.matrix_state(group, view).items():
                if key in self.elementwise_state:
                    state[key] = torch.zeros_like(p, dtype=value.dtype)
                else:
                    state[_key(key, i, len(views))] = value
        return state

    def _entries(self, group: dict[str, Any]) -> list[TensorEntry]:
        """What a step works on: whole tensors for AdamW, else matrices. State is created where there is none."""
        self._init_group(group, [p for p in group["params"] if p.grad is not None])
        if group["rule"] == "adamw":
            return [TensorEntry(p, p.grad, self.state[p]) for p in group["params"] if p.grad is not None]
        entries = []
        running = RunningNumbers()
        for p, step in zip(group["params"], _steps(group), strict=True):
            views = _views(group, p)
            numbers = [running.take(w) for w in views]  # also where there is no gradient: the others keep theirs
            if p.grad is None:
                continue
            state = self.state[p]
            shared = {key: _views(group, state[key]) for key in self.elementwise_state if key in state}
            for i, (w, g) in enumerate(zip(views, _views(group, _dense(p)), strict=True)):
                whole = {key: parts[i] for key, parts in shared.items()}
                own = _own_state(state, i, len(views), whole)
                stack = w.size(0) if w.ndim == 3 else None
                entries.append(TensorEntry(w, g, whole | own, step, numbers[i], stack))
        return entries

    def _step_batch(self, group: dict[str, Any], batch: TensorBatch, usable: Tensor | None) -> None:
        w, g, state = batch.w, batch.g, batch.state
        rounds = group["stochastic_rounding"] and w.dtype == torch.bfloat16
        if rounds:
            w = w.float()  # a rule that works in bfloat16 would round to nearest first
        if usable is not None:
            g = torch.where(usable, g, 0.0)  # factorisations raise for numbers that are not finite
        if group["rule"] == "adamw":
            before = AdamWState(*(state[key] for key in _ADAMW_KEYS))
            new_w, after = adamw_update(_adamw_rule(group), w, g, before, dims=batch.dims)
            new_w = guarded(usable, new_w, w)
            new_state = guarded_state(usable, dict(zip(_ADAMW_KEYS, after, strict=True)), state)
        else:
            step, numbers = batch.entries[0].step, batch.numbers
            new_w, new_state = self.guarded_update(group, w, g, state, step=step, numbers=numbers, usable=usable)
        batch.write(rounded_stochastically(new_w) if rounds else new_w, new_state)


def _adamw_rule(group: dict[str, Any]) -> AdamWRule:
    return AdamWRule(
        lr=group["lr"],
        betas=group["adamw_betas"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        chi=group["chi"],
        sharp_fraction=group["sharp_fraction"],
    )


def _views(group: dict[str, Any], tensor: Tensor) -> list[Tensor]:
    return matrix_views(tensor, layout=group["layout"], blocks=group["blocks"], block_axis=group["block_axis"])


def _steps(group: dict[str, Any]) -> list[int]:
    """Gradients that each parameter has had: a group's plain numbers, since reading a tensor would wait for it."""
    steps: list[int] = group.get("steps", [])
    return steps + [0] * (len(group["params"]) - len(steps))


def _dense(p: Tensor) -> Tensor:
    g = p.grad
    assert g is not None
    return g.contiguous() if g.ndim > 2 else g  # a convolution's gradient may come in another memory format


def _key(name: str, view: int, count: int) -> str:
    return name if count == 1 else f"{name}/{view}"


def _own_state(state: dict[str, Tensor], view: int, count: int, shared: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of one view that is not elementwise, by its plain name."""
    names = {key.split("/", maxsplit=1)[0] for key in state} - set(shared)
    return {name: state[_key(name, view, count)] for name in sorted(names)}
