"""The optimizer shell: parameter groups to rules, batches of matrices, state, loading, and bad gradients."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would load the compiler for everyone

from lite.adamw import initial_adamw_state
from lite.batch_step import step_batch, traced_batch
from lite.finiteness import ON_NONFINITE, FinitenessWatch, OnNonfinite, usable_gradients
from lite.group_checks import check_group, require_flag
from lite.matrix_rule import MatrixRule, narrowest_squares
from lite.parameter_entries import (
    count_gradients,
    matrix_entries,
    matrix_state,
    row_ordered_copies,
    steps_so_far,
)
from lite.state_loading import copied, load_between_hooks, loadable_state
from lite.tensor_batches import TensorBatch, TensorEntry, largest_batch, tensor_batches
from lite.tensor_settings import keep_tensors, own_tensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lite.distributed.ranks import Ranks

Exchange: TypeAlias = Literal["fastest", "exact", "bfloat16"]
EXCHANGES: tuple[Exchange, ...] = ("fastest", "exact", "bfloat16")
_MOST_GRAPHS = 64  # of one optimizer; SOAP has one more than steps between refreshes


class LITEOptimizer(MatrixRule, torch.optim.Optimizer):
    """Base of the LITE optimizers: matrices by a rule of their own, everything else by AdamW-LITE.

    A subclass names its rule and declares the update rule of a group: ``rule`` and ``update_rule`` of
    :class:`lite.matrix_rule.MatrixRule`. Parameter groups, layouts, batches, checkpoints and bad gradients are dealt
    with here.

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
        on_nonfinite: What a gradient does that is not finite, or whose squares overflow (:mod:`lite.finiteness`), found
            without a device sync: ``"raise"`` skips that step and raises at a later one, once the device has got there;
            ``"skip"`` skips it; ``"ignore"`` never looks.
        stochastic_rounding: Whether bfloat16 parameters are rounded up or down at random, without bias.
        capturable: Whether learning rate, weight decay, χ and β₂ of groups become tensors on the device, so that a
            step in a CUDA graph follows their schedules.
        process_group: Ranks that hold the same plain tensors (DDP) and shall divide the work on matrices; by default
            every rank does everything. DTensors (FSDP2, HSDP) are told by themselves.
        exchange: Floating type in which matrices travel between ranks: ``"exact"``, that of the numbers;
            ``"bfloat16"`` where the rule allows it; ``"fastest"``, bfloat16 where the rule works in it anyway.
        settings: The rule's own hyperparameters, to be seen and set in groups.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.
    """

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
        capturable: bool = False,
        process_group: ProcessGroup | None = None,
        exchange: Exchange = "fastest",
        **settings: Any,
    ) -> None:
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(f"on_nonfinite = {on_nonfinite!r} is unknown. Choose one of: {', '.join(ON_NONFINITE)}.")
        if exchange not in EXCHANGES:
            raise ValueError(f"exchange = {exchange!r} is unknown. Choose one of: {', '.join(EXCHANGES)}.")
        require_flag({"capturable": capturable}, "capturable")
        self.on_nonfinite = on_nonfinite
        self.exchange = exchange
        self.capturable = capturable
        self._ranks: Ranks | None = None
        self._is_built = False
        self._watch = FinitenessWatch()
        self._steps_made = 0
        self._compiled: Callable[..., None] | None = None
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
            "adamw_betas": adamw_betas,
            "eps": eps,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults | settings)
        self._is_built = True
        self._divide(process_group)

    @property
    def is_divided(self) -> bool:
        """Whether several ranks share the work, so that each has a part of the state."""
        return self._ranks is not None

    def largest_batch(self, w: Tensor) -> int:
        """How many numbers a batch of tensors like ``w`` may hold."""
        return largest_batch(sum(p.numel() for group in self.param_groups for p in group["params"]))

    def __getstate__(self) -> dict[str, Any]:
        # torch's names three attributes only. A copy starts with nothing to watch: events on a device have no copies.
        if self._ranks is not None:
            raise TypeError("an optimizer on several ranks cannot be copied or pickled; save its state_dict().")
        self._watch.settle()  # the groups' counts of gradients
        layout = ("sharded_state", "travelling_state")
        names = ("on_nonfinite", "exchange", "capturable", "_ranks", "_is_built", "_steps_made")
        own = {name: getattr(self, name) for name in names + layout}
        return super().__getstate__() | own | {"_watch": FinitenessWatch(), "_compiled": None}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ValueError: for hyperparameters out of range or parameters that the group's rule cannot take.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise
        own_tensors(self.param_groups[-1], capturable=self.capturable)
        if self._is_built:
            self._divide()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or ``None``.

        Raises:
            NonFiniteError: for a gradient of an earlier step, with ``on_nonfinite="raise"``.
            ValueError: if the parameters were sharded after the first step.
        """
        self._notice_sharding()
        self.check_gradients(wait=self.counts_gradients)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._ranks is not None:
            self._ranks.step(self._steps_made)
            self._steps_made += 1
        else:
            traced = self._compiled is not None or torch.compiler.is_compiling()
            batches, usable, copies = self._prepared(traced=traced)
            (self._compiled or self._apply)(batches, usable)
            if copies:
                torch._foreach_copy_(list(copies), list(copies.values()))
        return loss

    def compile(self, **options: Any) -> None:
        """Compile what a step does with tensors, in place, as ``torch.nn.Module.compile`` does with a module.

        A change of learning rate, weight decay, χ or β compiles nothing anew; another set of gradients does.

        Args:
            options: Those of ``torch.compile``. By default shapes are constants, graphs are counted for this optimizer
                alone, and there may be 64 of them: SOAP has one for each step between two refreshes of a basis.

        Raises:
            ValueError: on several ranks, whose steps are not compiled.
        """
        if self._ranks is not None:
            raise ValueError("an optimizer on several ranks cannot be compiled; compile the model alone.")
        known = inspect.signature(torch.compile).parameters  # early torch has no limits here
        own = {"dynamic": False, "recompile_limit": _MOST_GRAPHS, "isolate_recompiles": True}
        options = {name: value for name, value in own.items() if name in known} | options
        self._compiled = torch.compile(self._apply, **options)

    @_disable_dynamo
    def check_gradients(self, *, wait: bool = True) -> None:
        """Raise if a gradient of a step made so far was not finite.

        Args:
            wait: Wait for what the device has not got to. On several ranks the outcome of the last step is always
                waited for, so that all of them raise at the same place.

        Raises:
            NonFiniteError: naming the step and the parameters, and ranks if there are several.
        """
        if self._ranks is None:
            self._watch.check(wait=wait)
        else:
            self._ranks.check()

    def init_state(self) -> None:
        """Create all state before the first step, e.g. for ``torch.distributed.checkpoint``."""
        self._notice_sharding()
        for group in self.param_groups:
            if group["rule"] != "adamw":
                group["steps"] = steps_so_far(group)
        if self._ranks is not None:
            self._ranks.init_state()
            return
        for group in self.param_groups:
            self._init_group(group, group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, keeping every tensor's own dtype (float32 state of bfloat16 parameters too).

        Parameters match by name, whatever their order, without the prefixes of wrappers (``_orig_mod.``, ``module.``,
        ``model.``). The others, and those without names, match by order if rules and shapes agree; other names give a
        warning. On several ranks it is a collective, like a step.

        Raises:
            ValueError: if groups, rules, parameters or shapes differ, a setting is unknown or out of range, or the
                checkpoint is damaged, naming the first difference; on all ranks if they do on one. Nothing has changed.
        """
        self._notice_sharding()
        if self._ranks is not None:
            self._ranks.settle()  # the step before counts for the groups that go
        load_between_hooks(self, state_dict, self._load)

    def _load(self, state_dict: dict[str, Any]) -> None:
        ranks, before = self._ranks, self.param_groups
        loadable = partial(
            loadable_state, state_dict, before, self._initial_state, self._check_group, spare=self.spare_state
        )
        state_dict = loadable() if ranks is None else ranks.found_together(partial(loadable, ranks.held))
        super().load_state_dict(state_dict)
        for own, loaded in zip(before, self.param_groups, strict=True):
            for name, value in own.items():
                loaded.setdefault(name, value)  # of settings that the checkpoint did not know
            keep_tensors(own, loaded)
        # torch casts floating-point state to the parameter's dtype; put the saved values back as they were.
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(indices, self._parameters(), strict=True):
            saved = state_dict["state"].get(index)
            if saved is not None:
                self.state[p] = ranks.fitted_state(p, saved) if ranks else copied(saved, p.device)
        if ranks:
            ranks.note_loaded()
        self._watch = FinitenessWatch()  # what steps since then have found is undone
        self._steps_made = max((step for group in self.param_groups for step in group.get("steps", [])), default=0)

    def state_dict(self) -> dict[str, Any]:
        """State and groups; see ``torch.optim.Optimizer.state_dict``.

        Of an optimizer on several ranks it is what this rank has: save and load it with
        ``torch.distributed.checkpoint``.
        """
        (self._ranks or self._watch).settle()  # the groups' counts of gradients
        return super().state_dict()

    def _divide(self, process_group: ProcessGroup | None = None) -> None:
        """Find out who works on what, where parameters lie on several ranks; a collective there."""
        if self._ranks is not None:
            self._ranks.extend()
        elif process_group is not None or any(map(_is_dtensor, self._parameters())):
            from lite.distributed.ranks import Ranks

            if self.capturable:
                raise ValueError("capturable=True is for one process; steps on several ranks cannot be captured.")
            self._ranks = Ranks(self, process_group)

    @_disable_dynamo
    def _notice_sharding(self) -> None:
        """Divide the work if the parameters became DTensors since, as accelerate's ``prepare`` does; a collective then.

        Raises:
            ValueError: if there is state already, which belongs to tensors that are gone.
        """
        if self._ranks is None and any(map(_is_dtensor, self._parameters())):
            if self._steps_made or self.state:
                raise ValueError(
                    f"the parameters were sharded after {self._steps_made} steps of this optimizer, whose state "
                    "belongs to the tensors before; shard the model first, then load a checkpoint."
                )
            self._divide()

    def _check_group(self, group: dict[str, Any], tags: Collection[Any] = ()) -> None:
        check_group(group, rule=self.rule, known=self.defaults, tags=tags)
        self.check_rule(group)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = self._initial_state(group, p)

    def _initial_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        if group["rule"] == "adamw":
            return initial_adamw_state(group, p)
        return matrix_state(self, group, p)

    def _entries(self, group: dict[str, Any], copies: dict[Tensor, Tensor]) -> list[TensorEntry]:
        """What a step works on: whole tensors for AdamW, else matrices. State is created where there is none."""
        self._init_group(group, [p for p in group["params"] if p.grad is not None])
        if group["rule"] == "adamw":
            return [TensorEntry(p, {"g": p.grad}, self.state[p]) for p in group["params"] if p.grad is not None]
        return matrix_entries(self, group, self.state, copies)

    @_disable_dynamo  # bookkeeping in plain numbers, which a compiled step would take for constants
    def _prepared(
        self, *, traced: bool
    ) -> tuple[list[tuple[dict[str, Any], TensorBatch]], Tensor | None, dict[Tensor, Tensor]]:
        """What a step works on: batches with their settings, whether gradients are usable, and copies to write back.

        Args:
            traced: Whether the step is compiled.
        """
        copies: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            copies |= row_ordered_copies(group)
        work = [(group, self._entries(group, copies)) for group in self.param_groups]
        for group, entries in work:
            if group["rule"] != "adamw":
                self.check_matrices(group, entries)
        squares = narrowest_squares(self, self.param_groups)
        present = [(group, [p.grad is not None for p in group["params"]]) for group, _ in work]
        usable = usable_gradients(
            self.param_groups,
            self.on_nonfinite,
            self._watch,
            step=self._steps_made,
            squares=squares,
            undo=partial(_count, present, by=-1) if self.counts_gradients else None,
        )
        batches = []
        for group, entries in work:
            for batch in tensor_batches(entries, self.largest_batch):
                batches.append(traced_batch(self, group, batch) if traced else (group, batch))
        _count(present)
        self._steps_made += 1
        return batches, usable, copies

    def _apply(self, batches: list[tuple[dict[str, Any], TensorBatch]], usable: Tensor | None) -> None:
        for group, batch in batches:
            step_batch(self, group, batch, usable)


def _count(present: list[tuple[dict[str, Any], list[bool]]], *, by: int = 1) -> None:
    for group, had in present:
        if group["rule"] != "adamw":
            count_gradients(group, had, by=by)


def _is_dtensor(p: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # takes half a second to load, and whoever has one has it
    return module is not None and isinstance(p, module.DTensor)
