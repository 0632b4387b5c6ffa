"""SOAP's metric against its formulas, one stage at a time: memory, averages, metric, jumps of the basis, decay."""

import itertools
from dataclasses import replace

import pytest
import torch

from discretizations import CoordinateMask, EigenbasisMoment

SOAP = EigenbasisMoment(beta2=0.8, eps=0.1, frequency=3)
KL = replace(SOAP, divergence="kl")
KRONECKER = replace(KL, moment="kronecker")
RULES = {"soap": SOAP, "kl": KL, "kronecker": KRONECKER, "one side": replace(SOAP, max_dim=4)}
RULES |= {"kl, one side": replace(KL, max_dim=4)}
SHAPE = (4, 6)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(seed, n):
    return torch.linalg.qr(normal(seed, n, n)).Q


def remembered(rule, batch=()):
    """A memory in which all parts differ."""
    memory = rule.initial(torch.zeros(*batch, *SHAPE, dtype=torch.float64), batch=len(batch))
    for key, value in memory.items():
        n = value.size(-1) if value.ndim else 0
        seed = sum(map(ord, key))
        if key.endswith("basis"):
            memory[key] = orthogonal(seed, n).expand(value.shape).clone()
        elif key in ("left", "right"):
            root = normal(seed, *value.shape)
            memory[key] = root @ root.mT
        else:
            memory[key] = normal(seed, *value.shape).abs() + 0.2
    return memory


def whitened(rule, memory, g, side):
    """The term that a side's factor averages."""
    x, other = (g, "right") if side == "left" else (g.mT, "left")
    if rule.divergence == "frobenius":
        return x @ x.mT
    basis = memory.get(f"{other}_basis", torch.eye(x.size(-1), dtype=x.dtype))
    inverse = basis @ torch.diag_embed(1.0 / (memory[f"{other}_values"] + rule.eps)) @ basis.mT
    return x @ inverse @ x.mT / x.size(-1)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_before_the_first_gradient_factors_are_zero_and_bases_the_identity(rule, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    memory = rule.initial(torch.ones(5, *SHAPE, dtype=dtype), batch=1)
    shapes = {"v_mass": (5,), "left": (5, 4, 4), "left_basis": (5, 4, 4)}
    shapes |= {"right": (5, 6, 6), "right_basis": (5, 6, 6)} if rule.max_dim > 4 else {}
    shapes |= {"v": (5, 4, 6)} if rule.moment == "elementwise" else {}
    shapes |= {"left_values": (5, 4), "right_values": (5, 6)} if rule.divergence == "kl" else {}
    assert {key: tuple(x.shape) for key, x in memory.items()} == shapes
    for key, x in memory.items():
        assert x.dtype == (torch.float64 if key == "v_mass" else wide)
        expected = torch.eye(x.size(-1)) if "basis" in key else torch.tensor(float("values" in key))
        torch.testing.assert_close(x, expected.to(x.dtype).expand(x.shape), rtol=0, atol=0)
    assert rule.initial(torch.ones(SHAPE))["v_mass"].shape == ()
    masked = replace(rule, mask=CoordinateMask(sharp_fraction=0.3))
    assert set(masked.initial(torch.ones(SHAPE))) - set(rule.initial(torch.ones(SHAPE))) == {"hi", "lo"}
    assert masked.initial(torch.ones(5, *SHAPE), batch=1)["hi"].shape == (5,)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_memory_takes_in_what_its_formulas_say(rule, batch):
    memory, g = remembered(rule, batch), normal(0, *batch, *SHAPE)
    frame_g = rule.to_frame(memory, g)
    left, right = (memory.get(f"{side}_basis", torch.eye(n, dtype=g.dtype)) for side, n in (("left", 4), ("right", 6)))
    torch.testing.assert_close(frame_g, left.mT @ g @ right)
    torch.testing.assert_close(rule.from_frame(memory, frame_g), g)
    expected = {"v_mass": torch.ones_like(memory["v_mass"])} | ({"v": frame_g**2} if "v" in memory else {})
    expected |= {side: whitened(rule, memory, g, side) for side in ("left", "right") if side in memory}
    if rule.divergence == "kl":
        expected["left_values"] = (frame_g**2 / (memory["right_values"] + 0.1)[..., None, :]).mean(-1)
        expected["right_values"] = (frame_g**2 / (memory["left_values"] + 0.1)[..., :, None]).mean(-2)
    torch.testing.assert_close(rule.averaged(memory, g, frame_g), expected)
    rates = rule.memory_rates(memory, g, frame_g)
    before = {key: x.clone() for key, x in memory.items()}
    for h, after in ((1.0, rule.observe(memory, g, frame_g)), (0.5, rule.observe(memory, g, frame_g, h=0.5))):
        assert set(after) == set(memory)
        for key, x in after.items():
            moved = memory[key] + h * rates[key]
            torch.testing.assert_close(rates[key], 0.2 * (expected[key] - memory[key]) if key in expected else 0.0 * x)
            triangle = torch.tril if key in ("left", "right") else torch.clone
            torch.testing.assert_close(triangle(x), triangle(moved))
    torch.testing.assert_close(memory, before, rtol=0, atol=0)


def test_factors_may_be_changed_where_they_lie_or_not_at_all():
    memory, g = remembered(KL), normal(0, *SHAPE)
    expected = KL.observed_factors(memory, g)
    before = {key: x.clone() for key, x in memory.items()}
    for usable in (0.0, 1.0):
        found = KL.observed_factors(memory, g, usable=torch.tensor(usable, dtype=torch.float64))
        torch.testing.assert_close(found, {key: (expected if usable else before)[key] for key in found})
    torch.testing.assert_close(memory, before, rtol=0, atol=0)
    changed = KL.observed_factors(memory, g, in_place=True)
    assert all(changed[key] is memory[key] for key in ("left", "right"))
    torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_first_gradient_sets_bases_and_the_scale_of_the_values(rule):
    g = 3.0 * normal(0, 2, *SHAPE)
    memory = rule.first(rule.initial(g, batch=1), g)
    for side, x in (("left", g), ("right", g.mT)):
        if side in memory:
            gram = memory[f"{side}_basis"].mT @ x @ x.mT @ memory[f"{side}_basis"]
            torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-10)
            assert memory[f"{side}_basis"].is_contiguous()
    assert not memory["v_mass"].any() and not memory.get("v", torch.zeros(1)).any()
    size = (g**2).mean((-2, -1)).sqrt()
    for key, n in (("left_values", 4), ("right_values", 6)):
        if rule.divergence == "kl":
            torch.testing.assert_close(memory[key], size[:, None].expand(2, n))
            assert memory[key].is_contiguous()
    if rule.divergence == "frobenius":
        torch.testing.assert_close(memory["left"].tril(), 0.2 * (g @ g.mT).tril())
    elif rule.max_dim > 4:  # at the first gradient R⁻¹ is a number
        torch.testing.assert_close(memory["left"].tril(), 0.2 * ((g @ g.mT) / (6 * (size + 0.1))[:, None, None]).tril())
    unrotated = replace(rule, max_dim=1, moment="elementwise")
    assert unrotated.first_bases(unrotated.initial(g, batch=1), g) == {}


def test_the_metric_is_adams_in_the_frame_or_the_product_of_the_sides():
    x = normal(3, *SHAPE)
    for rule in (SOAP, KL):
        memory = remembered(rule)
        scale = memory["v_mass"].sqrt()
        torch.testing.assert_close(rule.raise_index(memory, x), x / ((memory["v"].sqrt() + 0.1) / scale))
        assert rule.second_moment(memory) is memory["v"]
    memory = remembered(KRONECKER)
    product = memory["left_values"][:, None] * memory["right_values"]
    torch.testing.assert_close(KRONECKER.second_moment(memory), product)
    torch.testing.assert_close(KRONECKER.raise_index(memory, x), x / (product.sqrt() + 0.1))
    memory["left_values"][1] = -1.0  # a stage of an integrator may leave the bounds
    torch.testing.assert_close(KRONECKER.raise_index(memory, x)[1], x[1] / 0.1)
    with pytest.raises(ValueError, match="moment = 'kronecker' needs factors fitted with divergence = 'kl'"):
        replace(SOAP, moment="kronecker")


def test_matrices_take_turns_in_refreshing():
    assert [SOAP.due(step, (0, 1, 2)) for step in range(5)] == [[], [2], [1], [0], [2]]
    assert [SOAP.due(step) for step in range(5)] == [[], [], [], [0], []]
    assert [SOAP.phase(step) for step in range(8)] == [0, 1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("rule", [SOAP, KL, KRONECKER], ids=["soap", "kl", "kronecker"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_jump_sorts_the_columns_and_turns_momentum_and_moments_with_them(rule, batch):
    """For diagonal factors the identity is an eigenbasis in the wrong order: the jump is a permutation."""
    memory = remembered(rule, batch)
    orders = {"left": [2, 0, 3, 1], "right": [5, 1, 0, 4, 2, 3]}
    for side, order in orders.items():
        values = torch.empty(len(order), dtype=torch.float64)
        values[order] = torch.arange(len(order), 0, -1, dtype=torch.float64)
        memory[side] = torch.diag(values).expand(memory[side].shape).clone()
        memory[f"{side}_basis"] = torch.eye(len(order), dtype=torch.float64).expand(memory[side].shape).clone()
    m, before = normal(5, *batch, *SHAPE), {key: x.clone() for key, x in memory.items()}
    due = [0, 2] if batch else [0]
    after, turned = rule.jump(memory, m.clone(), 6, due=due)
    assert set(after) == set(memory)
    for i in range(3) if batch else [...]:
        rows, columns = orders["left"], orders["right"]
        if batch and i not in due:
            rows, columns = list(range(4)), list(range(6))
        torch.testing.assert_close(turned[i].abs(), m[i][rows][:, columns].abs())
        if "v" in memory:
            torch.testing.assert_close(after["v"][i], before["v"][i][rows][:, columns])
        if "left_values" in memory:
            torch.testing.assert_close(after["left_values"][i], before["left_values"][i][rows])
            torch.testing.assert_close(after["right_values"][i], before["right_values"][i][columns])
    torch.testing.assert_close(rule.from_frame(after, turned), m)  # the momentum itself does not change
    for key in ("left", "right", "v_mass"):
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    same, kept = rule.jump(after, turned, 6, due=[])
    assert same is after and kept is turned


@pytest.mark.parametrize("rule", [SOAP, KL, KRONECKER], ids=["soap", "kl", "kronecker"])
def test_bases_wait_until_their_factors_can_have_full_rank(rule):
    """4×6 needs two gradients, the first one counted; a phase leaves the count to the mass of the average."""
    assert [rule.jump({}, torch.zeros(4, 12), 1, due=[0])[0] for _ in range(2)] == [{}, {}]  # three are needed
    m, memory = normal(5, 3, *SHAPE), remembered(rule, (3,))
    theta = rule.beta2
    memory["v_mass"] = torch.tensor([0.0, 1.0 - theta, 1.0 - theta**2], dtype=torch.float64)
    before = {key: x.clone() for key, x in memory.items()}

    def copied():
        return {key: x.clone() for key, x in before.items()}

    unready, still = rule.jump(memory, m, 0, due=[0, 1, 2])
    assert unready is memory and still is m
    regular, turned = rule.jump(copied(), m.clone(), 1, due=[0, 1, 2])
    phased, chosen = rule.jump(memory, m, 0, due=[0, 1, 2], is_phase=True)
    is_ready = [False, True, True]
    for i, ready in enumerate(is_ready):
        torch.testing.assert_close(chosen[i], (turned if ready else m)[i])
        for key in phased:
            torch.testing.assert_close(phased[key][i], (regular if ready else before)[key][i])
    assert not torch.equal(turned[0], m[0])
    torch.testing.assert_close(memory, before, rtol=0, atol=0)


def test_decay_of_flat_directions_waits_for_the_refresh_in_an_optimizer():
    rule = replace(SOAP, mask=CoordinateMask(sharp_fraction=0.3))
    memory = remembered(rule, (3,)) | {"hi": torch.tensor([1.0, 1.0, 1.0]), "lo": torch.tensor([0.9, 0.9, 0.9])}
    flat, memory = rule.flat(memory, normal(1, 3, *SHAPE), None)
    u, shrinkage = normal(2, 3, *SHAPE), normal(3, 3, *SHAPE)
    extra = flat(rule.to_frame(memory, shrinkage))
    assert extra.any() and not torch.equal(extra, rule.to_frame(memory, shrinkage))
    torch.testing.assert_close(rule.with_flat_decay(u.clone(), flat, memory, shrinkage, due=None), u + extra)
    expected = u.clone()
    expected[[0, 2]] += 3.0 * extra[[0, 2]]
    torch.testing.assert_close(rule.with_flat_decay(u.clone(), flat, memory, shrinkage, due=[0, 2]), expected)
    torch.testing.assert_close(rule.with_flat_decay(u.clone(), lambda x: 0.5 * x, memory, shrinkage, due=[0]),
                               u + 0.5 * rule.to_frame(memory, shrinkage))  # fmt: skip


def test_the_cost_is_that_of_products_refreshes_and_passes():
    def side(s, o, f):
        return s * s * o + 4 * s * s * o + (2 * s**3 + 8 * s**3 + 4 * s * s * o) / f

    for rows, columns in itertools.product((3, 5), (4, 7)):
        passes = 2000 * rows * columns
        full = passes + side(rows, columns, 3) + side(columns, rows, 3)
        assert SOAP.cost(rows, columns) == pytest.approx(full)
    assert replace(SOAP, max_dim=4).cost(4, 7) == pytest.approx(2000 * 28 + side(4, 7, 3))
    assert replace(SOAP, max_dim=3).cost(4, 7) == 2000 * 28
