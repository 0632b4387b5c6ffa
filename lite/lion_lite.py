"""The optimizers LionLITE and Lion, which update by the sign of a covector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from discretizations.preconditioners.sign import Sign
from discretizations.update_rule import UpdateRule
from lite.declaration import PLAIN_FRACTION, followed_ratio
from lite.execution.finiteness import OnNonfinite
from lite.optimizer import BaseMethod, Chi, Exchange, LITEOptimizer
from lite.parameters.decay import Decay, decay_rate
from lite.parameters.group_checks import require_betas

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class LionLITE(LITEOptimizer):
    r"""Lion with larger learning rate and Hessian damping along flat coordinates.

    Parameters of any shape (``rule="lion"``) use LITE's update rule with the sign
    (:class:`discretizations.preconditioners.Sign`); groups with ``rule="adamw"`` use the second moment. Lion has no
    natural eigenbasis, so the sharp coordinates of a tensor are those where the covector is largest. With χ = 1 and
    β_sharp = β_flat = 0 it is :class:`Lion`,

    .. math:: u = \mathrm{sign}(\theta_1 m + (1-\theta_1) g), \qquad m \leftarrow \theta_2 m + (1-\theta_2) g

    Up to the factor θ₁/θ₂, its covector is the new momentum with look-ahead: :math:`m + (\theta_2/\theta_1 - 1)g`.

    Args:
        params: ``param_groups(model, matrix_rule="lion", other_rule="lion")``, or tensors or groups as for any torch
            optimizer.
        lr: Learning rate η; typically a third to a tenth of AdamW's.
        betas: θ₁ and θ₂.
        weight_decay: λ ≥ 0, decoupled; typically three to ten times AdamW's.
        chi: χ ≥ 1, learning-rate ratio of flat coordinates.
        beta_sharp: β₁ > −1, Hessian damping of sharp coordinates, relative to the sign of the covector.
        beta_flat: β₂ ≥ β₁, the same for flat coordinates.
        sharp_fraction: r in [0, 1], fraction of coordinates that count as sharp; r ≤ 1e−6 is plain Lion.
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.
        decay: See :class:`LITEOptimizer`.
        on_nonfinite: See :class:`LITEOptimizer`.
        stochastic_rounding: See :class:`LITEOptimizer`.
        capturable: See :class:`LITEOptimizer`.
        process_group: See :class:`LITEOptimizer`.
        agreement_group: See :class:`LITEOptimizer`.
        exchange: See :class:`LITEOptimizer`.

    Raises:
        ValueError: for a hyperparameter out of range.

    Source: Chen et al., *Symbolic Discovery of Optimization Algorithms*, arXiv:2302.06675; arXiv:2602.22681.
    """

    rule = "lion"
    takes_any_shape = True
    sharded_state = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
        chi: Chi = 2.0,
        beta_sharp: float = 0.0,
        beta_flat: float = 0.0,
        sharp_fraction: float = 0.1,
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        decay: Decay = "decoupled",
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
            adamw_betas=adamw_betas,
            eps=eps,
            decay=decay,
            on_nonfinite=on_nonfinite,
            stochastic_rounding=stochastic_rounding,
            capturable=capturable,
            process_group=process_group,
            agreement_group=agreement_group,
            exchange=exchange,
            betas=betas,
        )

    def check_rule(self, group: dict[str, Any]) -> None:
        require_betas(group, "betas")
        if group["betas"][0] == 0:
            raise ValueError("betas[0] = 0 takes the sign of the gradient alone; give a number above 0, such as 0.9.")

    def momentum_dtype(self, group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        return dtype

    def update_rule(self, group: dict[str, Any], shape: tuple[int, int]) -> UpdateRule:
        (theta1, theta2), r = group["betas"], group["sharp_fraction"]
        names = ("chi", "chi_sharp", "beta_sharp", "beta_flat")
        return UpdateRule(
            preconditioner=Sign(sharp_fraction=0.0 if r <= PLAIN_FRACTION else r),
            alpha=1.0 - theta2,
            gain=1.0 - theta2,
            nesterov=theta2 / theta1 - 1.0,
            decay=decay_rate(group),
            is_cautious=group["decay"] == "cautious",
            **({} if r <= PLAIN_FRACTION else {name: group[name] for name in names} | {"ratio": followed_ratio(group)}),
        )


class Lion(BaseMethod, LionLITE):
    """Lion: :class:`LionLITE` with χ = 1 and β = 0 in every group.

    Args:
        params: As for :class:`LionLITE`; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η.
        settings: The other settings of :class:`LionLITE`.

    Source: Chen et al., arXiv:2302.06675.
    """
