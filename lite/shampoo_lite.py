"""The optimizers ShampooLITE (Shampoo with averages, AdamW-LITE for everything else) and plain Shampoo."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from discretizations.preconditioners.eigenbasis_moment import DIVERGENCES, Divergence, EigenbasisMoment
from discretizations.preconditioners.kronecker_root import KroneckerRoot, RootMethod
from discretizations.preconditioners.masks import CoordinateMask
from discretizations.update_rule import UpdateRule
from lite.declaration import PLAIN_FRACTION, followed_ratio
from lite.execution.finiteness import OnNonfinite
from lite.optimizer import BaseMethod, Chi, Exchange, LITEOptimizer
from lite.parameters.decay import Decay, Norm, decay_rate
from lite.parameters.group_checks import require_betas, require_flag, require_range, require_whole
from riemannian_ode.checks import require_choice
from riemannian_ode.preconditioner import Preconditioner

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ROOTS: tuple[RootMethod, ...] = ("eigh", "newton")


class ShampooLITE(LITEOptimizer):
    r"""Shampoo with larger learning rate and Hessian damping along flat directions.

    Matrices (``rule="shampoo"``) use LITE's update rule with roots of Kronecker factors
    (:class:`discretizations.preconditioners.KroneckerRoot`), other parameters (``rule="adamw"``) use it with the second
    moment (:mod:`lite.adamw`). The sharp directions are the top eigenvectors of the right factor. With χ = 1 and
    β_sharp = β_flat = 0 it is :class:`Shampoo`. At a ``precondition_frequency`` above 1 each matrix's first gradient
    only sets its roots.

    With ``divergence="kl"`` it is KL-Shampoo: factors are fitted in the Kullback–Leibler divergence, and eigenvalues
    are averaged in bases that are refreshed as in SOAP (:class:`discretizations.preconditioners.EigenbasisMoment`). The
    sharp coordinates are then those of that eigenbasis with the largest moment. KL-Shampoo needs no grafting.

    Args:
        params: ``param_groups(model, matrix_rule="shampoo")``, or tensors or groups as for any torch optimizer (then
            all must be matrices unless a group says ``rule="adamw"``).
        lr: Learning rate η; with grafting in Adam's units.
        betas: θ and θ₂, EMA coefficients of the first moment, and of the factors and the second moment.
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 1, learning-rate ratio of flat directions, or ``"auto"``, see :class:`LITEOptimizer`.
        beta_sharp: β₁ > −1, Hessian damping of sharp directions, in the theory's units (relative to a summed momentum).
        beta_flat: β₂ ≥ β₁, the same for flat directions.
        sharp_fraction: r in [0, 1], fraction of columns that count as sharp; r ≤ 1e−6 is plain Shampoo.
        precondition_frequency: Steps between updates of a matrix's roots. The matrices of a group take turns as in
            :class:`SOAPLITE`.
        root: How roots are computed: ``"eigh"``, or ``"newton"``, which uses products only.
        grafts: Whether the direction is rescaled to the Frobenius norm of Adam's; by default yes, unless the divergence
            is ``"kl"``.
        divergence: ``"frobenius"`` for Shampoo's factors, ``"kl"`` for KL-Shampoo.
        epsilon: ε added to the eigenvalues of the factors.
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.
        decay: See :class:`LITEOptimizer`.
        norm: See :class:`LITEOptimizer`.
        on_nonfinite: See :class:`LITEOptimizer`.
        stochastic_rounding: See :class:`LITEOptimizer`.
        process_group: See :class:`LITEOptimizer`.
        agreement_group: See :class:`LITEOptimizer`.
        exchange: See :class:`LITEOptimizer`.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.

    Source: Gupta, Koren and Singer, arXiv:1802.09568; Shi et al., arXiv:2309.06497; Lin et al., arXiv:2509.03378 (KL);
    arXiv:2602.22681, Algorithm 1.
    """

    rule = "shampoo"
    counts_gradients = True  # for the order of refreshes, and the first gradient
    largest_cpu_batch = 2**17  # as for SOAP: a CPU would only copy factors and roots

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        chi: Chi = 2.0,
        beta_sharp: float = 0.0,
        beta_flat: float = 1.0,
        sharp_fraction: float = 0.1,
        precondition_frequency: int = 10,
        root: RootMethod = "eigh",
        grafts: bool | None = None,
        divergence: Divergence = "frobenius",
        epsilon: float = 1e-10,
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        decay: Decay = "decoupled",
        norm: Norm = "free",
        on_nonfinite: OnNonfinite = "raise",
        stochastic_rounding: bool = False,
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
            norm=norm,
            on_nonfinite=on_nonfinite,
            stochastic_rounding=stochastic_rounding,
            process_group=process_group,
            agreement_group=agreement_group,
            exchange=exchange,
            betas=betas,
            precondition_frequency=precondition_frequency,
            root=root,
            grafts=divergence != "kl" if grafts is None else grafts,
            divergence=divergence,
            epsilon=epsilon,
        )

    def check_rule(self, group: dict[str, Any]) -> None:
        require_betas(group, "betas")
        require_whole(group, "precondition_frequency", 1, "a whole number of steps, at least 1")
        require_choice("root", group["root"], _ROOTS)
        require_choice("divergence", group["divergence"], DIVERGENCES)
        require_flag(group, "grafts")
        require_range(group, "epsilon", 0.0, math.inf, "it is added to the eigenvalues of the factors")
        if group["epsilon"] == 0:
            raise ValueError("epsilon = 0 has no roots if a factor is singular; 1e-10 is usual.")
        if group["divergence"] == "kl" and group["grafts"]:
            raise ValueError(
                "grafts = True has no meaning for divergence = 'kl', whose metric sets "
                "the step size itself; leave it out."
            )
        if group["chi_sharp"] != 1:
            raise ValueError(f"chi_sharp = {group['chi_sharp']!r} is an ablation of MuonLITE; leave it at 1.")

    def update_rule(self, group: dict[str, Any], shape: tuple[int, int]) -> UpdateRule:
        gain, r = 1.0 - group["betas"][0], group["sharp_fraction"]
        flow: dict[str, Any] = {  # β is in the theory's units, relative to a summed momentum
            "chi": group["chi"],
            "ratio": followed_ratio(group),
            "beta_sharp": gain * group["beta_sharp"],
            "beta_flat": gain * group["beta_flat"],
        }
        return UpdateRule(
            preconditioner=_preconditioner(group),
            alpha=gain,
            gain=gain,
            decay=decay_rate(group),
            is_cautious=group["decay"] == "cautious",
            keeps_norm=group["norm"] == "constant",
            corrects_momentum=True,
            **({} if r <= PLAIN_FRACTION else flow | {"is_split": None if r < 1.0 else False}),
        )


class Shampoo(BaseMethod, ShampooLITE):
    """Shampoo with AdamW for other parameters: :class:`ShampooLITE` with χ = 1 and β = 0 in every group.

    Args:
        params: As for :class:`ShampooLITE`; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η.
        settings: The other settings of :class:`ShampooLITE`.

    Source: Gupta, Koren and Singer, arXiv:1802.09568; Shi et al., arXiv:2309.06497.
    """


def _preconditioner(group: dict[str, Any]) -> Preconditioner:
    beta2, frequency, r = group["betas"][1], group["precondition_frequency"], group["sharp_fraction"]
    if group["divergence"] == "kl":
        mask = CoordinateMask(sharp_fraction=r)
        names: dict[str, Any] = {"frequency": frequency, "eps": group["eps"], "divergence": "kl", "moment": "kronecker"}
        return EigenbasisMoment(beta2=beta2, mask=mask, **names)
    return KroneckerRoot(
        beta2=beta2,
        eps=group["epsilon"],
        sharp_fraction=0.0 if r <= PLAIN_FRACTION else r,
        frequency=frequency,
        root=group["root"],
        grafts=group["grafts"],
    )
