"""Published schedules against formulas written down separately, and their ranges, at any step and beyond the last."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lite import LITESchedule, MuonLITE, learning_rate_factor
from lite.schedules import flat_damping, flat_learning_rate_ratio


@st.composite
def spans(draw):
    """Warm-up and total, and a step up to twice the total."""
    total = draw(st.integers(1, 200))
    warmup = draw(st.integers(0, total - 1))
    return warmup, total, draw(st.integers(0, 2 * total))


SCHEDULE = st.sampled_from(["cosine", "wsd"])


def cosine(k, peak, minimum, warmup, total):
    """c(k; peak, minimum) of the published code, which is not defined after the last step."""
    if k < warmup:
        return peak * (k + 1) / warmup
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * (k - warmup) / (total - warmup))) / 2


@given(spans(), SCHEDULE, st.floats(1, 20), st.floats(0, 1), st.booleans())
def test_chi_stays_between_one_and_its_peak(span, schedule, chi, min_ratio, is_matrix):
    warmup, total, k = span
    options = {"schedule": schedule, "warmup_steps": warmup, "total_steps": total}
    value = flat_learning_rate_ratio(k, chi, **options, min_ratio=min_ratio, is_matrix=is_matrix)
    assert 1.0 <= value <= chi
    last = flat_learning_rate_ratio(total, chi, **options, min_ratio=min_ratio, is_matrix=is_matrix)
    if k >= total:
        assert value == pytest.approx(last)
    if schedule == "wsd":
        assert value == chi
    elif k >= total and min_ratio > 0:
        assert value == pytest.approx(1.0)
    elif is_matrix and k < warmup:
        assert value == 1.0
    elif k < total and cosine(k, 1.0, min_ratio, warmup, total) > 1e-9:
        ratio = cosine(k, chi, min_ratio, warmup, total) / cosine(k, 1.0, min_ratio, warmup, total)
        rise = 1 + (chi - 1) * (k - warmup) / ((total - warmup) * 0.5)
        expected = min(ratio, rise) if is_matrix else ratio
        assert value == pytest.approx(min(max(expected, 1.0), chi), rel=1e-9)


@given(spans(), SCHEDULE, st.floats(-0.9, 2), st.floats(0, 3))
def test_beta_flat_rises_from_beta_sharp_to_its_peak_and_stays(span, schedule, beta_sharp, extra):
    warmup, total, k = span
    options = {"schedule": schedule, "warmup_steps": warmup, "total_steps": total}
    beta_flat = beta_sharp + extra
    value = flat_damping(k, beta_sharp, beta_flat, **options)
    assert beta_sharp <= value <= beta_flat + 1e-12
    length = int((0.5 if schedule == "cosine" else min(1.0, 2 * warmup / total)) * (total - warmup))
    if k < warmup:
        assert value == beta_sharp
    elif k >= warmup + length:
        assert value == pytest.approx(beta_flat)
    else:
        assert value == pytest.approx(beta_sharp + extra * (k - warmup) / length)
    assert flat_damping(k + 1, beta_sharp, beta_flat, **options) >= value - 1e-12


@given(spans(), SCHEDULE, st.floats(0, 1))
def test_learning_rates_stay_between_zero_and_the_peak(span, schedule, min_ratio):
    warmup, total, k = span
    options = {"schedule": schedule, "warmup_steps": warmup, "total_steps": total, "min_ratio": min_ratio}
    value = learning_rate_factor(k, **options)
    assert 0.0 <= value <= 1.0 + 1e-12
    if k < warmup:
        assert value == k / warmup
    else:
        assert value >= min_ratio - 1e-12
    if k >= total:
        assert value == pytest.approx(min_ratio)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_scheduler_never_leaves_its_range(schedule):
    """From the first step to long after the last, also through a checkpoint."""
    p, v = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4))
    optimizer = MuonLITE([{"params": [p]}, {"params": [v], "rule": "adamw", "chi": 4.0}], 0.01)
    settings = {"schedule": schedule, "warmup_steps": 3, "total_steps": 10}
    schedule = LITESchedule(optimizer, **settings)
    seen = []
    for k in range(40):
        if k == 20:
            saved = schedule.state_dict()
            schedule = LITESchedule(optimizer, **settings)
            schedule.load_state_dict(saved)
        seen.append([(group["chi"], group["beta_flat"]) for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    for peak, values in zip((2.0, 4.0), zip(*seen, strict=True), strict=True):
        assert all(1.0 <= chi <= peak and -0.25 <= beta <= 1.0 for chi, beta in values)
        assert set(values[10:]) == {(1.0 if settings["schedule"] == "cosine" else peak, 1.0)}
