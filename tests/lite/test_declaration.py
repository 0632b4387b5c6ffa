"""Properties that a declaration gives its matrices; its stages on pieces of a matrix equal its step."""

from functools import partial

import pytest
import torch
from torch import nn

from discretizations import Identity, SecondMoment, UpdateRule
from lite import SOAPLITE, Lion, LionLITE, LITEOptimizer, Muon, MuonLITE, NorMuon, Shampoo, ShampooLITE
from lite.declaration import MOMENTUM, Declaration, matrix_shape, rounds_stochastically, rule_update
from riemannian_ode import Preconditioner

SHAPE = (6, 5)
COVECTOR, GRADIENT, PARAMETER = {"covector"}, {"covector", "g"}, {"covector", "g", "w"}


class LargestSquare(Preconditioner):
    """F = diag(√(max g²) + ε): a memory that is not an average; the map itself takes in the gradient."""

    name = "largest-square"

    def initial(self, w, *, batch=0):
        return {"largest": torch.zeros_like(w)}

    def observe(self, memory, g, frame_g, *, h=1.0):
        return {"largest": torch.maximum(memory["largest"], g**2)}

    def raise_index(self, memory, covector):
        return covector / (memory["largest"].sqrt() + 1e-8)


class LargestLITE(LITEOptimizer):
    rule = "largest-square"

    def update_rule(self, group, shape):
        return UpdateRule(preconditioner=LargestSquare(), alpha=0.1, decay=group["weight_decay"])


# What a shard sends its owner: no more than the direction needs.
SENT = {
    "muon": (Muon, COVECTOR),
    "muon, cautious": (partial(Muon, decay="cautious"), COVECTOR),
    "muon, independent": (partial(Muon, decay="independent"), COVECTOR),
    "muon, on the sphere": (partial(Muon, norm="constant", weight_decay=0.0), {"covector", "w"}),
    "lite": (MuonLITE, PARAMETER),
    "lite, cautious": (partial(MuonLITE, decay="cautious"), GRADIENT),
    "lite, no decay": (partial(MuonLITE, weight_decay=0.0), GRADIENT),
    "lite, on the sphere": (partial(MuonLITE, norm="constant", weight_decay=0.0), PARAMETER),
    "lite, undamped": (partial(MuonLITE, beta_sharp=0.0, beta_flat=0.0), {"covector", "w"}),
    "lite, graded": (partial(MuonLITE, mask="graded", chi_sharp=0.5), GRADIENT),
    "lite, threshold": (partial(MuonLITE, mask="threshold"), PARAMETER),
    "lion": (Lion, COVECTOR),
    "lion, lite": (partial(LionLITE, beta_flat=0.5), PARAMETER),
    "soap": (partial(SOAPLITE, precondition_frequency=2), {"w", "g"}),
    "shampoo": (partial(Shampoo, precondition_frequency=1), {"w", "g"}),
    "normuon": (NorMuon, COVECTOR),
    "largest square": (LargestLITE, {"w", "g"}),
}


def built(make, dtype=torch.float64, **settings):
    optimizer = make([nn.Parameter(torch.zeros(SHAPE, dtype=dtype))], 0.02, **settings)
    return optimizer, optimizer.param_groups[0]


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def in_pieces(optimizer, group, w, g, state, *, step, numbers):
    """A step of two matrices whose rows are on three shards, one of them empty, and the names of the sent tensors."""
    sizes = [2, 0, 4]
    resting = optimizer.sharded_state if optimizer.takes_in_on_shards(group) else ()
    pieces = [x.split(sizes, dim=1) for x in (w, g, *(state[name] for name in resting))]
    taken = [
        optimizer.shard_take_in(group, w, g, dict(zip(resting, own, strict=True)))
        for w, g, *own in zip(*pieces, strict=True)
    ]
    sent = {name: torch.cat([inputs[name] for inputs, _ in taken], dim=1) for name in taken[0][0]}
    kept = {name: value for name, value in state.items() if name not in resting}
    reply, after = optimizer.owner_direct(group, sent, kept, step=step, numbers=numbers)
    moved = [
        optimizer.shard_move(group, *x) for x in zip(w.split(sizes, dim=1), reply.split(sizes, dim=1), strict=True)
    ]
    whole = {name: torch.cat([own[name] for _, own in taken], dim=1) for name in resting}
    return torch.cat(moved, dim=1), after | whole, set(sent)


@pytest.mark.parametrize("case", SENT)
def test_stages_on_shards_are_the_step_of_the_whole_matrix(case):
    make, expected = SENT[case]
    optimizer, group = built(make)
    group["initial_lr"] = 0.05  # a schedule's peak
    w = normal(0, 2, *SHAPE)
    state = optimizer.matrix_state(group, w)
    for k in range(4):
        g, before = normal(k + 1, 2, *SHAPE), {name: x.clone() for name, x in state.items()}
        whole, after = optimizer.matrix_update(group, w, g, state, step=k, numbers=(0, 1))
        moved, pieced, sent = in_pieces(optimizer, group, w, g, state, step=k, numbers=(0, 1))
        assert sent == expected
        torch.testing.assert_close(state, before, rtol=0, atol=0)  # nothing is changed in place
        torch.testing.assert_close(moved, whole, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(pieced, after, rtol=1e-11, atol=1e-13)
        assert not torch.equal(whole, w) or k == 0
        w, state = whole, after


@pytest.mark.parametrize("momentum", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("norm", ["free", "constant"])
def test_half_precision_shards_move_as_whole_matrices_do(momentum, norm):
    """Parameters are bfloat16; the reply has at least float32, which rounds the move once."""
    decay = 0.0 if norm == "constant" else 0.1
    settings = {"float32_momentum": momentum == torch.float32, "norm": norm, "weight_decay": decay}
    optimizer, group = built(partial(MuonLITE, ns_steps=0, mask="exact"), torch.bfloat16, **settings)
    w, g = normal(0, 2, *SHAPE, dtype=torch.bfloat16), normal(1, 2, *SHAPE, dtype=torch.bfloat16)
    state = optimizer.matrix_state(group, w)
    assert state[MOMENTUM].dtype == momentum
    whole, after = optimizer.matrix_update(group, w, g, state, step=0, numbers=(0, 1))
    moved, pieced, _ = in_pieces(optimizer, group, w, g, state, step=0, numbers=(0, 1))
    assert pieced[MOMENTUM].dtype == after[MOMENTUM].dtype == momentum
    torch.testing.assert_close(pieced[MOMENTUM], after[MOMENTUM], rtol=0, atol=0)
    sent, _ = optimizer.shard_take_in(group, w, g, state)
    reply, _ = optimizer.owner_direct(group, sent, {}, step=0, numbers=(0, 1))
    assert reply.dtype == torch.float32
    torch.testing.assert_close(moved.float(), whole.float(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_momentum_and_squares_have_at_least_float32(dtype):
    optimizer, group = built(partial(Shampoo, stochastic_rounding=True), dtype)
    wide = torch.promote_types(dtype, torch.float32)
    assert optimizer.momentum_dtype(group, dtype) == optimizer.squares_dtype(group, dtype) == wide
    assert optimizer.matrix_state(group, torch.zeros(SHAPE, dtype=dtype))[MOMENTUM].dtype == wide


def test_only_bfloat16_parameters_are_rounded_stochastically():
    """Then new parameters come back in float32, otherwise in their own dtype."""
    for dtype, asked, rounds in (
        (torch.bfloat16, True, True),
        (torch.bfloat16, False, False),
        (torch.float32, True, False),
    ):
        optimizer, group = built(partial(Shampoo, stochastic_rounding=asked), dtype)
        w = torch.zeros(SHAPE, dtype=dtype)
        assert rounds_stochastically(group, w) is rounds
        assert optimizer.message_dtypes(group, w) == (None, torch.float32 if rounds else dtype)


def test_gradients_in_half_precision_are_taken_in_in_the_momentums_type():
    """Also if the memory is wider than the parameter; the new parameter keeps the wide dtype, to be rounded once."""
    optimizer, group = built(partial(Shampoo, precondition_frequency=1), torch.bfloat16)
    w, g = normal(0, *SHAPE, dtype=torch.bfloat16), normal(1, *SHAPE, dtype=torch.bfloat16)
    state = optimizer.matrix_state(group, w)
    found, after = optimizer.matrix_update(group, w, g, state, step=0, numbers=(0,))
    exact, expected = optimizer.matrix_update(group, w.float(), g.float(), state, step=0, numbers=(0,))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    torch.testing.assert_close(after, expected, rtol=0, atol=0)


def test_a_first_gradient_that_only_sets_the_memory_makes_no_step_and_does_not_count():
    optimizer, group = built(partial(ShampooLITE, precondition_frequency=3))
    w, g = normal(0, *SHAPE), normal(1, *SHAPE)
    state = optimizer.matrix_state(group, w)
    same, after = optimizer.matrix_update(group, w, g, state, step=0, numbers=(0,))
    assert same is w and after[MOMENTUM] is state[MOMENTUM]
    for number, steps in ((0, [3, 6]), (2, [1, 4, 7])):  # matrices take turns
        refreshed, x, state = [], w, after
        for k in range(1, 8):
            before = state
            x, state = optimizer.matrix_update(group, x, normal(k + 1, *SHAPE), before, step=k, numbers=(number,))
            if not torch.equal(before["left_root"], state["left_root"]):
                refreshed.append(k)
        assert refreshed == steps
    assert rule_update(optimizer.update_rule(group, SHAPE), w, g, after, eta=0.1)[0] is w  # step = 0 by default
    assert [optimizer.phase(group, k) for k in range(6)] == [0, 1, 2, 3, 1, 2]


class _Recorded(Identity):
    """Jumps after every step, and records its arguments."""

    def __init__(self):
        self.told = []

    def due(self, step, numbers=(0,)):
        self.told.append((step, tuple(numbers)))
        return [0]

    def jump(self, memory, m, step, *, due=(0,), is_phase=False):
        self.told.append((step, is_phase))
        return memory, m


class _Declared(Declaration):
    rule = "recorded"

    def __init__(self):
        self.preconditioner = _Recorded()

    def update_rule(self, group, shape):
        return UpdateRule(preconditioner=self.preconditioner, alpha=0.1)


@pytest.mark.parametrize("is_phase", [False, True])
def test_preconditioners_hear_of_every_gradient_and_of_the_numbers_of_matrices(is_phase):
    """A compiled group, whose step number is a phase, has a count."""
    declared, w = _Declared(), normal(0, *SHAPE)
    group = {"lr": 0.1} | ({"count": 4} if is_phase else {})
    state = declared.matrix_state(group, w)
    declared.matrix_update(group, w, w, state, step=4, numbers=(7,))
    rule_update(declared.update_rule(group, SHAPE), w, w, state, eta=0.1)
    sent, _ = declared.shard_take_in(group, w, w, state)
    declared.owner_direct(group, sent, {}, step=4, numbers=(7,))
    heard = [(5, (7,)), (5, is_phase), (1, (0,)), (1, False), (5, (7,)), (5, is_phase)]
    assert declared.preconditioner.told == heard


def test_a_step_works_in_the_wider_type_of_momentum_and_second_moment():
    """Adam's momentum of a bfloat16 parameter is bfloat16, its second moment float32."""
    rule = UpdateRule(preconditioner=SecondMoment(beta2=0.9), alpha=0.1, gain=0.1)
    w, g, m = (normal(seed, *SHAPE, dtype=torch.bfloat16) for seed in range(3))
    memory = rule.initial_memory(w)
    found, after = rule_update(rule, w, g, {MOMENTUM: m, **memory}, eta=0.1)
    exact, expected = rule_update(rule, w.float(), g.float(), {MOMENTUM: m.float(), **memory}, eta=0.1)
    assert found.dtype == after[MOMENTUM].dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    torch.testing.assert_close(after, expected, rtol=0, atol=0)


def test_adamw_groups_have_adams_rule():
    optimizer, group = built(Shampoo)
    rule = optimizer.adamw_rule(group)
    assert isinstance(rule.preconditioner, SecondMoment)
    assert (rule.beta_sharp, rule.beta_flat, rule.alpha) == (0.0, 0.0, pytest.approx(0.1))


def test_costs_and_places_are_those_of_the_preconditioner():
    optimizer, group = built(Muon)
    assert optimizer.matrix_cost(group, 4, 3) == 36.0
    assert optimizer.learning_rate(group, (100, 25)) == pytest.approx(0.02 * 0.2 * 10.0)
    assert optimizer.takes_in_on_shards(group)
    optimizer, group = built(Shampoo)
    assert optimizer.matrix_cost(group, 4, 3) != optimizer.matrix_cost(group, 3, 3)
    assert optimizer.learning_rate(group, (100, 25)) == 0.02
    assert not optimizer.takes_in_on_shards(group)
    assert [matrix_shape(torch.zeros(shape)) for shape in ((), (7,), (4, 3), (2, 4, 3))] == [(1, 1)] * 2 + [(4, 3)] * 2


def test_state_of_a_parameter_in_blocks_has_one_memory_a_block():
    """Elementwise state has the parameter's shape; the rest carries the block's number."""
    p = nn.Parameter(torch.zeros(6, 5, dtype=torch.bfloat16))
    group = {"params": [p], "blocks": (2, 4), "block_axis": -2}
    optimizer = ShampooLITE([group], precondition_frequency=1)
    state = optimizer.parameter_state(optimizer.param_groups[0], p)
    assert {name: tuple(x.shape) for name, x in state.items()} == {
        "momentum": (6, 5),
        "v": (6, 5),
        **{f"left/{i}": (n, n) for i, n in enumerate((2, 4))},
        **{f"right/{i}": (5, 5) for i in range(2)},
        **{f"{name}/{i}": () for name in ("mass", "momentum_mass") for i in range(2)},
    }
    assert state["momentum"].dtype == state["v"].dtype == torch.float32
    whole = optimizer.parameter_state(optimizer.param_groups[0] | {"blocks": None}, p)
    assert set(whole) == {"momentum", "v", "left", "right", "mass", "momentum_mass"}
    stack = optimizer.matrix_state(optimizer.param_groups[0], torch.zeros(2, 6, 5))
    assert stack["mass"].shape == stack["momentum_mass"].shape == (2,)
