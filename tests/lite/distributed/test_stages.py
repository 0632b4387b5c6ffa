"""Stages of a pipeline on two and four ranks, and compiled steps."""

import pytest


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_stages_of_a_pipeline_skip_or_raise_together(results, policy, bad):
    """Ten steps are those of one process; after a NaN on one stage both keep their state, and continue or raise."""
    for rank, found in enumerate(results.of(2, "pipeline")):
        outcome = found[f"{policy}/{bad}"]
        assert outcome["distance"] <= 1e-9
        assert outcome["moved"] == [False, policy == "skip"]
        if policy == "raise":
            where = "up.weight" if rank == bad else "parameters that are not here"
            assert f"at step 10 of this optimizer on rank {bad} in {where};" in outcome["error"]


def test_stages_that_are_replicated_or_cut_agree_too(results):
    """A missing agreement would be found at a rank of the other stage."""
    for rank, found in enumerate(results.of(4, "parallel_stages")):
        for bad, outcome in found.items():
            assert outcome["moved"] == [False, False]
            where = "up.weight" if rank // 2 == int(bad) // 2 else "parameters that are not here"
            assert f"at step 0 of this optimizer on rank {bad} in {where};" in outcome["error"]


def test_stages_with_other_policies_are_refused(results):
    for found in results.of(2, "pipeline"):
        assert "on_nonfinite is ['skip', 'raise'] on ranks [0, 1] of agreement_group" in found["other policies"]


@pytest.mark.layouts
def test_compiled_steps_are_the_plain_ones_and_recompile_nothing(results):
    """Except in SOAP's first steps, each of which has another phase."""
    for found in results.of(2, "compiled_steps"):
        assert all(each["apart"] <= 1e-9 for each in found.values()), found
        assert 0 < found["muon"]["graphs"][0] == found["muon"]["graphs"][-1]
        assert 0 < found["soap"]["graphs"][2] == found["soap"]["graphs"][-1]
