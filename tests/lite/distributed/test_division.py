"""Who works on what: every matrix once, and no rank much more than its share."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lite.distributed.division import Division, Job, Task
from lite.distributed.layout import Axis, Layout, Team


def team_of(shards, replicas):
    return Team(Axis(shards), Axis(replicas), None, tuple(range(shards * replicas)))


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=40), st.integers(1, 9))
def test_no_worker_has_much_more_than_its_share(costs, workers):
    team, division = team_of(workers, 1), Division()
    units = division.divide([Job(Layout(team, 0), cost, None) for cost in costs])
    loads = [0.0] * workers
    for (unit,), cost in zip(units, costs, strict=True):
        loads[unit.worker] += cost
    assert torch.allclose(torch.tensor(loads), torch.tensor(division.loads(team)))
    assert max(loads) <= sum(costs) / workers + max(costs) * (1 - 1 / workers) + 1e-9  # Graham 1969


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 1, 2]))
def test_every_expert_has_one_owner_and_all_of_its_pieces(experts, shards, replicas, dim):
    team = team_of(shards, replicas)
    layout = Layout(team, dim if shards > 1 else None)
    (units,) = Division().divide([Job(layout, 1.0, experts)])
    owners = [unit.worker for unit in units for _ in range(*unit.experts)]
    assert len(owners) == experts
    assert [start for unit in units for start in range(*unit.experts)] == list(range(experts))
    p = torch.empty(experts, 5, 6, device="meta")
    task = Task(p=p, group=0, index=0, name="w", layout=layout, numbers=[range(experts)], units=units)
    for unit in units:
        shapes = [task.piece_shape(unit, shard) for shard in range(shards)]
        numbers = sum(torch.Size(shape).numel() for shape in shapes)
        assert numbers == torch.Size(task.unit_shape(unit)).numel()
    assert task.travels == (shards > 1 and dim != 0)
