import pytest

from riemannian_ode.checks import require_choice


@pytest.mark.parametrize(
    ("choices", "listed"),
    [(("wsd", "cosine"), "wsd, cosine"), ({"wsd": 1, "cosine": 2}, "cosine, wsd"), ({"wsd", "cosine"}, "cosine, wsd")],
)
@pytest.mark.parametrize(
    ("value", "shown", "hint"),
    [("linear", "'linear'", ""), ("cosinus", "'cosinus'", " Did you mean 'cosine'?"), (3, "3", ""), (["wsd"], "", "")],
)
def test_an_unknown_choice_is_refused_with_those_that_exist(choices, listed, value, shown, hint):
    with pytest.raises(ValueError) as refusal:
        require_choice("schedule", value, choices)
    message = str(refusal.value)
    assert message.startswith(f"schedule = {shown}") and f" is unknown. Choose one of: {listed}." in message
    assert message.endswith(hint or ".") or value == ["wsd"]
    require_choice("schedule", "wsd", choices)
