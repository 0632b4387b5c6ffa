"""Division among ranks: every matrix has one owner, and no rank much more than its share."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lite.distributed.division import Division, OwnedParameter, WorkItem
from lite.distributed.sharding import MeshAxis, RankMesh, Sharding


def mesh_of(shards, replicas):
    return RankMesh(MeshAxis(shards), MeshAxis(replicas), None, tuple(range(shards * replicas)))


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=40), st.integers(1, 9))
def test_no_rank_has_much_more_than_its_share(costs, ranks):
    mesh, division = mesh_of(ranks, 1), Division()
    owners = division.divide([WorkItem(Sharding(mesh, 0), cost, None) for cost in costs])
    loads = [0.0] * ranks
    for (owner,), cost in zip(owners, costs, strict=True):
        loads[owner.rank] += cost
    assert torch.allclose(torch.tensor(loads), torch.tensor(division.loads(mesh)))
    assert max(loads) <= sum(costs) / ranks + max(costs) * (1 - 1 / ranks) + 1e-9  # Graham 1969


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 1, 2]))
def test_every_expert_has_one_owner_and_all_of_its_parts(experts, shards, replicas, dim):
    sharding = Sharding(mesh_of(shards, replicas), dim if shards > 1 else None)
    (owners,) = Division().divide([WorkItem(sharding, 1.0, experts)])
    assert [expert for owner in owners for expert in range(*owner.experts)] == list(range(experts))
    p = torch.empty(experts, 5, 6, device="meta")
    settings = {"group": 0, "index": 0, "name": "w", "numbers": [range(experts)]}
    parameter = OwnedParameter(p=p, sharding=sharding, owners=owners, **settings)
    for owner in owners:
        shapes = [parameter.overlap_shape(owner, shard) for shard in range(shards)]
        numbers = sum(torch.Size(shape).numel() for shape in shapes)
        assert numbers == torch.Size(parameter.owned_shape(owner)).numel()
    assert parameter.travels == (shards > 1 and dim != 0)
