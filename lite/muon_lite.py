"""The optimizers MuonLITE (Muon-LITE for matrices, AdamW-LITE for everything else) and plain Muon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from discretizations.preconditioners.masks import RandomSubspace, SingularMask, ThresholdMask, TrackedSubspace
from discretizations.update_rule import UpdateRule
from lite.declaration import ANY_SHAPE, MOMENTUM, PLAIN_FRACTION, followed_ratio, matrix_shape
from lite.execution.finiteness import OnNonfinite
from lite.muon_settings import (
    MASKS,
    Damping,
    Iteration,
    Mask,
    NSDtype,
    Scale,
    check_muon_group,
    group_mask,
    group_scale,
    inside_unit,
    matrix_shapes,
    polar_factor,
)
from lite.optimizer import BaseMethod, Chi, Exchange, LITEOptimizer
from lite.parameters.decay import Decay, Norm, decay_rate
from lite.parameters.parameter_entries import TensorEntry

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MuonLITE(LITEOptimizer):
    r"""Muon with larger learning rate and Hessian damping along flat directions.

    Matrices (``rule="muon"``) use LITE's update rule with the polar factor
    (:class:`discretizations.preconditioners.PolarFactor`), other parameters (``rule="adamw"``) use it with the second
    moment (:mod:`lite.adamw`). With χ = 1 and β_sharp = β_flat = 0 it is :class:`Muon`.

    Args:
        params: ``param_groups(model)``, or tensors or groups as for any torch optimizer (then all must be matrices
            unless a group says ``rule="adamw"``).
        lr: Learning rate η; with the scale ``"rms"`` the update's root mean square is 0.2·lr, like AdamW's.
        momentum: θ in (0, 1).
        nesterov: Whether the covector is M + (1 − θ)/θ·G, Nesterov's form as published, or M itself.
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 1, learning-rate ratio of flat directions, or ``"auto"``, see :class:`LITEOptimizer`.
        beta_sharp: β₁ > −1, Hessian damping of sharp directions, in published units (relative to msign(M̃)).
        beta_flat: β₂ ≥ β₁, the same for flat directions.
        sharp_fraction: r in [0, 1], fraction of directions that count as sharp; matrices with r ≤ 1e−6 run plain
            Muon, as published.
        chi_sharp: χ_s, learning-rate ratio of sharp directions, for ablations; not with the threshold mask.
        ns: Newton–Schulz iteration: ``"polar-express"``; ``"jordan"``, the quintic of torch.optim.Muon; ``"cubic"``,
            (3/2, −1/2); ``"svd"``, exact polar factors; or a list of coefficients (a, b, c) of
            :math:`aX + bXX^\top X + c(XX^\top)^2X`, one per step, where the last one serves all further steps.
        ns_steps: Newton–Schulz steps; 0 uses exact polar factors by SVD (for tests).
        ns_dtype: Dtype of Newton–Schulz: ``"fastest"`` (:func:`discretizations.matrices.polar.fast_dtype`: bfloat16
            if the hardware multiplies it fast, float16 on GPUs with the extra ``gpu``, else float32),
            ``"parameter"``, ``"bfloat16"``, ``"float16"`` (after a normalisation in float32; a sixth of bfloat16's
            error, while masks work in float32) or ``"float32"``.
        mask: ``"subspace"``, the top-k right singular space of M̃ with k = round(r·min(m, n)), tracked from step to
            step; ``"exact"``, the same by SVD; ``"threshold"``, the published soft mask; ``"graded"``,
            :math:`u = \chi\,\mathrm{msign}(\tilde M) - (\chi-1)\tilde M/\sigma_1` without a subspace or a second
            Newton–Schulz, and ``"graded-frobenius"``, the same with ‖M̃‖_F, both with plain weight decay; ``"random"``,
            a fixed random subspace, as a control experiment.
        damping: Where β acts. ``"outside"`` adds to msign(M̃) as published, with a second Newton–Schulz. ``"inside"``
            acts before the map,
            :math:`\mathrm{msign}(\tilde M + \sqrt{\tfrac{1-\theta}{1+\theta}}(\beta_1GP + \beta_2GQ))`, at no extra
            cost, in units in which β has the same effect as outside if noise dominates; not for masks that need
            msign(M̃).
        row_beta2: θ₂ of NorMuon, which divides each row of the polar factor by the root of its second moment
            (:class:`NorMuonLITE`); ``None`` leaves rows unchanged.
        float32_momentum: Whether the momentum of half-precision parameters is kept in float32.
        scale: Factor of the direction of a matrix m×n, in addition to lr: ``"rms"``, 0.2√max(m, n); ``"original"``,
            √max(1, m/n), torch's default; ``"spectral"``, √(m/n) for weights out×in, the scale of μP; or a function of
            (m, n).
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.
        decay: See :class:`LITEOptimizer`.
        norm: See :class:`LITEOptimizer`.
        on_nonfinite: See :class:`LITEOptimizer`.
        stochastic_rounding: See :class:`LITEOptimizer`.
        capturable: See :class:`LITEOptimizer`.
        process_group: See :class:`LITEOptimizer`.
        agreement_group: See :class:`LITEOptimizer`.
        exchange: See :class:`LITEOptimizer`.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.

    Source: arXiv:2602.22681, Muon-LITE and AdamW-LITE with the published settings for LLaMA.
    """

    rule = "muon"
    sharded_state = ("momentum",)
    spare_state = ("rho", "subspace", "leading", "draws")
    largest_cpu_batch = 2**20  # larger temporaries do not fit a CPU's caches (measured)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        chi: Chi = 2.0,
        beta_sharp: float = -0.25,
        beta_flat: float = 1.0,
        sharp_fraction: float = 0.1,
        chi_sharp: float = 1.0,
        ns: Iteration | Sequence[Sequence[float]] = "polar-express",
        ns_steps: int = 6,
        ns_dtype: NSDtype = "fastest",
        scale: Scale | Callable[[tuple[int, int]], float] = "rms",
        mask: Mask = "subspace",
        damping: Damping = "outside",
        row_beta2: float | None = None,
        float32_momentum: bool = False,
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
            decay=decay,
            norm=norm,
            on_nonfinite=on_nonfinite,
            stochastic_rounding=stochastic_rounding,
            capturable=capturable,
            process_group=process_group,
            agreement_group=agreement_group,
            exchange=exchange,
            momentum=momentum,
            nesterov=nesterov,
            ns=ns if isinstance(ns, str) else tuple(tuple(each) for each in ns),
            scale=scale,
            ns_steps=ns_steps,
            ns_dtype=ns_dtype,
            mask=mask,
            damping=damping,
            row_beta2=row_beta2,
            float32_momentum=float32_momentum,
        )

    def check_rule(self, group: dict[str, Any]) -> None:
        check_muon_group(group)

    def update_rule(self, group: dict[str, Any], shape: tuple[int, int]) -> UpdateRule:
        theta, mask = group["momentum"], group_mask(group)
        flow = {name: group[name] for name in ("chi", "chi_sharp", "beta_sharp", "beta_flat")}
        if group["damping"] == "inside":
            flow |= {name: inside_unit(theta) * flow[name] for name in ("beta_sharp", "beta_flat")}
        ratio = followed_ratio(group)
        if mask is None:
            flow, ratio = {"chi": 1.0, "chi_sharp": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0}, None
        rule = UpdateRule(
            preconditioner=polar_factor(group, mask),
            alpha=1.0 - theta,
            gain=1.0 - theta,
            nesterov=(1.0 - theta) / theta if group["nesterov"] else 0.0,
            decay=decay_rate(group) / group_scale(group, shape),
            is_cautious=group["decay"] == "cautious",
            keeps_norm=group["norm"] == "constant",
            damps_inside=group["damping"] == "inside",
            ratio=ratio,
            **flow,
        )
        return replace(rule, is_split=True) if type(mask) is ThresholdMask else rule  # ρ adapts even if χ = 1

    def learning_rate(self, group: dict[str, Any], shape: tuple[int, int]) -> Any:
        return group["lr"] if group["norm"] == "constant" else group["lr"] * group_scale(group, shape)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if callable(group["scale"]):  # plain numbers, which a checkpoint can hold
            group["scale"] = {shape: float(group["scale"](shape)) for shape in matrix_shapes(group)}

    def momentum_dtype(self, group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32) if group["float32_momentum"] else dtype

    def matrix_state(self, group: dict[str, Any], w: Tensor) -> dict[str, Tensor]:
        # The mask's memory exists from the start, even if a schedule activates χ and β only later.
        fraction = group["sharp_fraction"]
        mask = None if fraction <= PLAIN_FRACTION else MASKS[group["mask"]](fraction)
        memory = polar_factor(group, mask).initial(w, batch=w.ndim - 2)
        if mask is not None and (ratio := followed_ratio(group)) is not None:
            memory |= ratio.initial(w, batch=w.ndim - 2)
        return {MOMENTUM: torch.zeros_like(w, dtype=self.momentum_dtype(group, w.dtype)), **memory}

    def check_matrices(self, group: dict[str, Any], entries: Sequence[TensorEntry]) -> None:
        mask, splits = group_mask(group), self.update_rule(group, ANY_SHAPE).splits
        for entry in entries:
            _require_memory(group, mask, splits, matrix_shape(entry.w), entry.state)

    def squares_dtype(self, group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        iteration = polar_factor(group, None).iteration_dtype(torch.empty((), dtype=dtype))
        return torch.promote_types(iteration, torch.float32)

    def message_dtypes(self, group: dict[str, Any], w: Tensor) -> tuple[torch.dtype | None, torch.dtype]:
        momentum = self.momentum_dtype(group, w.dtype)
        iteration = polar_factor(group, None).iteration_dtype(w.new_empty((), dtype=momentum))
        if self.exchange == "bfloat16" or (self.exchange == "fastest" and iteration == torch.bfloat16):
            return torch.bfloat16, torch.bfloat16
        return None, torch.promote_types(momentum, iteration)


class Muon(BaseMethod, MuonLITE):
    """Muon with AdamW for other parameters: :class:`MuonLITE` with χ = 1 and β = 0 in every group.

    It equals ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`` on matrices except for the Newton–Schulz polynomial.

    Args:
        params: As for :class:`MuonLITE`; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η.
        momentum: θ in (0, 1).
        weight_decay: λ ≥ 0, decoupled.
        ns_steps: Newton–Schulz steps.
        settings: ``ns_dtype``, ``float32_momentum``, ``adamw_betas``, ``eps``, ``on_nonfinite``,
            ``stochastic_rounding``, ``capturable``, ``process_group``, ``agreement_group`` and ``exchange`` of
            :class:`MuonLITE`.

    Source: Jordan et al., *Muon* (2024); scale of arXiv:2502.16982.
    """

    neutral: ClassVar[dict[str, Any]] = {**BaseMethod.neutral, "mask": "exact"}


def _require_memory(
    group: dict[str, Any], mask: SingularMask | None, splits: bool, shape: tuple[int, int], state: dict[str, Tensor]
) -> None:
    """Refuse a sharp fraction above the one that the state was made for.

    Raises:
        ValueError: naming what is missing.
    """
    rank = round(group["sharp_fraction"] * min(shape))
    follows = isinstance(mask, TrackedSubspace) or (isinstance(mask, RandomSubspace) and not mask.is_redrawn)
    followed = state["subspace"].size(-1) if "subspace" in state else 0
    if splits and follows and followed < rank:
        missing = f"needs {rank} directions, but {followed} have been tracked since the first step"
    elif isinstance(mask, ThresholdMask) and "rho" not in state:
        missing = "needs a threshold, but there was none at the first step"
    else:
        return
    raise ValueError(
        f"sharp_fraction = {group['sharp_fraction']!r} {missing}; keep it, or rebuild "
        "the optimizer with the larger one."
    )
