"""Claims: their verdicts on many instances, and that a wrong formula is refuted."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import rishd.claims.modes
from riemannian_ode import RISHD
from rishd.claims import CLAIMS, Bound, Claim, Identity, Measurement, Proof, validate, verdict
from rishd.cli import app

INSTANCES = 200


@pytest.fixture(scope="module")
def results():
    run = CliRunner().invoke(app, ["validate", "--format", "json", "--instances", str(INSTANCES)])
    assert run.exit_code == 0, run.output
    return {row["claim"]: row for row in json.loads(run.stdout)}


@pytest.mark.parametrize("key", CLAIMS)
def test_claim_stands_on_many_instances(key, results):
    row = results[key]
    assert row["verdict"] in ("proved", "holds"), row
    assert row["instances"] >= INSTANCES
    assert all(part.get("holds", True) for part in row["evidence"])


def test_every_claim_has_its_statement_hypotheses_and_source():
    for claim in CLAIMS.values():
        for heading in ("Statement:", "Hypotheses:", "Proof:", "Check:", "Source:"):
            assert heading in claim.statement, (claim.key, heading)


def test_dropping_the_correction_breaks_the_energy_identity(results):
    (measured,) = [part for part in results["C2"]["evidence"] if part["kind"] == "measurement"]
    assert measured["median"] > 1e-4


def test_integral_bound_is_nearly_reached(results):
    (bound,) = [part for part in results["C3"]["evidence"] if part["kind"] == "bound"]
    assert 0.9 < bound["worst"] <= 1.0


def _run(key, instances=20):
    return CLAIMS[key].run(seed=0, instances=instances)


def test_wrong_stability_limit_is_refuted(monkeypatch):
    right = rishd.claims.modes.stable_limit
    monkeypatch.setattr(rishd.claims.modes, "stable_limit", lambda alpha, beta: 1.01 * right(alpha, beta))
    assert _run("C6").verdict == "refuted"


def test_wrong_rate_is_refuted(monkeypatch):
    right = rishd.claims.modes.mode_roots
    monkeypatch.setattr(rishd.claims.modes, "mode_roots", lambda k, a, b: right(k, a, 1.001 * b))
    assert _run("C5").verdict == "refuted"


def test_dynamics_without_correction_are_refuted(monkeypatch):
    monkeypatch.setattr(RISHD, "riemannian_correction", lambda *_: None)
    assert [_run(key).verdict for key in ("C1", "C2")] == ["refuted", "refuted"]


@pytest.mark.parametrize("key", ["C3", "C7"])
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
    assert verdict([Bound("z", np.array([1.0 + 1e-6]))]) == "refuted"
    assert verdict([Measurement("z", np.array([3.0]))]) == "measured"
    assert verdict([]) == "not applicable"


def test_unknown_claims_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"claim = 'C4' is unknown\. Choose one of: C1, C12, C2"):
        validate(["C4"])
    with pytest.raises(ValueError, match="instances = 0"):
        validate(instances=0)
