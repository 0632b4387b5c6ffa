"""The optimizers NorMuonLITE and NorMuon: Muon with normalised rows, with and without LITE."""

from __future__ import annotations

from typing import Any, ClassVar

from lite.muon_lite import MuonLITE
from lite.optimizer import BaseMethod


class NorMuonLITE(MuonLITE):
    r"""NorMuon with larger learning rate and Hessian damping along flat directions.

    Matrices (``rule="normuon"``) use LITE's update rule with
    :class:`discretizations.preconditioners.NormalizedPolarFactor`, which divides each row of the polar factor by the
    root of its second moment. The sharp directions are the top right singular directions of the covector, as in
    :class:`MuonLITE`; masks act from the right, row scales from the left. With χ = 1 and β_sharp = β_flat = 0 it is
    :class:`NorMuon`.

    Args:
        params: ``param_groups(model, matrix_rule="normuon")``, or as for :class:`MuonLITE`.
        lr: Learning rate η; the update's root mean square is 0.2·lr.
        row_beta2: θ₂, EMA coefficient of the rows' second moment.
        settings: The other settings of :class:`MuonLITE`; the mask may not be ``"threshold"``.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.

    Source: Li et al., *NorMuon*, arXiv:2510.05491; arXiv:2602.22681, Muon-LITE.
    """

    rule = "normuon"

    def __init__(self, params: Any, lr: float = 1e-3, *, row_beta2: float = 0.95, **settings: Any) -> None:
        super().__init__(params, lr, row_beta2=row_beta2, **settings)


class NorMuon(BaseMethod, NorMuonLITE):
    """NorMuon with AdamW for other parameters: :class:`NorMuonLITE` with χ = 1 and β = 0 in every group.

    Args:
        params: As for :class:`NorMuonLITE`; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η.
        settings: The other settings of :class:`NorMuonLITE`.

    Source: Li et al., *NorMuon*, arXiv:2510.05491.
    """

    neutral: ClassVar[dict[str, Any]] = {**BaseMethod.neutral, "mask": "exact"}
