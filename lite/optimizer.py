"""The base class of the LITE optimizers: parameter groups, checkpoints, and the choice of an executor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would load the compiler for everyone

from lite.checkpoints.loading import load_between_hooks, loadable_state
from lite.declaration import Declaration
from lite.execution.executor import Executor, Workload
from lite.execution.finiteness import ON_NONFINITE, OnNonfinite
from lite.execution.local import LocalExecutor
from lite.parameters.decay import Decay, Norm
from lite.parameters.group_checks import check_group, require_flag
from lite.parameters.parameter_entries import steps_so_far
from lite.parameters.tensor_settings import keep_tensors, own_tensors
from riemannian_ode.checks import require_choice

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Exchange: TypeAlias = Literal["fastest", "exact", "bfloat16"]
Chi: TypeAlias = float | Literal["auto"]
EXCHANGES: tuple[Exchange, ...] = ("fastest", "exact", "bfloat16")


class LITEOptimizer(Declaration, torch.optim.Optimizer):
    """Base of the LITE optimizers, with a subclass's rule for matrices and AdamW-LITE for everything else.

    A subclass names its rule and declares the update rule of a group: ``rule`` and ``update_rule`` of
    :class:`lite.declaration.Declaration`. This class handles parameter groups, layouts, batches, checkpoints and bad
    gradients.

    Args:
        params: ``param_groups(model)``, or tensors or groups as for any torch optimizer (then all must be matrices
            unless a group says ``rule="adamw"``).
        lr: Learning rate η.
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 0, learning-rate ratio of flat directions; LITE has χ > 1. With ``"auto"`` each matrix sets its own
            between 1 and 4 (:class:`discretizations.HypergradientRatio`), at the price of one more tensor of its shape;
            groups of AdamW without a χ of their own then keep 1.
        beta_sharp: β₁ > −1, Hessian damping of sharp directions, in the rule's units.
        beta_flat: β₂ ≥ β₁, the same for flat directions.
        sharp_fraction: r in [0, 1], fraction of directions that count as sharp.
        chi_sharp: χ_s ≥ 0, learning-rate ratio of sharp directions; 1 except in ablations.
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.
        decay: ``"decoupled"``: a step shrinks weights by lr·λ. ``"independent"``: by λ·lr/peak, with the peak of the
            schedule (``initial_lr``, which schedulers store in groups), so that λ need not change with lr.
            ``"cautious"``: as decoupled, but only for entries with the same sign as their direction; masks do not act
            on it.
        norm: ``"free"``, or ``"constant"`` for matrices that keep their Frobenius norm R: a step has size lr·R and
            returns to the sphere. It requires ``weight_decay=0``.
        on_nonfinite: What to do if a gradient is not finite or its squares overflow (:mod:`lite.execution.finiteness`).
            The check needs no device sync: ``"raise"`` skips the step and raises in a later step, once the device has
            finished the check; ``"skip"`` skips the step; ``"ignore"`` does not check.
        stochastic_rounding: Whether bfloat16 parameters are rounded stochastically, without bias.
        capturable: Whether learning rate, weight decay, χ and β₂ of groups become device tensors, so that a step in a
            CUDA graph follows their schedules.
        process_group: Ranks that hold the same plain tensors (DDP) and should divide the work on matrices; by default
            every rank does everything. DTensors are detected automatically, in any layout.
        agreement_group: Ranks that skip a step or raise together if a gradient on one of them is not finite although
            they hold different parameters: the stages of a pipeline.
        exchange: Dtype in which matrices travel between ranks: ``"exact"``, their own; ``"bfloat16"`` if the rule
            allows it; ``"fastest"``, bfloat16 if the rule computes in it anyway.
        settings: The rule's own hyperparameters, which groups can read and set.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.

    Source of decay and norm: Loshchilov and Hutter, arXiv:1711.05101 (independent); Chen et al., arXiv:2510.12402
    (cautious); Wen et al., *Hyperball*, arXiv:2606.16899 (constant).
    """

    _compile_options: dict[str, Any] | None = None  # not of a copy, which is not compiled

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        weight_decay: float = 0.1,
        chi: Chi = 2.0,
        beta_sharp: float = 0.0,
        beta_flat: float = 0.0,
        sharp_fraction: float = 0.1,
        chi_sharp: float = 1.0,
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        decay: Decay = "decoupled",
        norm: Norm = "free",
        on_nonfinite: OnNonfinite = "raise",
        stochastic_rounding: bool = False,
        capturable: bool = False,
        process_group: ProcessGroup | None = None,
        agreement_group: ProcessGroup | None = None,
        exchange: Exchange = "fastest",
        **settings: Any,
    ) -> None:
        require_choice("on_nonfinite", on_nonfinite, ON_NONFINITE)
        require_choice("exchange", exchange, EXCHANGES)
        require_flag({"capturable": capturable}, "capturable")
        self.on_nonfinite = on_nonfinite
        self.exchange = exchange
        self.capturable = capturable
        self._executor: Executor = LocalExecutor()
        self._is_built = False
        defaults = {
            "rule": self.rule,
            "kind": "matrix",
            "layout": "row" if self.takes_any_shape else "matrix",
            "blocks": None,
            "block_axis": -2,
            "lr": lr,
            "weight_decay": weight_decay,
            "chi": chi,
            "adapts_chi": False,
            "beta_sharp": beta_sharp,
            "beta_flat": beta_flat,
            "sharp_fraction": sharp_fraction,
            "chi_sharp": chi_sharp,
            "adamw_betas": adamw_betas,
            "eps": eps,
            "decay": decay,
            "norm": norm,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults | settings)
        self._is_built = True
        self._choose_executor(process_group, agreement_group)

    @property
    def is_divided(self) -> bool:
        """Whether several ranks share the work, so that each has a part of the state."""
        return self._executor.is_divided

    def __getstate__(self) -> dict[str, Any]:
        # torch's version names only three attributes. A copy starts with an empty watch, since device events cannot be
        # copied.
        if self.is_divided:
            raise TypeError("an optimizer on several ranks cannot be copied or pickled; save its state_dict().")
        self._executor.settle(self._work())  # the groups' counts of gradients
        names = ("on_nonfinite", "exchange", "capturable", "sharded_state", "travelling_state", "_is_built")
        own = {name: getattr(self, name) for name in names}
        return super().__getstate__() | own | {"_executor": LocalExecutor(self._executor.steps_made)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ValueError: for hyperparameters out of range or parameters that the group's rule cannot take.
        """
        super().add_param_group(param_group)
        try:
            self._choose_chi(self.param_groups[-1])
            self._check_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise
        own_tensors(self.param_groups[-1], capturable=self.capturable)
        if self._is_built:
            self._choose_executor()

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
        self._executor.step(self._work())
        return loss

    def compile(self, **options: Any) -> None:
        """Compile the step's tensor operations in place, like ``torch.nn.Module.compile``.

        Changes of learning rate, weight decay, χ or β cause no recompilation; a different set of gradients does. On
        several ranks the work between exchanges is compiled, by shape; the exchanges are not.

        Args:
            options: Options of ``torch.compile``. By default shapes are constants, and this optimizer may have 64
                graphs (per shape on several ranks): SOAP has one for each step between two refreshes of a basis.
        """
        self._compile_options = options
        self._executor.compile(**options)

    @_disable_dynamo
    def check_gradients(self, *, wait: bool = True) -> None:
        """Raise if a gradient of an earlier step was not finite.

        Args:
            wait: Whether to wait for steps that the device has not finished. On several ranks this always waits for the
                last step, so that all ranks raise at the same place.

        Raises:
            NonFiniteError: naming the step, the parameters, and the ranks if there are several.
        """
        self._executor.check(self._work(), wait=wait)

    def init_state(self) -> None:
        """Create all state before the first step, e.g. for ``torch.distributed.checkpoint``."""
        self._notice_sharding()
        for group in self.param_groups:
            if group["rule"] != "adamw":
                group["steps"] = steps_so_far(group)
        self._executor.init_state(self._work())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a ``state_dict``, keeping every tensor's dtype (even float32 state of bfloat16 parameters).

        Parameters match by name, whatever their order, without the prefixes of wrappers (``_orig_mod.``, ``module.``,
        ``model.``). The remaining parameters, and those without names, match by order if rules and shapes agree, with a
        warning if names differ. On several ranks this is a collective, like a step.

        Raises:
            ValueError: if groups, rules, parameters or shapes differ, a setting is unknown or out of range, or the
                checkpoint is damaged, naming the first difference. If one rank raises, all do. Nothing has changed
                then.
        """
        self._notice_sharding()
        self._executor.settle(self._work())  # the previous step belongs to the groups that are replaced
        load_between_hooks(self, state_dict, self._load)

    def _load(self, state_dict: dict[str, Any]) -> None:
        executor, work = self._executor, self._work()
        loadable = partial(
            loadable_state,
            state_dict,
            work.groups,
            work.initial_state,
            self._check_group,
            partial(executor.held, work),
            spare=self.spare_state,
        )
        state_dict = executor.found_together(loadable)
        super().load_state_dict(state_dict)
        for own, loaded in zip(work.groups, self.param_groups, strict=True):
            for name, value in own.items():
                loaded.setdefault(name, value)  # settings missing in the checkpoint
            keep_tensors(own, loaded)
        # torch casts floating-point state to the parameter's dtype; put the saved values back unchanged.
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        saved = {p: state_dict["state"].get(index) for index, p in zip(indices, self._parameters(), strict=True)}
        executor.load_state(self._work(), {p: state for p, state in saved.items() if state is not None})
        executor.steps_made = max((step for group in self.param_groups for step in group.get("steps", [])), default=0)

    def state_dict(self) -> dict[str, Any]:
        """State and groups; see ``torch.optim.Optimizer.state_dict``.

        For an optimizer on several ranks it is this rank's part; save and load it with
        ``torch.distributed.checkpoint``.
        """
        self._executor.settle(self._work())  # the groups' counts of gradients
        return super().state_dict()

    def _choose_executor(
        self, process_group: ProcessGroup | None = None, agreement_group: ProcessGroup | None = None
    ) -> None:
        """Divide the work if parameters are on several ranks (then a collective); else this process does everything."""
        groups = process_group, agreement_group
        is_spread = any(group is not None for group in groups) or any(map(_is_dtensor, self._parameters()))
        if self.is_divided or not is_spread:
            self._executor.add_parameters(self._work())
            return
        from lite.distributed.executor import DistributedExecutor

        if self.capturable:
            raise ValueError("capturable=True is for one process; steps on several ranks cannot be captured.")
        self._executor = DistributedExecutor(self._work(), process_group, agreement_group)
        if self._compile_options is not None:
            self._executor.compile(**self._compile_options)

    @_disable_dynamo
    def _work(self) -> Workload:
        return Workload(self, self.param_groups, self.state, self.on_nonfinite)

    @_disable_dynamo
    def _notice_sharding(self) -> None:
        """Divide the work if parameters became DTensors since, e.g. by accelerate's ``prepare``; a collective then.

        Raises:
            ValueError: if there is already state, which belongs to tensors that no longer exist.
        """
        if not self.is_divided and any(map(_is_dtensor, self._parameters())):
            if self._executor.steps_made or self.state:
                raise ValueError(
                    f"the parameters were sharded after {self._executor.steps_made} steps of this optimizer, whose "
                    "state belongs to the old tensors; shard the model first, then load a checkpoint."
                )
            self._choose_executor()

    def _check_group(self, group: dict[str, Any], tags: Collection[Any] = ()) -> None:
        check_group(group, rule=self.rule, known=self.defaults, tags=tags)
        self.check_rule(group)

    def _choose_chi(self, group: dict[str, Any]) -> None:
        """Replace a χ of ``"auto"`` by the number that schedules see, which each matrix multiplies by its own."""
        if group["chi"] == "auto":
            if self.rule == "adamw":
                raise ValueError("chi = 'auto' sets the χ of matrices, and AdamWLITE has none; give a number.")
            group.update(chi=1.0, adapts_chi=group["rule"] != "adamw")

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


class BaseMethod(LITEOptimizer):
    """Mixin that turns a LITE optimizer into its base method: χ = 1 and β = 0 override the settings of every group.

    It precedes the LITE optimizer in the list of base classes: ``class SOAP(BaseMethod, SOAPLITE)``.

    Args:
        params: As for the LITE optimizer; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η; by default that of the LITE optimizer.
        settings: Other settings of the LITE optimizer.

    Attributes:
        neutral: Settings with which the LITE optimizer equals its base method.
    """

    neutral: ClassVar[dict[str, Any]] = {"chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0}

    def __init__(self, params: Any, lr: float | None = None, **settings: Any) -> None:
        rate: dict[str, Any] = {} if lr is None else {"lr": lr}
        super().__init__(params, **rate, **self.neutral, **settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group({**param_group, **self.neutral})


def _is_dtensor(p: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # slow to import, and loaded if there are DTensors
    return module is not None and isinstance(p, module.DTensor)
