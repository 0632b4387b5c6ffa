"""The optimizer AdamWLITE: AdamW-LITE for every parameter, with Hessian damping."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from discretizations.update_rule import UpdateRule
from lite.adamw import adamw_rule
from lite.execution.finiteness import OnNonfinite
from lite.optimizer import Exchange, LITEOptimizer
from lite.parameters.decay import Decay

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class AdamWLITE(LITEOptimizer):
    r"""AdamW with larger learning rate and Hessian damping along flat coordinates, for parameters of any shape.

    The sharp coordinates of a tensor are those with the largest second moment, chosen by the published soft mask
    (:class:`discretizations.preconditioners.masks.CoordinateMask`). With χ = 1 and β_sharp = β_flat = 0 it is AdamW,
    with ε added before bias correction of the second moment.

    Args:
        params: ``param_groups(model, matrix_rule="adamw")``, or tensors or groups as for any torch optimizer.
        lr: Learning rate η.
        betas: θ and θ₂, EMA coefficients of the first and second moment.
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 1, learning-rate ratio of flat coordinates.
        beta_sharp: β₁ > −1, Hessian damping of sharp coordinates, in the theory's units (relative to a summed
            momentum).
        beta_flat: β₂ ≥ β₁, the same for flat coordinates. AdamW groups of :class:`MuonLITE` have no damping, as
            published.
        sharp_fraction: r in [0, 1], fraction of coordinates that count as sharp.
        eps: ε.
        decay: See :class:`LITEOptimizer`.
        on_nonfinite: See :class:`LITEOptimizer`.
        stochastic_rounding: See :class:`LITEOptimizer`.
        capturable: See :class:`LITEOptimizer`.
        process_group: See :class:`LITEOptimizer`.
        agreement_group: See :class:`LITEOptimizer`.
        exchange: See :class:`LITEOptimizer`.

    Raises:
        ValueError: for a hyperparameter out of range.

    Source: arXiv:2602.22681, AdamW-LITE (mask and χ) and Algorithm 1 (β).
    """

    rule = "adamw"
    takes_any_shape = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        chi: float = 2.0,
        beta_sharp: float = 0.0,
        beta_flat: float = 0.0,
        sharp_fraction: float = 0.1,
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
            adamw_betas=betas,
            eps=eps,
            decay=decay,
            on_nonfinite=on_nonfinite,
            stochastic_rounding=stochastic_rounding,
            capturable=capturable,
            process_group=process_group,
            agreement_group=agreement_group,
            exchange=exchange,
        )

    def update_rule(self, group: dict[str, Any], shape: tuple[int, int]) -> UpdateRule:
        return self.adamw_rule(group)

    def adamw_rule(self, group: dict[str, Any]) -> UpdateRule:
        rule = adamw_rule(group)
        return replace(rule, **{name: rule.gain * group[name] for name in ("beta_sharp", "beta_flat")})
