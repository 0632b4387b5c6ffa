"""MuonLITE and SOAPLITE on 1, 2 and 4 gloo ranks give the results of one process, and each rank does its share."""

import pytest

from tests.lite.distributed.checks import digest, load, state_of
from tests.lite.distributed.models import OPTIMIZERS, groups_of, model_for, train

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # of saves by one process
RANKS = (1, 2, 4)
SEVERAL = (2, 4)


@pytest.mark.parametrize("ranks", RANKS)
def test_parameters_are_those_of_one_process(results, ranks):
    """Ten steps in float64 with varying χ, each rank having its part of the batch.

    SOAP divides by the size of each coordinate of the gradient plus ε = 1e-8, rounding in those that are zero included.
    """
    for found in results.of(ranks, "equality"):
        limits = {name: 1e-6 if "soap" in name else 1e-8 for name in found}
        assert all(distance <= limits[name] for name, distance in found.items()), found


@pytest.mark.parametrize("ranks", SEVERAL)
def test_state_of_matrices_is_divided(results, ranks):
    """Every number is on one rank, except for sharded moments in HSDP, which every replica has."""
    everyone = results.of(ranks, "state_lies_once")
    for name in everyone[0]:
        held, needed = sum(found[name]["here"] for found in everyone), everyone[0][name]["needed"]
        assert held == needed if "hsdp" not in name or name == "soap/hsdp" else needed < held <= 2 * needed, name
        assert max(found[name]["here"] for found in everyone) < needed, name
        rule, mode = name.split("/")
        assert all(found[name]["adamw sharded"] is (mode != "ddp") for found in everyone), name
        assert all(found[name]["sharded"] is (mode != "ddp" and rule != "soap") for found in everyone), name


def test_qk_clip_takes_the_largest_logits_of_all_ranks(results):
    for found in results.of(2, "qk_clip"):
        assert set(found) == {"ddp", "rows", "columns"}
        assert all(each["apart"] < 1e-12 and each["moved"] > 0.01 for each in found.values()), found


@pytest.mark.parametrize("ranks", SEVERAL)
def test_collectives_of_a_step(results, ranks):
    for found in results.of(ranks, "collectives"):
        assert ranks == 4 or found.pop("ddp")["counts"] == {"_allgather_base_": 1}
        for mode in found:
            assert set(found[mode]["counts"]) == {"alltoall_base_", "allreduce_"}
            assert sum(found[mode]["counts"].values()) <= 2 * found[mode]["classes"]


@pytest.mark.parametrize("ranks", SEVERAL)
def test_moments_of_soap_in_shards_give_the_same_bits_as_on_owners(results, ranks):
    """With the same number of collectives, and unchanged in a step with a bad gradient; DDP has no shards."""
    first, *others = results.of(ranks, "sharded_moments")
    for mode in {case.split("/")[0] for case in first}:
        owner, sharded = first[f"{mode}/soap"], first[f"{mode}/sharded soap"]
        assert sharded["digests"] == owner["digests"]
        before, skipped, after = owner["digests"]
        assert before == skipped != after
        assert owner["gradients"] == sharded["gradients"] == [5]  # the skipped one does not count
        assert sharded["collectives"] == owner["collectives"]
        assert sharded["loaded by owners"] == after
        assert all(each[f"{mode}/sharded soap"]["digests"] == sharded["digests"] for each in others)


def test_one_shape_travels_while_the_one_before_is_worked_on(results):
    """Exchanges: shapes 0 and 1 to their owners, reply 0, shape 2, reply 1, ..., each waited for as late as can be."""
    for found in results.of(2, "overlap"):
        events = found["events"]
        place = {event: i for i, event in enumerate(events)}
        shapes = sum(event.startswith("start") for event in events) // 2
        assert shapes >= 3
        there = [0, *range(1, 2 * shapes - 1, 2)]
        back = [*range(2, 2 * shapes - 1, 2), 2 * shapes - 1]
        for i in range(shapes - 1):
            begin, end = place[f"wait {there[i]}"], place[f"start {back[i]}"]  # between them shape i is worked on
            assert place[f"start {there[i + 1]}"] < begin < end < place[f"wait {there[i + 1]}"]
            assert place[f"start {back[i]}"] < place[f"wait {there[i + 1]}"]
            assert place[f"start {back[i + 1]}"] < place[f"wait {back[i]}"]
            assert all(event.startswith("compute") for event in events[begin + 1 : end])
        assert found["most"] <= 3  # shapes i and i + 1 and reply i - 1
    assert any(event.startswith("compute") for found in results.of(2, "overlap") for event in found["events"])


@pytest.mark.parametrize("ranks", SEVERAL)
def test_replicas_stay_alike_under_stochastic_rounding(results, ranks):
    first, *others = results.of(ranks, "replicas_stay_alike")
    assert all(found == first for found in others)
    for case in first:
        if case.startswith("sharded"):  # float32 moments of bfloat16 parameters
            assert first[case] == first[case.removeprefix("sharded ")]


def test_bfloat16_messages_cost_bfloat16_precision(results):
    """Of a step whose Newton–Schulz is in bfloat16 anyway; that the messages were rounded shows too."""
    for found in results.of(2, "bfloat16_exchange"):
        assert all(0 < distance <= 2e-2 for distance in found.values()), found


@pytest.mark.parametrize("ranks", SEVERAL)
def test_a_gradient_missing_on_some_ranks(results, ranks):
    """For sharded parameters it counts as zero; replicated ones do not move on any rank, and a warning says so."""
    first, *others = results.of(ranks, "none_on_some_ranks")
    lost = {"layers.1.weight", "norm.weight", "experts.weight"}
    assert all(found == first for found in others)
    for mode, found in first.items():
        alike = mode in ("ddp", "hsdp")
        assert {name for name, moved in found["moved"].items() if not moved} == (lost if alike else set())
        assert sum(step == 2 for steps in found["steps"] for step in steps) == (2 if alike else 0)
        assert len(found["warned"]) == (3 if alike else 0)


@pytest.mark.parametrize("ranks", SEVERAL)
def test_a_parameter_frozen_on_all_ranks(results, ranks):
    for found in results.of(ranks, "frozen_on_all_ranks"):
        assert all(distance <= 1e-8 for distance in found.values()), found


@pytest.mark.parametrize("ranks", SEVERAL)
def test_a_gradient_that_is_not_finite_on_one_rank(results, ranks):
    """All ranks skip that step and raise at the next, naming step, rank and parameter; or skip it and continue."""
    for found in results.of(ranks, "nonfinite_on_one_rank"):
        for case, outcome in found.items():
            if case.startswith("raise"):
                assert outcome["unchanged"]
                assert f"at step 2 of this optimizer on rank {ranks - 1} in layers.1.weight;" in outcome["message"]
            else:
                assert outcome["message"] is None
                assert not outcome["unchanged"]  # by the step after it


def test_memory_formats_and_names_of_wrappers(results):
    """Checkpoints of one process under other names load by name on ranks, into kernels in channels_last."""
    for found in results.of(2, "formats_and_names"):
        assert all(outcome["kept"] and outcome["distance"] <= 1e-4 for outcome in found.values()), found


@pytest.mark.parametrize("ranks", SEVERAL)
def test_what_follows_a_step_finds_it_counted(results, ranks):
    """Loading older state, adding a group, and an optimizer that was built before its model was sharded."""
    for found in results.of(ranks, "bookkeeping"):
        assert {case.split("/")[2] for case in found} == {"roll_back", "add_group", "shard_late"}
        for case, (distance, counted) in found.items():
            assert counted, case
            assert distance <= (1e-6 if "soap" in case else 1e-8), case


def test_a_sharp_fraction_raised_beyond_its_state_is_refused_by_all_ranks_at_once(results):
    """Also by those that own none of these matrices; nothing moves, and with the old one training continues."""
    for found in results.of(2, "raised_sharp_fraction"):
        for outcome in found.values():
            assert "sharp_fraction = 0.9 needs 5 directions, but 2 have been tracked" in outcome["message"]
            assert outcome["unchanged"]


@pytest.mark.parametrize("ranks", SEVERAL)
def test_groups_in_another_order_are_found_at_construction(results, ranks):
    for found in results.of(ranks, "groups_in_another_order"):
        for wrong, right in found:
            assert wrong.startswith(
                f"ranks 0 and {ranks - 1} build different optimizers: parameter 0 is attention.in_proj"
            )
            assert right is None


def test_layouts_that_are_refused(results):
    for found in results.of(4, "unsupported_layouts"):
        assert "parameter w of shape (8, 8) has P(sum), a sum that is not yet reduced" in found["partial"]
        assert "S(0) along data (2), P(sum) along tensor (2)" in found["partial"]
        assert "redistribute it" in found["partial"]
        assert found["partial with adamw"] == found["partial"]
        assert "which DTensor does not cut for S(0) along 0 (4)" in found["another shard"]
        assert "fully_shard" in found["fsdp1"]
        assert "travelling_state ('rho',) of rule 'muon' must be among its sharded_state" in found["not on shards"]


@pytest.mark.parametrize("ranks", RANKS)
def test_checkpoints_of_other_numbers_of_ranks_load_exactly(results, ranks):
    """Bit for bit, by torch.distributed.checkpoint with and without state-dict functions; then training continues."""
    found = results.of(ranks, "checkpoints")
    assert check_loaded(results, found) == {1: {1}, 2: {0, 1, 2}, 4: {1, 2}}[ranks]


def test_checkpoints_of_four_ranks_load_exactly_on_two(results):
    assert check_loaded(results, results.of(4, "checkpoints_of_four_on_two")) == {4}


def check_loaded(results, found):
    """Check that all ranks loaded the saved state and continue alike; return the numbers of ranks that saved it."""
    loaded = {key: value for key, value in found[0].items() if "loaded" in value}
    sources = set()
    for key, outcome in loaded.items():
        name, mode, saved_on, _ = key.split(" on ")[0].split("-")
        source = results.of(int(saved_on), "checkpoints")[0][f"{name}/{mode}/{saved_on}"]
        assert all(each[key]["loaded"] == source["saved"] for each in found), key
        assert outcome["end"] == pytest.approx(source["end"], rel=1e-7), key
        sources.add(int(saved_on))
    return sources


@pytest.mark.parametrize("ranks", RANKS)
def test_checkpoints_of_ranks_load_exactly_in_one_process(results, ranks):
    """Without torch.distributed; then training continues as on the ranks."""
    found = results.of(ranks, "checkpoints")[0]
    folders = [folder for folder in results.folder.glob(f"*-*-{ranks}-*") if (folder / ".metadata").exists()]
    assert {folder.name.split("-")[3] for folder in folders} == {"plain", "functions", "flat"}
    for folder in folders:
        name, mode, _, way = folder.name.split("-")
        model = model_for()
        optimizer = OPTIMIZERS[name](groups_of(model, name))
        load(model, optimizer, folder, way)
        source = found[f"{name}/{mode}/{ranks}"]
        assert digest(state_of(model, optimizer)) == source["saved"], folder.name
        train(model, optimizer, range(4, 6))
        end = {key: float(p.detach().norm()) for key, p in model.named_parameters()}
        assert end == pytest.approx(source["end"], rel=1e-7), folder.name


def test_asynchronous_checkpoints_keep_what_was_saved(results):
    for found in results.of(2, "asynchronous_checkpoint"):
        assert all(before == loaded for before, loaded in found.values())


def test_checkpoints_that_are_refused(results):
    for found in results.of(2, "refused_checkpoints"):
        assert "what one rank of several had" in found["a part"]
        assert "what one rank of several had" in found["another's part"]  # on rank 0, too, whose part it is
        for message in found["another model, not by dcp"]:  # also where this rank owns neither matrix
            assert "shape" in message
            assert "the checkpoint is of another model" in message
        assert "mask = 'subspace' in the checkpoint but 'threshold' here" in found["another mask"]
        assert "rule = 'muon' in the checkpoint but 'soap' here" in found["another rule"]
        for shapes in (((9, 6), (8, 6)), ((6, 9), (6, 8))):  # on every rank the differences of all
            saved, here = map(list, shapes)
            assert f"saved torch.Size({saved}) and current: torch.Size({here})" in found["another model"]
