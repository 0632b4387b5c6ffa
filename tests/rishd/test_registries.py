import pytest

from rishd.claims import CLAIMS, Measurement, register_claim, validate
from rishd.study import STUDIES, StudyResult, run_study, summary


def test_a_decorated_claim_is_validated_in_the_order_of_the_numbers(request):
    request.addfinalizer(lambda: CLAIMS.pop("C11z", None))

    @register_claim("C11z", "of a test", expected="measured", seconds=0.1)
    def gather(rng, instances):
        """Nothing."""
        return [Measurement("a number", rng.normal(size=instances))]

    keys = list(CLAIMS)
    assert keys[keys.index("C11z") - 1 : keys.index("C11z") + 2] == ["C11d", "C11z", "C12"]
    (result,) = validate(["C11z"], instances=3)
    assert (result.title, result.verdict, result.instances) == ("of a test", "measured", 3)
    with pytest.raises(ValueError, match=r"claim = 'C11z' is registered twice"):
        register_claim("C11z", "again")(gather)


@pytest.mark.parametrize("key", ["8", "C8B", "C", "C8bb", "c8"])
def test_a_claim_needs_a_number(key):
    with pytest.raises(ValueError, match=rf"claim = '{key}' must be C and a number"):
        register_claim(key, "of a test")


def test_a_decorated_study_runs_by_name(request):
    request.addfinalizer(lambda: STUDIES.pop("of_a_test", None))

    @STUDIES.register()
    def of_a_test(quick, seed):
        """What a test asks.

        And more.
        """
        return StudyResult({"seed": seed}, [], {}, "yes", "quick" if quick else "slow")

    assert list(STUDIES)[-1] == "of_a_test" and summary("of_a_test") == "What a test asks."
    assert run_study("of_a_test", quick=True, seed=3) == StudyResult({"seed": 3}, [], {}, "yes", "quick")
    with pytest.raises(ValueError, match=r"study = 'of_a_test' is registered twice"):
        STUDIES.register()(of_a_test)


def test_studies_come_in_the_declared_order():
    assert list(STUDIES)[:3] == ["schemes", "correction", "mask"]
