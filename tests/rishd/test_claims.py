"""Claims: their verdicts on many instances, and that a wrong formula is refuted."""

import json
import pkgutil
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from riemannian_ode import RISHD
from rishd.claims import CLAIMS, Bound, Claim, Hypothesis, Identity, Measurement, Proof, constants, validate, verdict
from rishd.claims.evidence import Attained, Constant, as_dict
from rishd.claims.flows import decay_tightness
from rishd.claims.trial import Inequality, Range, draw, try_bounds
from rishd.report.claim_figures import claim_figure

# Whole trainings and river solves, and 100 steps of matrices, have fewer instances.
FEWER = {
    "C11c": 8,
    "C14": 2,
    "C18c": 1,
    "C21b": 1,
    "C21c": 1,
    "C23": 6,
    **dict.fromkeys(("C17h", "C17i", "C17j", "C17k", "C17l", "C17n", "C17o", "C17p"), 3),
}
NEEDS_PEP = pytest.mark.skipif(find_spec("PEPit") is None, reason="needs an extra: pip install 'rishd[pep]'")
KEYS = [pytest.param(key, marks=[NEEDS_PEP] if key == "C23" else []) for key in CLAIMS]


@pytest.mark.parametrize("key", KEYS)
def test_claim_gets_the_expected_verdict(key, results, instances):
    result = results[key]
    assert not result.error
    assert result.as_expected, [as_dict(part) for part in result.evidence]
    assert result.instances >= FEWER.get(key, 0.7 * instances)  # some miss a hypothesis on purpose


@pytest.mark.parametrize("key", KEYS)
def test_bounds_shrunk_below_their_tightness_are_refuted(key, results):
    """Each bound is attained up to its reported tightness: any smaller constant is refuted."""
    for bound in results[key].evidence:
        if isinstance(bound, Bound) and bound.values.max() > 0:
            assert verdict([bound]) == "holds"
            smaller = replace(bound, limit=0.99 * bound.values.max() * bound.limit)
            assert verdict([smaller]) == "refuted", bound.name


def test_bounds_are_attacked_by_an_adversary(results):
    for key in (
        "C3",
        "C4",
        "C6",
        "C8",
        "C8b",
        "C9",
        "C9b",
        "C11d",
        "C15",
        "C16a",
        "C16b",
        "C16c",
        "C16d",
        "C16e",
        "C16f",
        "C18",
        "C18b",
        "C19",
        "C19b",
        "C20",
    ):
        attacked = [part for part in results[key].evidence if isinstance(part, Bound) and part.adversary is not None]
        assert attacked, key
        for bound in attacked:
            assert bound.adversary.evaluations > 0
            assert bound.adversary.tightness >= bound.values.max() - 1e-12  # it starts from the tightest instances


@pytest.mark.parametrize("key", KEYS)
def test_every_claim_has_a_figure_and_plain_data(key, results):
    assert claim_figure(results[key]) is not None
    json.dumps(results[key].as_dict(), allow_nan=False)


def test_every_claim_has_its_statement_hypotheses_and_source():
    for claim in CLAIMS.values():
        assert {"", "Statement", "Hypotheses", "Proof", "Check", "Source"} <= claim.sections.keys(), claim.key
        assert all(claim.sections.values()), claim.key


def test_dropping_the_correction_breaks_the_energy_identity(results):
    (measured,) = [part for part in results["C2"].evidence if isinstance(part, Measurement)]
    assert np.median(measured.values) > 1e-4


def test_integral_bound_is_nearly_reached(results):
    assert 0.95 < max(part.worst for part in results["C3"].evidence if isinstance(part, Bound)) <= 1.0 + 1e-6


def test_instances_outside_the_hypotheses_are_not_applicable(results):
    for key in ("C3", "C4", "C9", "C11a", "C16b"):
        missed = [
            as_dict(part).get("not_applicable", 0) for part in results[key].evidence if not isinstance(part, Proof)
        ]
        assert max(missed) > 0, key


PROVED_BOUNDS = (
    *("C3", "C4", "C6", "C8", "C8b", "C9", "C9b", "C11d", "C15", "C16a", "C16b", "C16c", "C16d"),
    *("C18", "C18b", "C19", "C19b", "C20"),
)


def test_these_are_the_proved_bounds(results):
    found = [
        key
        for key, result in results.items()
        if CLAIMS[key].expected == "proved" and any(isinstance(part, Bound) for part in result.evidence)
    ]
    assert tuple(found) == PROVED_BOUNDS


@pytest.mark.parametrize("key", PROVED_BOUNDS)
def test_proved_bounds_have_an_instance_that_attains_them_or_say_that_none_is_known(key, results):
    text = CLAIMS[key].sections["Sharpness"]
    attained = [part for part in results[key].evidence if isinstance(part, Attained)]
    assert attained or "no instance is known" in text
    assert all(part.tolerance < 0.05 for part in attained)


@pytest.mark.parametrize("key", ["C3", "C4", "C8", "C8b", "C9", "C15", "C16a", "C16d", "C18"])
def test_proved_constants_are_those_of_the_code(key, results):
    assert [part for part in results[key].evidence if isinstance(part, Constant)]


def _scaled_argument(name, factor):
    return lambda right: lambda *x, **y: right(*x, **{**y, name: factor * y[name]})


def _scaled(factor):
    return lambda right: lambda *x, **y: factor * right(*x, **y)


def _scaled_part(name, factor):
    return lambda right: lambda *x, **y: right(*x, **y)._replace(**{name: factor * getattr(right(*x, **y), name)})


@pytest.mark.parametrize("factor", [0.98, 1.02])
@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    [
        ("energy_bound", "total_energy", _scaled),
        ("energy_bound", "dissipation", lambda factor: _scaled_part("total", factor)),
        ("energy_bound", "dissipation", lambda factor: _scaled_part("damping", factor)),
        ("split_bound", "total_energy", _scaled),
        ("split_bound", "dissipation", lambda factor: _scaled_part("total", factor)),
        ("split_bound", "dissipation", lambda factor: _scaled_part("flat", factor)),
        *(
            ("convex_flow_bound", "convex_value_bound", lambda factor, name=name: _scaled_argument(name, factor))
            for name in ("distance", "gap", "alpha", "eta")
        ),
        ("convex_step_offset", "convex_offset", _scaled),
        ("descent_constants", "descent_form", _scaled),
        ("descent_constants", "descent_limit", _scaled),
        ("descent_constants", "lookahead_certificate", lambda factor: _scaled_part("limit", factor)),
        ("descent_constants", "noise_growth", _scaled),
        ("exponential_constants", "polyak_lojasiewicz_rate", _scaled),
        ("strongly_convex_constants", "strongly_convex_rate", _scaled),
    ],
)
def test_shipped_constants_two_percent_off_are_refuted_on_either_side(check, name, wrong, factor, monkeypatch):
    def evidence():
        rng, function = np.random.default_rng(3), getattr(constants, check)
        if check != "strongly_convex_constants":
            return function(rng)
        return [part for gamma in ("one", "corrected") for part in function(rng, gamma)]

    assert verdict(evidence()) == "holds"
    monkeypatch.setattr(constants, name, wrong(factor)(getattr(constants, name)))
    assert verdict(evidence()) == "refuted"


def _run(key, instances=20):
    return CLAIMS[key].run(seed=0, instances=instances)


@pytest.mark.parametrize(
    ("key", "name", "wrong"),
    [
        ("C5", "modes.mode_roots", lambda right: lambda k, a, b: right(k, a, 1.001 * b)),
        ("C6", "modes.stable_limit", lambda right: lambda *x: 1.01 * right(*x)),
        ("C8", "convex_rates.convex_value_bound", lambda right: lambda *x, **y: 0.8 * right(*x, **y)),
        ("C8b", "convex_rates.convex_offset", lambda right: lambda *x: 0.0 * right(*x) - 0.6),
        ("C9", "descent.descent_limit", lambda right: lambda *x: 1.01 * right(*x)),
        ("C9", "descent.descent_limit", lambda right: lambda *x: 0.99 * right(*x)),
        (
            "C9",
            "descent.lookahead_certificate",
            lambda right: lambda *x: right(*x)._replace(limit=1.01 * right(*x).limit),
        ),
        ("C9", "descent.noise_growth", lambda right: lambda *x, **y: 0.7 * right(*x, **y)),
        ("C9b", "sharpness.cycle_curvature", lambda right: lambda *x: right(*x)._replace(kappa=0.99 * right(*x).kappa)),
        ("C9b", "sharpness.circle_gradient", lambda right: lambda *x: 1.001 * right(*x)),
        ("C10", "stationary.stationary_covariance", lambda right: lambda *x: 1.001 * right(*x)),
        ("C10", "stationary.loss_floor", lambda right: lambda *x, **y: 1.1 * right(*x, **y)),
        ("C20", "flow_noise.flow_covariance", lambda right: lambda *x: 1.001 * right(*x)),
        ("C20", "flow_noise.flow_loss_floor", lambda right: lambda *x, **y: 1.02 * right(*x, **y)),
        ("C20", "flow_noise.flow_loss_floor", lambda right: lambda *x, **y: 0.98 * right(*x, **y)),
        ("C20", "flow_noise.loss_floor", lambda right: lambda *x, **y: 0.98 * right(*x, **y)),
        ("C20", "flow_noise.GradientNoise", lambda right: lambda factor, seed: right(factor=1.5 * factor, seed=seed)),
        (
            "C20",
            "flow_noise.floor_ratio_bounds",
            lambda right: lambda *x: right(*x)._replace(upper=0.98 * right(*x).upper),
        ),
        ("C11a", "straight_river.StraightValley.gradient", lambda right: lambda self, w: right(self, w) + 1e-6),
        ("C11b", "river_offset._slopes", lambda right: lambda x: tuple(1.001 * y for y in right(x))),
        ("C11c", "river_flow._mode_matrix", lambda right: lambda *x: 1.1 * right(*x)),
        ("C11c", "river_flow._Settings.speed", lambda right: property(lambda self: 1.01 * right.fget(self))),
        ("C11d", "river_speed._Floors.error", lambda right: lambda *x, **y: 0.8 * right(*x, **y)),
        ("C11d", "river_speed.asymptotic_speedup", lambda right: lambda *x: 1.5 * right(*x)),
        (
            "C13b",
            "correction_size.correction_runs",
            lambda right: lambda *x, **y: right(*x, **y)._replace(share=1e-6 + right(*x, **y).share),
        ),
        ("C14", "update_isotropy._at_worst", lambda right: lambda value, limit: right(limit, value)),
        ("C17b", "correspondences.rule_path", lambda right: lambda *x: (1.0 + 1e-11) * right(*x)),
        ("C17l", "correspondences.rule_path", lambda right: lambda *x: (1.0 + 1e-11) * right(*x)),
        ("C15", "exponential.polyak_lojasiewicz_rate", lambda right: lambda *x, **y: 2.5 * right(*x, **y)),
        ("C16a", "inertial.strongly_convex_rate", lambda right: lambda *x, **y: 1.3 * right(*x, **y)),
        ("C16d", "inertial.strongly_convex_rate", lambda right: lambda *x, **y: 1.5 * right(*x, **y)),
        ("C21", "edge.complementary", lambda right: lambda *x: 1.01 * right(*x)),
        ("C21", "edge.ConstantRule.edge_metric", lambda right: property(lambda self: 1.001 * right.fget(self))),
        ("C21b", "edge_problems.CentralFlow._third", lambda right: lambda *x: 2.5 * right(*x)),
        ("C22", "modified.modified_field", lambda right: lambda *x, h: right(*x, h=1.02 * h)),
        ("C22b", "modified.PenalisedObjective", lambda right: lambda f, rule, h: right(f, rule, 1.1 * h)),
        ("C16g", "instances.RippledQuadratic.hvp", lambda right: lambda *x: 1.001 * right(*x)),
        ("C18", "norm_energy.total_energy", lambda right: lambda *x: 1.001 * right(*x)),
        ("C18", "norm_energy.dissipation", _scaled_part("total", 1.001)),
        ("C18", "norm_energy._spent", lambda right: lambda *x: (right(*x)[0], 0.98 * right(*x)[1])),
        ("C18", "norm_energy._dual_point", _scaled(1.001)),
        ("C18b", "norms.MatrixRipples.smoothness", lambda right: property(lambda self: 0.98 * right.fget(self))),
        ("C18b", "norm_descent._sines", _scaled(0.98)),
        ("C19", "moment_energy._RATE2", lambda right: 0.98 * right),
        ("C19", "moment_energy.dissipation", _scaled_part("memory", 1.01)),
        ("C19b", "basis_refresh._stretch", _scaled(0.99)),
        ("C19b", "basis_refresh._stretch_of_quarter_turn", _scaled(0.99)),
    ],
)
def test_wrong_formula_is_refuted(key, name, wrong, monkeypatch):
    where, _, attribute = f"rishd.claims.{name}".rpartition(".")
    owner = pkgutil.resolve_name(where)
    monkeypatch.setattr(owner, attribute, wrong(getattr(owner, attribute)))
    result = _run(key, instances=40)
    assert result.verdict == "refuted", result.error


@NEEDS_PEP
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("convex_rate_tightness", _scaled(1.8)),  # C8b's bound is not attained
        ("worst_case", lambda right: lambda *x, alpha, **y: right(*x, alpha=0.99 * alpha, **y)),
        ("worst_case", lambda right: lambda blocks, **y: right(blocks[:1], **y)),
    ],
)
def test_wrong_worst_case_is_refuted(name, wrong, monkeypatch):
    from rishd.claims import worst_cases

    monkeypatch.setattr(worst_cases, name, wrong(getattr(worst_cases, name)))
    assert _run("C23").verdict == "refuted"


def test_worst_cases_without_their_extra_are_not_applicable_and_say_what_to_install(monkeypatch):
    from rishd.claims import worst_cases

    monkeypatch.setattr(worst_cases, "_INSTALLED", False)
    result = _run("C23")
    assert result.verdict == "not applicable"
    (part,) = result.evidence
    assert claim_figure(result) is not None
    assert "pip install 'rishd[pep]'" in part.hypotheses[0].name


def test_wrong_damping_factor_is_refuted(monkeypatch):
    from riemannian_ode.integrators import splitting

    monkeypatch.setattr(splitting, "_damped", lambda system, t, m, h: (1.0 - system.at("alpha", t) * h) * m)
    assert _run("C16h").verdict == "refuted"


def test_dynamics_without_correction_are_refuted(monkeypatch):
    monkeypatch.setattr(RISHD, "riemannian_correction", lambda *_: None)
    assert [_run(key).verdict for key in ("C1", "C2")] == ["refuted", "refuted"]


@pytest.mark.parametrize("key", ["C3", "C4", "C7"])
def test_wrong_damping_is_refuted(key, monkeypatch):
    """Momentum that decays too slowly: the bound is exceeded, the shadow no longer follows the gradient."""
    from riemannian_ode import dynamics

    right = dynamics.momentum_rate
    monkeypatch.setattr(
        dynamics, "momentum_rate", lambda m, g, *, alpha, **rest: right(m, g, alpha=0.8 * alpha, **rest)
    )
    assert _run(key).verdict == "refuted"


def test_one_bit_off_is_refuted(monkeypatch):
    from rishd.claims import equivalence

    right = equivalence.lite_step

    def off(*args, **settings):
        w, m = right(*args, **settings)
        return w * (1 + 2.3e-16), m

    monkeypatch.setattr(equivalence, "lite_step", off)
    assert _run("C12", instances=3).verdict == "refuted"


@pytest.mark.parametrize("key", ["C2", "C7", "C12"])
def test_interrupt_inside_a_claim_is_no_verdict(key, monkeypatch):
    from rishd.claims.instances import RippledQuadratic

    right, calls = RippledQuadratic.gradient, []

    def interrupted(self, w):
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return right(self, w)

    monkeypatch.setattr(RippledQuadratic, "gradient", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(key, instances=4)


def test_error_is_reported_with_its_seed_and_the_others_go_on():
    def broken(rng, instances):
        raise ZeroDivisionError("nothing to divide")

    result = Claim("C99", "broken", broken).run(seed=5, instances=1)
    assert result.verdict == "error"
    assert result.error == "ZeroDivisionError: nothing to divide (seed 5)"


def test_verdicts():
    good = Identity("x", np.array([0.0]), 1e-9, "rounding")
    bad = Identity("x", np.array([0.0, np.nan]), 1e-9, "rounding")
    assert verdict([good]) == "holds"
    assert verdict([good, Proof("y", [0])]) == "proved"
    assert verdict([good, Proof("y", [1])]) == "refuted"
    assert verdict([bad, Proof("y", [0])]) == "refuted"
    assert verdict([Bound("z", np.array([1.0 + 1e-6]), np.ones(1))]) == "refuted"
    assert verdict([Bound("z", np.array([np.nan]), np.ones(1))]) == "refuted"
    assert verdict([Measurement("z", np.array([3.0]))]) == "measured"
    assert verdict([]) == "not applicable"


def test_instances_that_miss_a_hypothesis_neither_pass_nor_fail():
    missed = Hypothesis("convex", np.array([True, False]))
    bound = Bound("z", np.array([0.5, 7.0]), np.ones(2), hypotheses=(missed,))
    assert verdict([bound]) == "holds"
    assert as_dict(bound)["not_applicable"] == 1
    none = Bound("z", np.array([0.5]), np.ones(1), hypotheses=(Hypothesis("convex", np.array([False])),))
    assert verdict([Proof("y", [0]), none]) == "not applicable"


def test_the_adversary_finds_a_violation_that_chance_misses():
    """x⁸ reaches 1 only in a corner of the box; random points stay below."""

    def trial(parameters):
        value = 1.1 * (parameters["x"] ** 8).prod(-1)
        return {"x": Inequality(value, np.ones_like(value), {"x > 0": parameters["x"].min(-1) > 0})}

    (bound,) = try_bounds(trial, {"x": Range(0.0, 1.0, 2)}, np.random.default_rng(0), 500)
    assert bound.values.max() < 1.0 < bound.adversary.tightness
    assert verdict([bound]) == "refuted"


def test_ranges_are_kept():
    box = {"a": Range(2.0, 3.0), "b": Range(0.1, 10.0, 3, log=True)}
    drawn = draw(box, np.random.default_rng(0), 1000)
    assert drawn["a"].shape == (1000,)
    assert drawn["b"].shape == (1000, 3)
    assert 2.0 <= drawn["a"].min() < drawn["a"].max() <= 3.0
    assert 0.1 <= drawn["b"].min() < 1.0 < drawn["b"].max() <= 10.0


def test_bad_requests_are_refused_with_what_would_do():
    with pytest.raises(ValueError, match=r"claim = 'C99' is unknown\. Choose one of: C1, C10, C11a, C11b"):
        validate(["C99"])
    with pytest.raises(ValueError, match="instances = 0"):
        validate(instances=0)
    with pytest.raises(ValueError, match="jobs = 0"):
        validate(jobs=0)


def test_a_killed_process_is_an_error_of_its_claim_and_the_others_go_on(monkeypatch):
    from rishd import claims

    def killed(key, seed, instances):
        import os
        import signal

        if key == "C6":
            os.kill(os.getpid(), signal.SIGKILL)
        return claims.CLAIMS[key].run(seed=seed, instances=instances)

    monkeypatch.setattr(claims, "_run", killed)
    results = {result.key: result for result in validate(["C6", "C5", "C16h"], instances=5, jobs=2)}
    assert results["C6"].verdict == "error"
    assert results["C6"].error == "its process was killed or crashed (seed 0)"
    assert results["C5"].as_expected
    assert results["C16h"].as_expected


def test_claims_run_in_parallel_to_the_same_numbers():
    keys = ["C6", "C9b", "C16h"]
    alone, together = (
        {result.key: result.as_dict() for result in validate(keys, instances=10, jobs=jobs)} for jobs in (1, 2)
    )
    for rows in (alone, together):
        for row in rows.values():
            del row["seconds"]
    assert alone == together


def test_decay_is_tight_to_the_last_time_that_counts():
    """A decay at exactly its rate has tightness 1, and a value beyond the bound is detected as late as ρt = 26."""
    times = np.linspace(0.0, 30.0, 31)
    exact = np.exp(-np.outer(times, [1.0, 0.5]))
    np.testing.assert_allclose(decay_tightness(times, exact, np.array([1.0, 0.5])), 1.0, rtol=1e-12)
    late = exact.copy()
    late[26, 0] *= 2.0
    assert decay_tightness(times, late, np.array([1.0, 0.5]))[0] > 1.02
