r"""The correspondence table: each known optimizer as (metric, α, β, η, gain, scheme), run by a single update rule.

Every row is the update rule of :mod:`discretizations.update_rule` (semi-implicit Euler of the flow at h = 1, R = 0)
with a preconditioner of :mod:`discretizations.preconditioners`. Its coefficients are formulas in the optimizer's own
hyperparameters. The formulas are SymPy expressions; the same expressions are printed, evaluated and proved
(:mod:`discretizations.proofs.correspondences`).

Source: arXiv:2602.22681; derived in docs/guides/correspondence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import sympy as sp
from sympy.printing.str import StrPrinter
from torch import Tensor

from discretizations.preconditioners.identity import Identity
from discretizations.update_rule import RuleState, UpdateRule
from riemannian_ode.checks import require_choice
from riemannian_ode.preconditioner import Preconditioner

Settings = Mapping[str, Any]

# Hyperparameters by their optimizers' names, and their symbols in the table.
SYMBOLS: Mapping[str, str] = MappingProxyType(
    {
        "lr": "lr",
        "mu": "μ",
        "beta1": "θ₁",
        "beta2": "θ₂",
        "weight_decay": "λ",
        "t": "t",
        "rows": "n₁",
        "columns": "n₂",
    }
)
_NAMESPACE = {name: sp.Symbol(name, positive=True) for name in SYMBOLS}


@dataclass(frozen=True, kw_only=True)
class Correspondence:
    r"""One row: an optimizer as the update rule with a metric and coefficients.

    Args:
        key: Name in :data:`discretizations.known_optimizers.CORRESPONDENCES`.
        optimizer: Display name.
        implementation: Reference for comparison: a class of torch, or a paper's algorithm.
        metric: F per block, as text.
        build: Settings ↦ preconditioner.
        alpha: α, a SymPy expression in the names of :data:`SYMBOLS`, like the coefficients below.
        gain: c, the factor of g in the momentum.
        nesterov: ν, gradient added to the stored momentum before the metric acts.
        eta: η for the stored momentum, without bias correction.
        decay: λ' of the decoupled decay −ηλ'w, also without bias correction.
        corrects_momentum: Whether momentum is divided by its mass 1 − θ₁ᵗ; the table then has η/(1 − θ₁ᵗ) and λ'(1 −
            θ₁ᵗ).
        defaults: Settings with the implementation's default values.
        momentum: What is stored: a covector (sums of gradients) or a vector (sums of F⁻¹g).
        correction: Riemannian correction R: zero because F is constant, or dropped.
        scheme: Discretisation of the flow, at h = 1.
    """

    key: str
    optimizer: str
    implementation: str
    metric: str
    build: Callable[[Settings], Preconditioner]
    alpha: str
    gain: str
    nesterov: str
    eta: str
    decay: str = "0"
    corrects_momentum: bool = False
    defaults: Settings
    momentum: Literal["covector", "vector"] = "covector"
    correction: Literal["zero", "dropped"] = "dropped"
    scheme: Literal["semi-implicit-euler"] = "semi-implicit-euler"

    @property
    def beta(self) -> sp.Expr:
        """β in the theory's units, i.e. relative to a summed momentum: ν/c (docs/theory, "Units of β")."""
        return sp.simplify(expression(self.nesterov) / expression(self.gain))

    @property
    def position_formulas(self) -> dict[str, sp.Expr]:
        """Formulas of η and λ' for the stored momentum, with bias correction."""
        mass = expression("1 - beta1**t") if self.corrects_momentum else 1
        return {"η": expression(self.eta) / mass, "λ'": expression(self.decay) * mass}

    def as_text(self) -> dict[str, str]:
        """The row as text, by column."""
        formulas = {"α": expression(self.alpha), "c": expression(self.gain), **self.position_formulas}
        printed = {column: formula_text(formula) for column, formula in formulas.items()}
        return {
            "optimizer": self.optimizer,
            "implementation": self.implementation,
            "metric F": self.metric,
            "α": printed["α"],
            "β": formula_text(self.beta),
            "c": printed["c"],
            "η": printed["η"],
            "λ'": printed["λ'"],
            "keeps": self.momentum,
            "R": self.correction,
            "scheme": self.scheme,
        }

    def with_settings(self, **settings: Any) -> KnownOptimizer:
        """The optimizer of this row with given hyperparameters.

        Args:
            settings: Hyperparameters by their name in ``defaults``, which supply missing ones.

        Raises:
            ValueError: for an unknown or impossible hyperparameter.
        """
        for name, value in settings.items():
            require_choice(f"hyperparameter of {self.key}", name, self.defaults)
            _check(name, value)
        chosen = MappingProxyType({**self.defaults, **settings})
        if "mu" in chosen and self.nesterov != "0" and chosen["mu"] == 0:
            raise ValueError("mu = 0 has no Nesterov form (β = 1/μ); take the row without Nesterov, or mu > 0.")
        return KnownOptimizer(self, chosen)


@dataclass(frozen=True)
class KnownOptimizer:
    """A row with given hyperparameters: an optimizer for one tensor, as pure functions of its state.

    Args:
        row: The correspondence.
        settings: All of its hyperparameters.
    """

    row: Correspondence
    settings: Settings
    preconditioner: Preconditioner = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "preconditioner", self.row.build(self.settings))

    def update_rule(self, shape: tuple[int, ...]) -> tuple[UpdateRule, float]:
        """The update rule for parameters of a given shape, and its η."""
        numbers = self.coefficients(shape)
        eta = numbers.pop("eta")
        if self.row.momentum == "vector":
            preconditioner: Preconditioner = Identity()
        else:
            preconditioner = self.preconditioner
        return UpdateRule(preconditioner=preconditioner, **numbers, corrects_momentum=self.row.corrects_momentum), eta

    def start(self, w: Tensor) -> RuleState:
        """State before the first gradient.

        Args:
            w: Parameters; matrices for Muon, Shampoo and SOAP.

        Raises:
            ValueError: for a tensor that the preconditioner does not accept.
        """
        self.preconditioner.check_shape(tuple(w.shape))
        rule, _ = self.update_rule(tuple(w.shape))
        state = rule.start(w)
        return state._replace(memory=self.preconditioner.initial(w)) if self.row.momentum == "vector" else state

    def step(self, state: RuleState, g: Tensor) -> RuleState:
        """One step of the optimizer.

        Args:
            state: State before.
            g: Gradient at ``state.w``.
        """
        rule, eta = self.update_rule(tuple(state.w.shape))
        if self.row.momentum == "covector":
            return rule.step(state, g, eta=eta)
        # The momentum sums vectors: the metric raises each gradient before the momentum takes it in.
        memory = self.preconditioner.observe(state.memory, g, g)
        after = rule.step(state._replace(memory={}), self.preconditioner.raise_index(memory, g), eta=eta)
        return after._replace(memory=memory)

    def coefficients(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """α, c, ν, η and λ' as numbers, without bias correction of the momentum.

        Args:
            shape: Shape of the parameter.
        """
        values = {name: self.settings[name] for name in SYMBOLS if name in self.settings}
        if len(shape) == 2:
            values["rows"], values["columns"] = shape
        return {
            name: _evaluate(getattr(self.row, name), values) for name in ("alpha", "gain", "nesterov", "eta", "decay")
        }


def expression(text: str) -> sp.Expr:
    """A row's formula as a SymPy expression in positive symbols.

    Args:
        text: Formula in the names of :data:`SYMBOLS`.
    """
    return sp.sympify(text, locals=_NAMESPACE)


def formula_text(formula: sp.Expr) -> str:
    """A row's formula as the table prints it.

    Args:
        formula: Result of :func:`expression`.
    """
    text: str = _Printer({"order": "none"}).doprint(formula)
    return text.replace(" - ", " − ").replace("**", "^").replace("*", "·")


class _Printer(StrPrinter):  # type: ignore[misc]  # SymPy has no types
    """SymPy's plain printer with the table's letters and root signs."""

    def _print_Symbol(self, symbol: sp.Symbol) -> str:  # noqa: N802  # SymPy finds methods by name
        return SYMBOLS[symbol.name]

    def _print_Max(self, maximum: sp.Max) -> str:  # noqa: N802  # SymPy finds methods by name
        return f"max({', '.join(self._print(x) for x in sorted(maximum.args, key=str))})"

    def _print_Pow(self, power: sp.Pow, rational: bool = False) -> str:  # noqa: N802  # SymPy finds methods by name
        base, exponent = power.as_base_exp()
        if exponent == sp.Rational(1, 2):
            return f"√{self._print(base)}"
        if exponent == sp.Rational(-1, 2):
            return f"1/√{self._print(base)}"
        text: str = super()._print_Pow(power, rational=rational)
        return text


@cache
def _compiled(text: str) -> tuple[tuple[str, ...], Callable[..., float]]:
    parsed = expression(text)
    names = tuple(sorted(symbol.name for symbol in parsed.free_symbols))
    return names, sp.lambdify([_NAMESPACE[name] for name in names], parsed, "math")


def _evaluate(text: str, values: Settings) -> float:
    names, function = _compiled(text)
    return float(function(*(values[name] for name in names)))


def _check(name: str, value: Any) -> None:
    if name in ("coefficients", "dtype"):
        return
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name} = {value!r} must be a number.")
    if name in ("mu", "beta1", "beta2"):
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value!r} must lie in [0, 1): it is the weight of the past.")
    elif name in ("frequency", "steps"):
        if value < 1 or value != int(value):
            raise ValueError(f"{name} = {value!r} must be a whole number of at least 1.")
    elif not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} = {value!r} must be finite and not negative.")
