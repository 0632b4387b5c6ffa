"""Exact worst cases: PEPit's published examples, known values, and runs that must not exceed them."""

import importlib

import numpy as np
import pytest

from discretizations.update_rule import lite_step
from discretizations.worst_cases import LIBRARIES, RuleBlock, convex_rate_tightness, minimax_loss, worst_case

for library in LIBRARIES:
    pytest.importorskip(library, reason="needs an extra: pip install 'rishd[pep]'")


@pytest.mark.parametrize(
    ("example", "arguments", "published"),
    [
        ("gradient_descent", {"L": 3, "gamma": 1 / 3, "n": 4}, 0.166667),
        ("heavy_ball_momentum", {"mu": 0.1, "L": 1, "alpha": 0.5, "beta": (0.95 * 0.5) ** 0.5, "n": 2}, 0.753493),
        ("accelerated_gradient_convex", {"mu": 0, "L": 1, "n": 1}, 0.166667),
        ("optimized_gradient", {"L": 3, "n": 4}, 0.0767518),
        ("cyclic_coordinate_descent", {"L": [1.0, 2.0, 10.0], "n": 9}, 1.48928),
    ],
)
def test_published_examples_come_out_with_this_solver(example, arguments, published):
    module = importlib.import_module(f"PEPit.examples.unconstrained_convex_minimization.{example}")
    value, _ = getattr(module, f"wc_{example}")(**arguments, solver="CLARABEL", verbose=-1)
    assert value == pytest.approx(published, rel=5e-6)


@pytest.mark.parametrize(("kappa", "steps"), [(1.0, 1), (1.0, 6), (0.4, 3)])
def test_gradient_descent_has_its_known_worst_case(kappa, steps):
    for blocks in ([RuleBlock(kappa=kappa)], [RuleBlock(kappa=kappa)] * 2):
        assert worst_case(blocks, alpha=1.0, steps=steps) == pytest.approx(1 / (4 * steps * kappa + 2), rel=1e-5)
    damped = RuleBlock(kappa=0.5 * kappa, beta=1.0)  # at α = 1 the step is κ(1 + β)
    assert worst_case([damped], alpha=1.0, steps=steps) == pytest.approx(1 / (4 * steps * kappa + 2), rel=1e-5)


def test_no_run_exceeds_the_worst_case_and_huber_functions_come_near():
    """Huber functions of every width, from distance 1; with momentum the worst objective is a different one."""
    alpha, kappa, beta, steps = 0.4, 0.5, 1.5, 4
    worst = worst_case([RuleBlock(kappa=kappa, beta=beta)], alpha=alpha, steps=steps)
    width = np.geomspace(0.02, 1.0, 400)
    w, m = np.ones_like(width), np.zeros_like(width)
    for _ in range(steps):
        w, m = lite_step(w, m, np.clip(w, -width, width), eta=kappa, alpha=alpha, beta_sharp=beta, beta_flat=beta)
    gap = np.where(np.abs(w) <= width, 0.5 * w**2, width * np.abs(w) - 0.5 * width**2)
    assert 0.8 * worst < gap.max() <= worst * (1 + 1e-5)


def test_weights_and_lookahead_scale_as_they_must():
    plain = worst_case([RuleBlock(kappa=0.5)], alpha=0.5, steps=2)
    assert worst_case([RuleBlock(kappa=0.5, weight=4.0)], alpha=0.5, steps=2) == pytest.approx(plain / 4, rel=1e-5)
    # At β = 0 the last step is −κm_{N−1}, and the lookahead c = 1 takes it back.
    back = worst_case([RuleBlock(kappa=0.5, lookahead=1.0)], alpha=0.5, steps=3)
    assert back == pytest.approx(plain, rel=1e-5)
    assert worst_case([RuleBlock(kappa=0.5)], alpha=0.5, steps=2, loss_weight=1.0) < plain


def test_minimax_loss_is_that_of_the_optimized_gradient_method():
    assert minimax_loss(4)[-1] == pytest.approx(0.0767518 / 3, rel=1e-5)  # published by PEPit at L = 3


def test_bounding_each_block_alone_allows_more():
    blocks = [RuleBlock(kappa=0.5), RuleBlock(kappa=0.3, beta=1.0)]
    exact, loose = (worst_case(blocks, alpha=0.5, steps=2, smoothness=name) for name in ("joint", "blockwise"))
    assert exact < loose


def test_c8b_holds_at_its_exact_worst_case():
    assert 0.5 < convex_rate_tightness([0.2, 0.1], [0.0, 2.0], alpha=0.3, steps=3) <= 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": []}, "blocks is empty"),
        ({"blocks": [1.0]}, "must be a list of RuleBlock"),
        ({"blocks": RuleBlock(kappa=1.0)}, "must be a list of RuleBlock"),
        ({"steps": 0}, "steps = 0 must be a whole number of at least 1"),
        ({"steps": 1.5}, r"steps = 1\.5 must be a whole number"),
        ({"loss_weight": np.inf}, "loss_weight = inf"),
        ({"loss_weight": -1.0}, r"loss_weight = -1\.0"),
        ({"smoothness": "rough"}, "smoothness = 'rough'"),
        ({"alpha": 0.0}, "alpha"),
        ({"blocks": [RuleBlock(kappa=1.0, beta=-2.0)]}, "beta"),
    ],
)
def test_bad_input_is_refused(change, message):
    settings = {"blocks": [RuleBlock(kappa=1.0)], "alpha": 0.5, "steps": 1, **change}
    with pytest.raises(ValueError, match=message):
        worst_case(settings.pop("blocks"), **settings)


@pytest.mark.parametrize("name", ["kappa", "weight"])
def test_a_block_needs_positive_numbers(name):
    for bad in (0.0, np.inf, np.nan, "1"):
        with pytest.raises(ValueError, match=f"{name} = "):
            RuleBlock(**{"kappa": 1.0, name: bad})
    with pytest.raises(ValueError, match="lookahead = nan"):
        RuleBlock(kappa=1.0, lookahead=np.nan)


def test_other_numbers_are_refused():
    with pytest.raises(ValueError, match="kappa has 2 blocks and beta 1"):
        convex_rate_tightness([0.1, 0.2], [0.0], alpha=0.5, steps=1)
    with pytest.raises(ValueError, match="steps = -1"):
        minimax_loss(-1)
