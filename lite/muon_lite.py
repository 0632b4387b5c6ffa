"""MuonLITE: Muon-LITE for matrices, AdamW-LITE for everything else; and plain Muon as its base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lite import muon_step
from lite.finiteness import OnNonfinite
from lite.group_checks import is_setting_number, require_flag, require_whole
from lite.muon import (
    MASKS,
    NS_DTYPES,
    PLAIN_FRACTION,
    Mask,
    MuonRule,
    MuonState,
    NSDtype,
    initial_muon_state,
    muon_covector,
    muon_direction,
    muon_update,
    require_state,
    update_scale,
)
from lite.optimizer import Exchange, LITEOptimizer
from lite.rounding import rounds_stochastically
from lite.tensor_batches import TensorBatch, TensorEntry
from lite.tensor_settings import acts
from riemannian_ode.errors import shown
from riemannian_ode.flow import position_step

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MuonLITE(LITEOptimizer):
    r"""Muon with larger learning rate and Hessian damping along flat directions.

    Matrices (``rule="muon"``) move by :func:`lite.muon.muon_update`, other parameters (``rule="adamw"``) by
    :func:`lite.adamw.adamw_update`. With χ = 1 and β_sharp = β_flat = 0 it is :class:`Muon`.

    Args:
        params: ``param_groups(model)``, or tensors or groups as for any torch optimizer (then all must be matrices
            unless a group says ``rule="adamw"``).
        lr: Learning rate η; the update's root mean square is 0.2·lr as AdamW's would be.
        momentum: θ in (0, 1).
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 1, learning-rate ratio of flat directions.
        beta_sharp: β₁ > −1, Hessian damping of sharp directions, in published units: beside msign(M̃).
        beta_flat: β₂ ≥ β₁, the same for flat directions.
        sharp_fraction: r in [0, 1], fraction of directions that count as sharp; matrices with r ≤ 1e−6 run plain
            Muon, as published.
        chi_sharp: χ_s, learning-rate ratio of sharp directions, for ablations; not with the threshold mask.
        ns_steps: Newton–Schulz steps (Polar Express); 0 takes exact polar factors by SVD (for tests).
        ns_dtype: Floating type of Newton–Schulz: ``"fastest"`` (bfloat16 where the hardware multiplies it fast, else
            float32), ``"parameter"``, ``"bfloat16"`` or ``"float32"``.
        mask: ``"subspace"``, the top-k right singular space of M̃ with k = round(r·min(m, n)), followed from step to
            step; ``"exact"``, the same by SVD; ``"threshold"``, the published soft mask step for step.
        float32_momentum: Whether the momentum of half-precision parameters is kept in float32.
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.
        on_nonfinite: See :class:`LITEOptimizer`.
        stochastic_rounding: See :class:`LITEOptimizer`.
        capturable: See :class:`LITEOptimizer`.
        process_group: See :class:`LITEOptimizer`.
        exchange: See :class:`LITEOptimizer`.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.

    Source: arXiv:2602.22681, Muon-LITE and AdamW-LITE with the published settings for LLaMA.
    """

    rule = "muon"
    sharded_state = ("momentum",)
    spare_state = ("rho", "subspace")
    counts_gradients = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        chi: float = 2.0,
        beta_sharp: float = -0.25,
        beta_flat: float = 1.0,
        sharp_fraction: float = 0.1,
        chi_sharp: float = 1.0,
        ns_steps: int = 6,
        ns_dtype: NSDtype = "fastest",
        mask: Mask = "subspace",
        float32_momentum: bool = False,
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        on_nonfinite: OnNonfinite = "raise",
        stochastic_rounding: bool = False,
        capturable: bool = False,
        process_group: ProcessGroup | None = None,
        exchange: Exchange = "fastest",
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay=weight_decay,
            chi=chi,
            beta_sharp=beta_sharp,
            beta_flat=beta_flat,
            sharp_fraction=sharp_fraction,
            chi_sharp=chi_sharp,
            adamw_betas=adamw_betas,
            eps=eps,
            on_nonfinite=on_nonfinite,
            stochastic_rounding=stochastic_rounding,
            capturable=capturable,
            process_group=process_group,
            exchange=exchange,
            momentum=momentum,
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            mask=mask,
            float32_momentum=float32_momentum,
        )

    def check_rule(self, group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        if not is_setting_number(momentum) or not 0.0 < momentum < 1.0:
            raise ValueError(f"momentum = {shown(momentum)} must lie strictly between 0 and 1; 0.95 is published.")
        if group["mask"] not in MASKS:
            raise ValueError(f"mask = {shown(group['mask'])} is unknown. Choose one of: {', '.join(MASKS)}.")
        if group["ns_dtype"] not in NS_DTYPES:
            raise ValueError(
                f"ns_dtype = {shown(group['ns_dtype'])} is unknown. Choose one of: {', '.join(NS_DTYPES)}."
            )
        require_whole(group, "ns_steps", 0, "a whole number; 6 is published, 0 means SVD")
        require_flag(group, "float32_momentum")
        if group["mask"] == "threshold" and group["chi_sharp"] != 1:
            raise ValueError(
                f"chi_sharp = {group['chi_sharp']!r} has no meaning for the published soft mask; take mask='subspace'."
            )

    def check_matrices(self, group: dict[str, Any], entries: Sequence[TensorEntry]) -> None:
        for entry in entries:
            rho, subspace = (entry.state.get(name) for name in ("rho", "subspace"))
            require_state(_rule(group), entry.w, rho=rho, subspace=subspace)

    def largest_batch(self, w: Tensor) -> int:
        if w.device.type != "cpu":
            return super().largest_batch(w)
        matrix = [w[0] if w.ndim == 3 else w]
        rules = [_rule(group) for group in self.param_groups if group["rule"] == self.rule]
        in_place = not self.is_divided and all(muon_step.is_supported(rule, *[matrix] * 3) for rule in rules)
        return _LARGEST_BATCH_IN_PLACE if in_place else _LARGEST_CPU_BATCH

    def matrix_state(self, group: dict[str, Any], w: Tensor) -> dict[str, Tensor]:
        mask = None if group["sharp_fraction"] <= PLAIN_FRACTION else group["mask"]
        state = initial_muon_state(w, mask=mask, sharp_fraction=group["sharp_fraction"])
        if group["float32_momentum"]:
            state = state._replace(momentum=state.momentum.to(torch.promote_types(w.dtype, torch.float32)))
        return {key: value for key, value in state._asdict().items() if value is not None}

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
        rule = _rule(group)
        w, new = muon_update(rule, w, g, MuonState(**state))
        return w, {key: value for key, value in new._asdict().items() if value is not None}

    def step_in_place(self, group: dict[str, Any], batch: TensorBatch, usable: Tensor | None) -> bool:
        if type(self).matrix_update is not MuonLITE.matrix_update:  # a subclass has an update of its own
            return False
        rule, entries = _rule(group), batch.entries
        w, g, momentum = (
            batch.matrices(tensors)
            for tensors in (
                [entry.w for entry in entries],
                [entry.inputs["g"] for entry in entries],
                [entry.state["momentum"] for entry in entries],
            )
        )
        if rounds_stochastically(group, w[0]) or not muon_step.is_supported(rule, w, g, momentum):
            return False
        has_subspace = "subspace" in entries[0].state
        subspace = batch.matrices([entry.state["subspace"] for entry in entries]) if has_subspace else None
        muon_step.muon_step_(rule, w, g, momentum, subspace, usable)
        return True

    def shard_update(
        self, group: dict[str, Any], w: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rule = _rule(group)
        m, covector, g = muon_covector(rule, g, state["momentum"])
        inputs = {"covector": covector}
        if rule.is_damped:
            inputs["g"] = g
        if rule.splits_decay:
            inputs["w"] = w
        return inputs, {"momentum": m}

    def whole_update(
        self, group: dict[str, Any], inputs: dict[str, Tensor], state: dict[str, Tensor], *, step: int, numbers: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        covector = inputs["covector"]
        mask = {"rho": state.get("rho"), "subspace": state.get("subspace")}
        u, *after = muon_direction(_rule(group), covector, inputs.get("g"), decayed=inputs.get("w"), **mask)
        new = {name: value for name, value in zip(mask, after, strict=True) if value is not None}
        wide = torch.promote_types(u.dtype, torch.float32)  # as position_step works with it in one process
        return update_scale(covector) * u.to(wide), new

    def shard_move(self, group: dict[str, Any], w: Tensor, reply: Tensor) -> Tensor:
        rule = _rule(group)
        if acts(rule.weight_decay, 0.0) and not rule.splits_decay:  # else the reply has it
            reply = reply + (rule.chi_sharp * rule.weight_decay) * w
        position: Tensor = position_step(w, reply, eta=rule.lr)
        return position

    def squares_dtype(self, group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        iteration = _rule(group).iteration_dtype(torch.empty((), dtype=dtype))
        return torch.promote_types(iteration, torch.float32)

    def message_dtypes(self, group: dict[str, Any], w: Tensor) -> tuple[torch.dtype | None, torch.dtype]:
        momentum = torch.promote_types(w.dtype, torch.float32) if group["float32_momentum"] else w.dtype
        iteration = _rule(group).iteration_dtype(w.new_empty((), dtype=momentum))
        if self.exchange == "bfloat16" or (self.exchange == "fastest" and iteration == torch.bfloat16):
            return torch.bfloat16, torch.bfloat16
        return None, torch.promote_types(momentum, iteration)


class Muon(MuonLITE):
    """Muon with AdamW for other parameters: :class:`MuonLITE` with χ = 1 and β = 0 in every group.

    It equals ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`` on matrices but for the Newton–Schulz polynomial.

    Args:
        params: As for :class:`MuonLITE`; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η.
        momentum: θ in (0, 1).
        weight_decay: λ ≥ 0, decoupled.
        ns_steps: Newton–Schulz steps.
        settings: ``ns_dtype``, ``float32_momentum``, ``adamw_betas``, ``eps``, ``on_nonfinite``,
            ``stochastic_rounding``, ``capturable``, ``process_group`` and ``exchange`` of :class:`MuonLITE`.

    Source: Jordan et al., *Muon* (2024); scale of arXiv:2502.16982.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        ns_steps: int = 6,
        **settings: Any,
    ) -> None:
        base: dict[str, Any] = {"chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0, "mask": "exact"}
        own: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps}
        super().__init__(params, lr, **base, **own, **settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group({**param_group, "chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0, "mask": "exact"})


_LARGEST_CPU_BATCH = 2**20  # numbers; beyond that temporaries leave a CPU's caches (measured)
_LARGEST_BATCH_IN_PLACE = 2**22  # there they are few, and each thread has matrices of its own (measured)
_RULE_SETTINGS = (
    "lr",
    "momentum",
    "weight_decay",
    "chi",
    "beta_sharp",
    "beta_flat",
    "sharp_fraction",
    "chi_sharp",
    "ns_steps",
    "ns_dtype",
)


def _rule(group: dict[str, Any]) -> MuonRule:
    settings = {key: group[key] for key in _RULE_SETTINGS}
    if _is_plain(group):
        return MuonRule(**settings | {"chi_sharp": 1.0}, mask=None)
    return MuonRule(**settings, mask=group["mask"])


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether a group runs plain Muon for good: by its peaks, since a schedule passes through χ = 1 and β = 0."""
    names = {"chi": 1.0, "peak_chi": 1.0, "chi_sharp": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0, "peak_beta_flat": 0.0}
    lite = any(acts(group[name], neutral) for name, neutral in names.items() if name in group)
    return not lite or bool(group["sharp_fraction"] <= PLAIN_FRACTION)
