"""Any layout of DTensor's on four gloo ranks: what one process does, each rank its share."""

import pytest

from tests.lite.distributed.checks import digest, load, norms, state_of
from tests.lite.distributed.layouts import LAYOUTS, SAVED, made, train

OPTIMIZERS = ("muon", "sharded soap", "shampoo")
pytestmark = [
    pytest.mark.layouts,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),  # of loads in one process
]


@pytest.fixture(scope="module")
def found(results):
    return results.of(4, "layouts")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_are_those_of_one_process(found, layout):
    """Ten steps in float64; then a step with a NaN in one shard changes nothing anywhere."""
    for each in found:
        for name in OPTIMIZERS:
            assert each[f"{name}/{layout}"]["distance"] <= 1e-9, name
            assert each[f"{name}/{layout}"]["skipped"], name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_exchange_each_way_for_each_shape(found, layout):
    """Of 6 shapes of matrices; agreements and sums of AdamW's masks are two more."""
    for name in OPTIMIZERS:
        counts = found[0][f"{name}/{layout}"]["collectives"]
        assert set(counts) <= {"alltoall_base_", "allreduce_"}
        assert counts["alltoall_base_"] <= 2 * 6
        assert counts["allreduce_"] <= 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_has_its_share_of_the_state(found, layout):
    for name in OPTIMIZERS:
        numbers = [each[f"{name}/{layout}"]["state"] for each in found]
        assert max(numbers) <= 2 * min(numbers), numbers


def test_models_that_torch_has_cut(results):
    """By parallelize_module, and by fully_shard on another axis of the mesh."""
    for each in results.of(4, "tensor_parallel_training"):
        assert all(distance <= 1e-9 for distance in each.values()), each


def test_replicas_beside_plain_tensors(results):
    """Of the same shapes, so that they must not be taken for one."""
    assert all(distance <= 1e-9 for distance in results.of(2, "replicas_beside_plain_tensors"))


def test_checkpoints_of_any_layout_load_exactly_in_others(results):
    """Bit for bit; then training continues as without the load."""
    for each in results.of(4, "layout_checkpoints"):
        assert each.pop("of one process") == results.of(0, "checkpoints")[0]["muon/one/0"]["saved"]
        assert len(each) == 2 * len(SAVED)
        for name, outcome in each.items():
            assert outcome["loaded"] == outcome["saved"], name
            assert outcome["end of loaded"] == pytest.approx(outcome["end"], rel=1e-9), name


@pytest.mark.parametrize("layout", SAVED)
def test_checkpoints_of_any_layout_load_exactly_in_one_process(results, layout):
    found = results.of(4, "layout_checkpoints")[0]
    for name in ("muon", "sharded soap"):
        source = f"{name} from {layout}"
        model, optimizer = made(name, None)
        load(model, optimizer, results.folder / source, "plain")
        assert digest(state_of(model, optimizer)) == found[source]["saved"]
        train(model, optimizer, range(3, 5))
        assert norms(model) == pytest.approx(found[source]["end"], rel=1e-9)
