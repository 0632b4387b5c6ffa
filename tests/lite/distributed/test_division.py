"""Who owns what in any layout: every element once, and no rank much more than its share."""

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from lite.distributed.division import Division, OwnedParameter, WorkItem
from lite.distributed.sharding import Grid, RankMesh, Sharding


def sharding_of(shape, sizes, placements, rank=0):
    places = tuple(itertools.product(*map(range, sizes)))
    return Sharding(RankMesh(tuple(range(len(places))), rank), shape, Grid(places, tuple(sizes)), tuple(placements))


def local(whole, sizes, placements, place):
    """What a rank holds: torch's chunks, an empty one where there are fewer."""

    def chunk(x, size, i, dim):
        pieces = x.chunk(size, dim)
        return pieces[i] if i < len(pieces) else x.narrow(dim, 0, 0)

    for size, placement, i in zip(sizes, placements, place, strict=True):
        if isinstance(placement, _StridedShard):
            parts = [chunk(whole, placement.split_factor, j, placement.dim) for j in range(placement.split_factor)]
            whole = torch.cat([chunk(part, size, i, placement.dim) for part in parts], placement.dim)
        elif isinstance(placement, Shard):
            whole = chunk(whole, size, i, placement.dim)
    return whole


@st.composite
def layouts(draw):
    """Shape, sizes of a mesh and placements."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    sizes = draw(st.lists(st.integers(2, 3), max_size=3))
    dim = st.integers(0, len(shape) - 1)
    strided = st.builds(lambda dim, factor: _StridedShard(dim, split_factor=factor), dim, st.integers(1, 3))
    return shape, sizes, [draw(st.one_of(st.just(Replicate()), dim.map(Shard), strided)) for _ in sizes]


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=40), st.integers(1, 9))
def test_no_rank_has_much_more_than_its_share(costs, ranks):
    sharding, division = sharding_of((8, 8), [ranks], [Shard(0)]), Division()
    owners = division.divide([WorkItem(sharding, cost, is_stack=False) for cost in costs])
    loads = [0.0] * ranks
    for (owner,), cost in zip(owners, costs, strict=True):
        loads[owner.rank] += cost
    assert torch.allclose(torch.tensor(loads), torch.tensor(division.loads(sharding.mesh)))
    assert max(loads) <= sum(costs) / ranks + max(costs) * (1 - 1 / ranks) + 1e-9  # Graham 1969


@settings(max_examples=60)
@given(layouts(), st.booleans(), st.integers(0, 26))
def test_owners_and_holders_get_every_element_once(layout, is_stack, first):
    """Owners from ranks in their own replicas; and where nothing is scattered, each from itself alone."""
    shape, sizes, placements = layout
    count, is_stack = math.prod(sizes), is_stack and len(shape) == 3
    whole = torch.arange(math.prod(shape)).reshape(shape)
    division, everyone = Division(), []
    for rank in range(count):
        sharding = sharding_of(shape, sizes, placements, rank)
        if not is_stack:  # another owner
            division.loads(sharding.mesh)[first % count] = -1.0
        (owners,) = division.divide([WorkItem(sharding, 1.0, is_stack=is_stack)])
        told = {"group": 0, "index": 0, "name": "w", "numbers": [range(shape[0])]}
        everyone.append(OwnedParameter(p=whole, sharding=sharding, owners=owners, is_stack=is_stack, **told))
    held = [local(whole, sizes, placements, place) for place in itertools.product(*map(range, sizes))]
    owned = {owner.rank: whole[owner.box.within([0] * len(shape))] for owner in everyone[0].owners}
    assert sorted(torch.cat([x.flatten() for x in owned.values()]).tolist()) == list(range(whole.numel()))
    for rank, parameter in enumerate(everyone):
        assert parameter.is_scattered == everyone[0].is_scattered
        coming = [part for part in parameter.owned if part.travels]
        assert parameter.is_scattered or {part.rank for part in coming} <= {rank}
        if rank in owned:
            gathered = torch.full_like(owned[rank], -1)
            for part in coming:
                assert (gathered[part.of_owned] == -1).all()
                gathered[part.of_owned] = held[part.rank][part.of_shard]
            assert torch.equal(gathered, owned[rank])
        returned = torch.full_like(held[rank], -1)
        for part in parameter.held:
            assert (returned[part.of_shard] == -1).all()
            returned[part.of_shard] = owned[part.rank][part.of_owned]
        assert torch.equal(returned, held[rank])


@given(st.integers(1, 12), st.integers(2, 4), st.integers(2, 4))
def test_experts_that_lie_whole_on_ranks_stay_there(experts, data, expert):
    """Cut along experts on one axis, and among the ranks of another that hold the same or other rows of them."""
    for placements in ([Replicate(), Shard(0)], [_StridedShard(0, split_factor=expert), Shard(0)]):
        sharding = sharding_of((experts, 5, 6), [data, expert], placements)
        (owners,) = Division().divide([WorkItem(sharding, 1.0, is_stack=True)])
        parameter = OwnedParameter(
            p=torch.empty(experts, 5, 6), sharding=sharding, owners=owners, is_stack=True,
            group=0, index=0, name="w", numbers=[range(experts)],
        )  # fmt: skip
        assert isinstance(placements[0], _StridedShard) or not parameter.is_scattered
        assert max(owner.box.shape[0] for owner in owners) == math.ceil(math.ceil(experts / expert) / data)
