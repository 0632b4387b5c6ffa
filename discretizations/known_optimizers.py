"""The rows of the correspondence table: SGD, RMSprop, Adam, Muon, Shampoo, SOAP and variants.

Hyperparameters and their defaults are those of the implementation that a row names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from discretizations.correspondence import Correspondence, Settings
from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.preconditioners.identity import Identity
from discretizations.preconditioners.kronecker_root import KroneckerRoot
from discretizations.preconditioners.normalized_polar_factor import NormalizedPolarFactor
from discretizations.preconditioners.polar_factor import TORCH_COEFFICIENTS, TORCH_FLOOR, PolarFactor
from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.preconditioners.sign import Sign
from riemannian_ode.checks import require_choice
from riemannian_ode.registry import Registry

_RMS_SCALE = "sqrt(Max(rows, columns))/5"  # 0.2√max: the update's root mean square is Adam's, arXiv:2502.16982
_MUON_SCALE = "sqrt(Max(1, rows/columns))"  # torch.optim.Muon, adjust_lr_fn="original"


def _second_moment(settings: Settings) -> SecondMoment:
    return SecondMoment(beta2=settings["beta2"], eps=settings["eps"])


def _rmsprop(settings: Settings) -> SecondMoment:
    return SecondMoment(beta2=settings["beta2"], eps=settings["eps"], corrects_bias=False)


def _polar_factor(settings: Settings) -> PolarFactor:
    names = {"iteration": "coefficients", "steps": "steps", "floor": "eps", "dtype": "dtype"}
    return PolarFactor(**{field: settings[name] for field, name in names.items()})


def _normalized_polar_factor(settings: Settings) -> NormalizedPolarFactor:
    names = {"iteration": "coefficients", "steps": "steps", "beta2": "beta2", "eps": "eps"}
    return NormalizedPolarFactor(floor=TORCH_FLOOR, **{field: settings[name] for field, name in names.items()})


def _kl(**kind: Any) -> Callable[[Settings], EigenbasisMoment]:
    names = ("beta2", "eps", "frequency")
    return lambda settings: EigenbasisMoment(divergence="kl", **kind, **{name: settings[name] for name in names})


_MUON: dict[str, Any] = {
    "lr": 1e-3,
    "mu": 0.95,
    "weight_decay": 0.1,
    "coefficients": TORCH_COEFFICIENTS,
    "steps": 5,
    "eps": TORCH_FLOOR,
    "dtype": torch.bfloat16,
}
_ROWS = (
    Correspondence(
        key="sgd",
        optimizer="gradient descent",
        implementation="torch.optim.SGD()",
        metric="I",
        build=lambda _: Identity(),
        alpha="1",
        gain="1",
        nesterov="0",
        eta="lr",
        defaults={"lr": 1e-3},
        correction="zero",
    ),
    Correspondence(
        key="sgd-momentum",
        optimizer="heavy ball",
        implementation="torch.optim.SGD(momentum=μ)",
        metric="I",
        build=lambda _: Identity(),
        alpha="1 - mu",
        gain="1",
        nesterov="0",
        eta="lr",
        defaults={"lr": 1e-3, "mu": 0.9},
        correction="zero",
    ),
    Correspondence(
        key="sgd-nesterov",
        optimizer="Nesterov",
        implementation="torch.optim.SGD(momentum=μ, nesterov=True)",
        metric="I",
        build=lambda _: Identity(),
        alpha="1 - mu",
        gain="1",
        nesterov="1/mu",
        eta="lr*mu",
        defaults={"lr": 1e-3, "mu": 0.9},
        correction="zero",
    ),
    Correspondence(
        key="rmsprop",
        optimizer="RMSprop",
        implementation="torch.optim.RMSprop()",
        metric="diag(√v + ε)",
        build=_rmsprop,
        alpha="1",
        gain="1",
        nesterov="0",
        eta="lr",
        defaults={"lr": 1e-2, "beta2": 0.99, "eps": 1e-8},
    ),
    Correspondence(
        key="rmsprop-momentum",
        optimizer="RMSprop with momentum",
        implementation="torch.optim.RMSprop(momentum=μ)",
        metric="diag(√v + ε)",
        build=_rmsprop,
        alpha="1 - mu",
        gain="1",
        nesterov="0",
        eta="lr",
        defaults={"lr": 1e-2, "mu": 0.9, "beta2": 0.99, "eps": 1e-8},
        momentum="vector",
    ),
    Correspondence(
        key="adam",
        optimizer="Adam",
        implementation="torch.optim.Adam()",
        metric="diag(√v̂ + ε)",
        build=_second_moment,
        alpha="1 - beta1",
        gain="1 - beta1",
        nesterov="0",
        eta="lr",
        corrects_momentum=True,
        defaults={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    ),
    Correspondence(
        key="adamw",
        optimizer="AdamW",
        implementation="torch.optim.AdamW()",
        metric="diag(√v̂ + ε)",
        build=_second_moment,
        alpha="1 - beta1",
        gain="1 - beta1",
        nesterov="0",
        eta="lr",
        decay="weight_decay",
        corrects_momentum=True,
        defaults={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2},
    ),
    Correspondence(
        key="muon",
        optimizer="Muon without Nesterov",
        implementation="torch.optim.Muon(nesterov=False)",
        metric="(XᵀX)^(1/2)",
        build=_polar_factor,
        alpha="1 - mu",
        gain="1 - mu",
        nesterov="0",
        eta=f"lr*{_MUON_SCALE}",
        decay=f"weight_decay/{_MUON_SCALE}",
        defaults=_MUON,
    ),
    Correspondence(
        key="muon-nesterov",
        optimizer="Muon",
        implementation="torch.optim.Muon()",
        metric="(XᵀX)^(1/2)",
        build=_polar_factor,
        # The stored momentum is μ times torch's buffer, so that the covector is torch's: in bfloat16 its scale matters.
        alpha="1 - mu",
        gain="mu*(1 - mu)",
        nesterov="1 - mu",
        eta=f"lr*{_MUON_SCALE}",
        decay=f"weight_decay/{_MUON_SCALE}",
        defaults=_MUON,
    ),
    Correspondence(
        key="shampoo",
        optimizer="Shampoo",
        implementation="arXiv:1802.09568, Algorithm 1",
        metric="L^(1/4) ⊗ R^(1/4)",
        build=lambda settings: KroneckerRoot(beta2=None, eps=settings["eps"]),
        alpha="1",
        gain="1",
        nesterov="0",
        eta="lr",
        defaults={"lr": 1e-1, "eps": 1e-4},
    ),
    Correspondence(
        key="shampoo-ema",
        optimizer="Shampoo with averages",
        implementation="arXiv:2309.06497, without grafting",
        metric="L̂^(1/4) ⊗ R̂^(1/4)",
        build=lambda settings: KroneckerRoot(beta2=settings["beta2"], eps=settings["eps"]),
        alpha="1 - beta1",
        gain="1 - beta1",
        nesterov="0",
        eta="lr",
        decay="weight_decay",
        corrects_momentum=True,
        defaults={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0},
    ),
    Correspondence(
        key="soap",
        optimizer="SOAP",
        implementation="arXiv:2409.11321, Algorithm 3",
        metric="Q diag((√V + ε)/√(1 − θ₂^t)) Qᵀ, Q = Q_L ⊗ Q_R",
        build=lambda settings: EigenbasisMoment(**{name: settings[name] for name in ("beta2", "eps", "frequency")}),
        alpha="1 - beta1",
        gain="1 - beta1",
        nesterov="0",
        # The authors' code decays the parameters after the step: w ← (1 − ℓλ)(w − …).
        eta="lr*(1 - lr*weight_decay)",
        decay="weight_decay/(1 - lr*weight_decay)",
        corrects_momentum=True,
        defaults={"lr": 3e-3, "beta1": 0.95, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01, "frequency": 10},
    ),
    Correspondence(
        key="lion",
        optimizer="Lion",
        implementation="arXiv:2302.06675, Algorithm 2",
        metric="diag(abs x)",
        build=lambda _: Sign(),
        # The stored momentum is θ₁/θ₂ times the paper's, so that the covector is the paper's.
        alpha="1 - beta2",
        gain="beta1*(1 - beta2)/beta2",
        nesterov="1 - beta1/beta2",
        eta="lr",
        decay="weight_decay",
        defaults={"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1},
    ),
    Correspondence(
        key="normuon",
        optimizer="NorMuon",
        implementation="arXiv:2510.05491, Algorithm 1",
        metric="diag(√v + ε) (XᵀX)^(1/2)/ρ",
        build=_normalized_polar_factor,
        alpha="1 - mu",
        gain="1 - mu",
        nesterov="0",
        eta=f"lr*{_RMS_SCALE}",
        decay=f"weight_decay/({_RMS_SCALE})",
        defaults=_MUON | {"beta2": 0.95, "eps": 1e-8},
    ),
    Correspondence(
        key="kl-soap",
        optimizer="KL-SOAP",
        implementation="arXiv:2509.03378, KL-SOAP",
        metric="Q diag((√V + ε)/√(1 − θ₂^t)) Qᵀ of KL factors",
        build=_kl(),
        alpha="1 - beta1",
        gain="1 - beta1",
        nesterov="0",
        eta="lr",
        decay="weight_decay",
        corrects_momentum=True,
        defaults={"lr": 3e-3, "beta1": 0.95, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01, "frequency": 10},
    ),
    Correspondence(
        key="kl-shampoo",
        optimizer="KL-Shampoo",
        implementation="arXiv:2509.03378, KL-Shampoo",
        metric="Q diag(√(λ_L ⊗ λ_R) + ε) Qᵀ of KL factors",
        build=_kl(moment="kronecker"),
        alpha="1 - beta1",
        gain="1 - beta1",
        nesterov="0",
        eta="lr",
        decay="weight_decay",
        corrects_momentum=True,
        defaults={"lr": 3e-3, "beta1": 0.95, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01, "frequency": 10},
    ),
)
CORRESPONDENCES: Registry[Correspondence] = Registry("optimizer")
for _place, _row in enumerate(_ROWS):
    CORRESPONDENCES.add(_row.key, _row, place=_place)


def correspondence(key: str) -> Correspondence:
    """The row called ``key``.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    require_choice("optimizer", key, CORRESPONDENCES)
    return CORRESPONDENCES[key]
