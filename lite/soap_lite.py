"""The optimizers SOAPLITE (SOAP-LITE for matrices, AdamW-LITE for everything else) and plain SOAP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from discretizations.preconditioners.eigenbasis_moment import DIVERGENCES, Divergence, EigenbasisMoment
from discretizations.preconditioners.masks import CoordinateMask
from discretizations.update_rule import UpdateRule
from lite.declaration import MOMENTUM, PLAIN_FRACTION, followed_ratio
from lite.execution.finiteness import OnNonfinite
from lite.optimizer import BaseMethod, Chi, Exchange, LITEOptimizer
from lite.parameters.decay import Decay, Norm, decay_rate
from lite.parameters.group_checks import require_betas, require_whole
from riemannian_ode.checks import require_choice

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Moments: TypeAlias = Literal["owner", "sharded"]
MOMENTS: tuple[Moments, ...] = ("owner", "sharded")


class SOAPLITE(LITEOptimizer):
    r"""SOAP with larger learning rate and Hessian damping along flat coordinates of its eigenbasis.

    Matrices (``rule="soap"``) use LITE's update rule with the second moment in an eigenbasis
    (:class:`discretizations.preconditioners.EigenbasisMoment`), other parameters (``rule="adamw"``) use it with the
    second moment (:mod:`lite.adamw`). With χ = 1 and β_sharp = β_flat = 0 it is :class:`SOAP`. Each matrix's first
    gradient only sets its basis.

    Args:
        params: ``param_groups(model, matrix_rule="soap")``, or tensors or groups as for any torch optimizer (then all
            must be matrices unless a group says ``rule="adamw"``).
        lr: Learning rate η.
        betas: θ and b₂, EMA coefficients of the first moment, and of the second moment and the factors.
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 1, learning-rate ratio of flat coordinates.
        beta_sharp: β₁ > −1, Hessian damping of sharp coordinates, in the theory's units (relative to a summed
            momentum).
        beta_flat: β₂ ≥ β₁, the same for flat coordinates.
        sharp_fraction: r in [0, 1], fraction of coordinates that count as sharp; r ≤ 1e−6 is plain SOAP.
        precondition_frequency: Steps between refreshes of a matrix's basis. The matrices of a group take turns in the
            order of their names, so that the order of parameters does not matter; tensors without names
            (``model.parameters()``) take turns in their own order.
        max_precondition_dim: Longest side that is rotated.
        divergence: ``"frobenius"`` for Shampoo's factors, as published, or ``"kl"`` for KL-SOAP: each factor takes in
            gradients whitened by the other one.
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of both rules.
        decay: See :class:`LITEOptimizer`.
        norm: See :class:`LITEOptimizer`.
        on_nonfinite: See :class:`LITEOptimizer`.
        stochastic_rounding: See :class:`LITEOptimizer`.
        process_group: See :class:`LITEOptimizer`.
        agreement_group: See :class:`LITEOptimizer`.
        exchange: See :class:`LITEOptimizer`.
        moments: Where M' and V of a sharded matrix (FSDP2, HSDP) are stored. ``"owner"``: with its factors and bases on
            the rank that updates it. ``"sharded"``: like the parameter; they travel to the owner and back at every
            step, which gives the same numbers and spreads state evenly over ranks, but sends 7/3 of the bytes.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.

    Source: arXiv:2602.22681, Algorithm 1, with the metric of SOAP (Vyas et al., arXiv:2409.11321); Lin et al.,
    arXiv:2509.03378 (KL-SOAP).
    """

    rule = "soap"
    counts_gradients = True  # for the order of refreshes, and the first gradient
    largest_cpu_batch = 2**17  # a CPU gains nothing from batches of large matrices, and would copy factors and bases

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.01,
        chi: Chi = 2.0,
        beta_sharp: float = 0.0,
        beta_flat: float = 1.0,
        sharp_fraction: float = 0.1,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10_000,
        divergence: Divergence = "frobenius",
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        decay: Decay = "decoupled",
        norm: Norm = "free",
        on_nonfinite: OnNonfinite = "raise",
        stochastic_rounding: bool = False,
        process_group: ProcessGroup | None = None,
        agreement_group: ProcessGroup | None = None,
        exchange: Exchange = "fastest",
        moments: Moments = "owner",
    ) -> None:
        require_choice("moments", moments, MOMENTS)
        if moments == "sharded":
            self.sharded_state = self.travelling_state = (MOMENTUM, "v")
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
            norm=norm,
            on_nonfinite=on_nonfinite,
            stochastic_rounding=stochastic_rounding,
            process_group=process_group,
            agreement_group=agreement_group,
            exchange=exchange,
            betas=betas,
            precondition_frequency=precondition_frequency,
            max_precondition_dim=max_precondition_dim,
            divergence=divergence,
        )

    def check_rule(self, group: dict[str, Any]) -> None:
        require_betas(group, "betas")
        for name, meaning in (("precondition_frequency", "steps"), ("max_precondition_dim", "rows or columns")):
            require_whole(group, name, 1, f"a whole number of {meaning}, at least 1")
        require_choice("divergence", group["divergence"], DIVERGENCES)
        if group["chi_sharp"] != 1:
            raise ValueError(f"chi_sharp = {group['chi_sharp']!r} is an ablation of MuonLITE; leave it at 1.")

    def update_rule(self, group: dict[str, Any], shape: tuple[int, int]) -> UpdateRule:
        theta, beta2 = group["betas"]
        r = group["sharp_fraction"]
        gain = 1.0 - theta  # β is in the theory's units, relative to a summed momentum
        flow = {
            "chi": group["chi"],
            "ratio": followed_ratio(group),
            "beta_sharp": gain * group["beta_sharp"],
            "beta_flat": gain * group["beta_flat"],
            "is_split": None if r < 1.0 else False,
        }
        names = {
            "frequency": "precondition_frequency",
            "max_dim": "max_precondition_dim",
            "eps": "eps",
            "divergence": "divergence",
        }
        preconditioner = EigenbasisMoment(
            beta2=beta2,
            mask=CoordinateMask(sharp_fraction=r),
            **{field: group[name] for field, name in names.items()},
        )
        return UpdateRule(
            preconditioner=preconditioner,
            alpha=gain,
            gain=gain,
            decay=decay_rate(group),
            is_cautious=group["decay"] == "cautious",
            keeps_norm=group["norm"] == "constant",
            corrects_momentum=True,
            **({} if r <= PLAIN_FRACTION else flow),
        )


class SOAP(BaseMethod, SOAPLITE):
    """SOAP with AdamW for other parameters: :class:`SOAPLITE` with χ = 1 and β = 0 in every group.

    Args:
        params: As for :class:`SOAPLITE`; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η.
        settings: The other settings of :class:`SOAPLITE`.

    Source: Vyas et al., arXiv:2409.11321.
    """
