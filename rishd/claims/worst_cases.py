"""Claim C23: exact worst cases of the update rule on convex objectives, by semidefinite programming."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from discretizations.certificate import lookahead_certificate
from discretizations.worst_cases import LIBRARIES, RuleBlock, convex_rate_tightness, minimax_loss, worst_case
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Bound, Curve, Evidence, Hypothesis, Identity, Panel

_INSTALLED = all(find_spec(name) is not None for name in LIBRARIES)
_PER_PROGRAM, _FEWEST = 24, 6  # fewer instances than elsewhere, since a trial solves programs of up to a second
_SOLVER = "the solver's accuracy"


@register_claim("C23", "worst cases on convex f", expected="holds" if _INSTALLED else "not applicable", seconds=40)
def worst_cases(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Exact worst cases of the update rule over all convex objectives, and the χ and β₂ that they imply.

    Statement: let :math:`W(\kappa_s, \beta_1; \kappa_f, \beta_2; r)` be the largest :math:`f(w_N) - f_*` over all
    starts with

    .. math:: L_s\lVert P(w_0 - w_*)\rVert^2 + r^{-2}L_f\lVert Q(w_0 - w_*)\rVert^2 \le 1,

    and :math:`W_1` the same for one block with :math:`L\lVert w_0 - w_*\rVert^2 \le 1`. Then

    .. math:: W \ge \max(W_1(\kappa_s, \beta_1),\, r^2W_1(\kappa_f, \beta_2)).

    For :math:`r \le 1` the choice :math:`\chi = L_s/L_f`, :math:`\beta_2 = \beta_1` has
    :math:`W = W_1(\kappa_s, \beta_1)`, the minimum over all χ and β₂. The bound of C8b is at least its exact worst
    case.

    Hypotheses: :math:`f` convex with a minimiser and :math:`\nabla^2f \preceq L_sP + L_fQ`; :math:`F = I`, :math:`P`
    constant; :math:`0 < \alpha \le 1`, :math:`m_{-1} = 0`; :math:`\kappa_s = \eta L_s`,
    :math:`\kappa_f = \eta\chi L_f`. The check needs the extra ``pip install 'rishd[pep]'``; without it the claim is not
    applicable.

    Proof: docs/theory, claim C23.

    Check: semidefinite programs for random coefficients and :math:`N \le 3`, by PEPit; their optimum is the largest
    value over all objectives and starts. Gradient descent is compared with its known worst case
    :math:`1/(4N\kappa + 2)`, :math:`\kappa \le 1`.

    Sharpness: worst cases are attained; C8b's bound is not (see the study ``worst_cases``).

    Source: derived in docs/theory; the method is that of Taylor, Hendrickx and Glineur, arXiv:1502.05666; the value for
    gradient descent is from Drori and Teboulle, arXiv:1206.3209.
    """
    n = max(instances // _PER_PROGRAM, _FEWEST)
    if not _INSTALLED:
        missing = Hypothesis("the pep extra is installed: pip install 'rishd[pep]'", np.zeros(n, dtype=bool))
        return [
            Bound("exact worst case over C8b's bound", np.zeros(n), np.ones(n), hypotheses=(missing,)),
            _known_panel(),
        ]
    trials = np.array([_trial(rng) for _ in range(n)])
    certified, alone, both, scaled, sharp, descent, known = trials.T
    return [
        Bound("exact worst case over C8b's bound", certified, np.ones(n), slack=1e-5),
        Bound("the worse block alone over both blocks", alone, both, slack=1e-5),
        Identity("χ = L_s/L_f, β₂ = β₁ over one block, minus 1", np.abs(scaled / sharp - 1.0), 1e-5, _SOLVER),
        Identity("gradient descent over 1/(4Nκ + 2), minus 1", np.abs(descent / known - 1.0), 1e-5, _SOLVER),
        _panel(),
        _known_panel(),
    ]


def _trial(rng: np.random.Generator) -> tuple[float, ...]:
    """Worst cases at random coefficients."""
    alpha, steps = float(rng.uniform(0.1, 0.9)), int(rng.integers(1, 4))
    beta = rng.uniform(-0.3, 3.0, 2)
    kappa = rng.uniform(0.1, 0.9, 2) * lookahead_certificate(alpha, beta).limit
    reach, smaller = float(np.exp(rng.uniform(-1.0, 1.0))), float(rng.uniform(0.3, 1.0))

    def worst(*blocks: tuple[float, float, float]) -> float:
        rule = [RuleBlock(kappa=k, beta=b, weight=r**-2) for k, b, r in blocks]
        return worst_case(rule, alpha=alpha, steps=steps)

    sharp, flat = ((float(k), float(b)) for k, b in zip(kappa, beta, strict=True))
    alone = worst((*sharp, 1.0))
    step = float(rng.uniform(0.1, 1.0))
    return (
        convex_rate_tightness(kappa.tolist(), beta.tolist(), alpha=alpha, steps=steps),
        max(alone, worst((*flat, reach))),
        worst((*sharp, 1.0), (*flat, reach)),
        worst((*sharp, 1.0), (*sharp, smaller)),
        alone,
        worst_case([RuleBlock(kappa=step)], alpha=1.0, steps=steps),
        1.0 / (4.0 * steps * step + 2.0),
    )


def _panel() -> Panel:
    alpha, steps = 0.3, np.arange(1, 5)
    curves = []
    for beta in (0.0, 1.0 / (1.0 - alpha)):
        kappa = 0.5 * float(lookahead_certificate(alpha, beta).limit)
        values = [convex_rate_tightness([kappa], [beta], alpha=alpha, steps=int(k)) for k in steps]
        curves.append(Curve(f"α = {alpha:g}, β = {beta:.3g}", steps.astype(float), np.array(values)))
    return Panel("Exact worst case over C8b's bound", "step K", "worst case / bound", tuple(curves))


def _known_panel() -> Panel:
    """Plot of worst cases that are known without a program."""
    steps = np.arange(1.0, 11.0)
    return Panel(
        "Worst cases in closed form",
        "step N",
        "worst f(w_N) − f* over L‖w₀ − w*‖²",
        (
            Curve("gradient descent, κ = 1", steps, 1.0 / (4.0 * steps + 2.0)),
            Curve("lower bound of all methods", steps, minimax_loss(len(steps)), "reference"),
        ),
        log="xy",
    )
