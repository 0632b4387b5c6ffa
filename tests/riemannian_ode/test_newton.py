"""Newton's method for implicit steps on equations whose solutions and derivatives are known."""

import numpy as np
import pytest
import torch

from riemannian_ode import INTEGRATORS
from riemannian_ode.integrators import IntegratorError, Losses, PhaseState, _implicit_function, newton
from riemannian_ode.integrators.implicit import ImplicitScheme
from riemannian_ode.integrators.newton import Equations, solve


def zeros(*shape):
    return PhaseState(np.zeros(shape), np.zeros(shape))


def separate(function, slope=None):
    """Separate equations of w and m, number by number, that count their evaluations."""
    calls = {"residual": 0, "derivative": 0, "product": 0}

    def residual(y):
        calls["residual"] += 1
        return PhaseState(function(y.w), function(y.m))

    def derivative(y):
        calls["derivative"] += 1

        def product(d):
            calls["product"] += 1
            return PhaseState(slope(y.w) * d.w, slope(y.m) * d.m)

        return product

    return Equations(residual, derivative if slope else None), calls


def linear(p, seed=0, kind=np.asarray):
    """Equations Ay = b that couple w and m, and their matrix."""
    matrix = np.eye(2 * p) + 0.3 / p**0.5 * np.random.default_rng(seed).normal(size=(2 * p, 2 * p))
    a = kind(matrix)

    def product(y):
        joined = a @ (np if isinstance(a, np.ndarray) else torch).concatenate([y.w, y.m], -1)[..., None]
        return PhaseState(joined[..., :p, 0], joined[..., p:, 0])

    return matrix, product


@pytest.mark.parametrize("known", [True, False], ids=["derivative", "differences"])
@pytest.mark.parametrize("p", [2, 24, 25, 60, 257])
def test_linear_equations_take_one_jacobian_of_the_method_for_their_size(p, known):
    """Factors up to 48 unknowns, or 512 with a known derivative, cost one product per column; GMRES costs fewer."""
    matrix, product = linear(p)
    right = np.random.default_rng(1).normal(size=(3, 2 * p))
    products = [0]

    def residual(y):
        products[0] += not known
        return PhaseState(*(x - b for x, b in zip(product(y), (right[:, :p], right[:, p:]), strict=True)))

    def along(d):
        products[0] += 1
        return product(d)

    found = solve(Equations(residual, (lambda y: along) if known else None), zeros(3, p), tolerance=1e-9, where="here")
    exact = np.linalg.solve(matrix, right[..., None])[..., 0]
    np.testing.assert_allclose(np.concatenate(found, axis=-1), exact, rtol=0, atol=1e-7)
    if factorised := 2 * p <= (512 if known else 48):
        assert 2 * p <= products[0] <= 2 * p + 5  # one Jacobian, whatever the number of members
    assert factorised or known or products[0] > 6


def test_a_known_derivative_of_too_many_entries_is_not_factorised():
    """17 members of 512 unknowns: their Jacobians would have more than 2²² entries."""
    equations, calls = separate(lambda y: 2.0 * y - 1.0, lambda y: 2.0 + 0.0 * y)
    found = solve(equations, zeros(17, 256), tolerance=1e-9, where="here")
    np.testing.assert_allclose(found.w, 0.5, atol=1e-9)
    assert calls["product"] < 60


def test_a_known_derivative_of_just_few_enough_entries_is_factorised():
    """16 members of 512 unknowns would be; this tests the same boundary with smaller ones."""
    equations, calls = separate(lambda y: 2.0 * y - 1.0, lambda y: 2.0 + 0.0 * y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newton, "_ENTRIES", 3 * 60**2)
        solve(equations, zeros(3, 30), tolerance=1e-9, where="here")
    assert calls["product"] == 60


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3), (2, 30)])
@pytest.mark.parametrize("known", [True, False], ids=["derivative", "differences"])
def test_roots_are_found_to_the_accuracy_asked_for(shape, known):
    targets = np.random.default_rng(0).uniform(0.5, 3.0, shape)
    equations, _ = separate(lambda y: y**2 - targets, (lambda y: 2.0 * y) if known else None)
    guess = PhaseState(np.ones(shape), 2.0 * np.ones(shape))
    found = solve(equations, guess, tolerance=1e-11, where="here")
    for part in found:
        assert part.shape == shape
        np.testing.assert_allclose(part, np.sqrt(targets), rtol=1e-10)
    loose = solve(equations, guess, tolerance=1e-3, where="here")
    assert 1e-12 < np.abs(loose.w - np.sqrt(targets)).max() < 1e-2  # it stops when it may


def test_members_are_what_they_are_alone_to_the_last_bit():
    targets = np.array([[1.1, 0.9], [40.0, 3.0], [1e-3, 1e4]])

    def run(rows):
        equations, _ = separate(lambda y: y**3 - targets[rows])
        return solve(equations, PhaseState(np.ones((len(rows), 2)), 3.0 * np.ones((len(rows), 2))), tolerance=1e-12,
                     where="here")  # fmt: skip

    together = run([0, 1, 2])
    np.testing.assert_allclose(together.w, np.cbrt(targets), rtol=1e-11)
    for i in range(3):
        for whole, alone in zip(together, run([i]), strict=True):
            np.testing.assert_array_equal(whole[i], alone[0])


def test_a_jacobian_is_kept_while_it_works_and_renewed_when_it_does_not():
    mild, calls = separate(lambda y: y + 0.01 * np.sin(y) - 1.0, lambda y: 1.0 + 0.01 * np.cos(y))
    solve(mild, zeros(2), tolerance=1e-13, where="here")
    assert calls["derivative"] == 1 and calls["residual"] > 3
    steep, calls = separate(lambda y: np.exp(y) - 20.0, np.exp)
    found = solve(steep, zeros(2), tolerance=1e-13, where="here")
    np.testing.assert_allclose(found.w, np.log(20.0), rtol=1e-13)
    assert 3 <= calls["derivative"] <= 10


def test_steps_that_overshoot_are_halved():
    """Newton's method for arctan y = 0 diverges from beyond 1.3917."""
    equations, calls = separate(np.arctan, lambda y: 1.0 / (1.0 + y**2))
    found = solve(equations, PhaseState(np.array([[0.5], [8.0]]), np.array([[-3.0], [1.0]])), tolerance=1e-12,
                  where="here")  # fmt: skip
    np.testing.assert_allclose(np.concatenate(found), 0.0, atol=1e-12)
    assert calls["residual"] < 100


@pytest.mark.parametrize("p", [2, 30])
def test_float32_is_solved_to_its_rounding(p):
    equations, _ = separate(lambda y: y**2 - np.float32(2.0))
    ones = np.ones((2, p), np.float32)
    found = solve(equations, PhaseState(ones, ones), tolerance=1e-13, where="here")
    assert found.w.dtype == found.m.dtype == np.float32
    np.testing.assert_allclose(np.concatenate(found), 2.0**0.5, rtol=1e-6)


def rootless(shape, kind):
    """y² = a in m, with a root where a ≥ 0."""
    a = kind(np.full(shape, 4.0))
    a[0, 1] = -1.0
    return Equations(lambda y: PhaseState(y.w - 1.0, y.m**2 - a), None)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("p", [1, 30])
def test_members_without_a_solution_are_named_or_lost(p, kind):
    equations = rootless((2, 2, p), kind)
    guess = PhaseState(kind(np.zeros((2, 2, p))), kind(np.full((2, 2, p), 1.5)))
    with pytest.raises(
        IntegratorError, match=r"^the scheme at t = 3: .* for member \(0, 1\) \(last correction .* > 1e-"
    ):
        solve(equations, guess, tolerance=1e-10, where="the scheme at t = 3")
    losses = Losses((2, 2))
    found = solve(equations, guess, tolerance=1e-10, where="the scheme at t = 3", losses=losses)
    assert losses.causes.tolist() == [["", "integrator-failed"], ["", ""]]
    assert losses.messages["integrator-failed"].startswith("the scheme at t = 3: Newton's method did not converge")
    assert all(np.isnan(np.asarray(part[0, 1])).all() for part in found)
    for i, j in ((0, 0), (1, 0), (1, 1)):
        np.testing.assert_allclose(found.m[i, j], 2.0, rtol=1e-9)
        np.testing.assert_allclose(found.w[i, j], 1.0, rtol=1e-9)


def test_a_singular_jacobian_is_no_solution():
    """And no non-finite iterate reaches the equations, which might refuse the whole stack because of it."""

    def affine(slope):
        def residual(y):
            assert np.isfinite(y).all()
            return slope * y - 1.0

        return separate(residual)[0]

    with pytest.raises(IntegratorError, match=r"did not converge \(last correction"):
        solve(affine(0.0), zeros(2), tolerance=1e-10, where="here")
    losses = Losses((3,))
    found = solve(affine(np.array([[1.0], [0.0], [2.0]])), zeros(3, 1), tolerance=1e-10, where="here", losses=losses)
    assert losses.causes.tolist() == ["", "integrator-failed", ""]
    np.testing.assert_allclose(found.w[[0, 2], 0], [1.0, 0.5])


@pytest.mark.parametrize("p", [2, 30])
def test_members_that_are_not_finite_stay_and_are_not_counted_as_lost(p):
    equations, losses = separate(lambda y: y**2 - 2.0)[0], Losses((3,))
    guess = PhaseState(np.ones((3, p)), np.ones((3, p)))
    guess.w[1, 0] = np.nan
    found = solve(equations, guess, tolerance=1e-10, where="here", losses=losses)
    assert not losses.causes.any() and not losses.messages
    np.testing.assert_allclose(found.w[[0, 2]], 2.0**0.5)
    assert np.isnan(found.w[1, 0])
    assert np.isfinite(guess.w).sum() == 3 * p - 1 and (guess.m == 1.0).all()  # the guess is not written to
    all_lost = solve(equations, PhaseState(np.nan * guess.w, guess.m), tolerance=1e-10, where="here", losses=losses)
    assert np.isnan(all_lost.w).all() and not losses.messages


@pytest.mark.parametrize("part", [0, 1])
def test_corrections_within_the_rounding_of_large_terms_are_accepted(part):
    """Terms of 10⁸ that cancel leave 10⁻⁸ that no step removes; a guess of 10¹⁰ leaves as much."""
    guess = PhaseState(np.ones((1, 1)), 2.0 * np.ones((1, 1)))
    large = np.zeros((2, 1, 1))
    large[part] = 1e8

    def residual(y):
        r = [y.w - 1.0, y.m - 2.0]
        r[part] = np.round(r[part] / 1e-8) * 1e-8 + 3e-9
        return PhaseState(*r)

    for terms in (None, lambda y: PhaseState(*large + 0.0 * y.w)):
        equations = Equations(residual, lambda y: lambda d: d, terms)
        if terms is None:
            with pytest.raises(IntegratorError, match="did not converge"):
                solve(equations, guess, tolerance=1e-13, where="here")
        else:
            found = solve(equations, guess, tolerance=1e-13, where="here")
            np.testing.assert_allclose(np.concatenate(found, axis=None), [1.0, 2.0], atol=3e-8)
    guess = PhaseState(np.full((1, 1), 1e10), np.full((1, 1), 1e10))
    far = Equations(lambda y: PhaseState(*((x - 1e10) + (1e10 - 1.3) for x in y)), lambda y: lambda d: d)
    np.testing.assert_allclose(np.concatenate(solve(far, guess, tolerance=1e-13, where="here")), 1.3, atol=1e-5)


def shift(p):
    """A cyclic shift of y, w and m together: GMRES makes no progress on it before as many products as unknowns."""

    def product(y):
        joined = np.roll(np.concatenate([y.w, y.m], axis=-1), 1, axis=-1)
        return PhaseState(joined[..., :p], joined[..., p:])

    return product


def test_equations_that_gmres_leaves_have_no_solution():
    """Its correction is 0 there, which does not mean that they are solved; a member of another kind continues."""
    p, shifted = 60, shift(60)

    def residual(y):
        moved = shifted(y)
        w, m = moved.w - np.eye(1, p), moved.m
        if len(y.w) == 1:
            return PhaseState(w, m)
        return PhaseState(np.concatenate([w[:1], y.w[1:] - 0.5]), np.concatenate([m[:1], y.m[1:] - 0.5]))

    with pytest.raises(IntegratorError, match=r"for member \(0,\)"):
        solve(Equations(residual), zeros(1, p), tolerance=1e-9, where="here")
    losses = Losses((2,))
    found = solve(Equations(residual), zeros(2, p), tolerance=1e-9, where="here", losses=losses)
    assert losses.causes.tolist() == ["integrator-failed", ""]
    np.testing.assert_allclose(np.stack(found)[:, 1], 0.5, rtol=1e-9)


def rounded(size, terms):
    """Equations y = 1 in w and m, rounded so that no step removes the last third of ``size``."""
    return Equations(
        lambda y: PhaseState(*(((x - 1.0) / size).round() * size + 0.3 * size for x in y)),
        lambda y: lambda d: d,
        lambda y: PhaseState(*(terms + 0.0 * x for x in y)),
    )


def test_rounding_is_that_of_the_state_s_type():
    """10⁻⁵ in single precision is rounding where terms of 100 cancel, and an error where none do."""
    guess = PhaseState(*torch.ones(2, 1, 1))
    found = solve(rounded(1e-5, 100.0), guess, tolerance=0.0, where="here")
    assert torch.cat(found).sub(1.0).abs().max() < 3e-5
    with pytest.raises(IntegratorError):
        solve(rounded(1e-5, 0.0), guess, tolerance=0.0, where="here")


def test_one_member_s_rounding_is_accepted_whatever_becomes_of_another():
    """The first member's residual is rounding that no step removes, the second one has no root."""
    is_first = np.array([[True], [False]])
    equations = Equations(
        lambda y: PhaseState(y.w, np.where(is_first, 3e-9, y.m**2 + 1.0)),
        lambda y: lambda d: PhaseState(d.w, np.where(is_first, d.m, 2.0 * y.m * d.m)),
        lambda y: PhaseState(1e8 + 0.0 * y.w, 1e8 + 0.0 * y.m),
    )
    losses = Losses((2,))
    guess = PhaseState(np.zeros((2, 1)), np.array([[1.0], [0.9]]))
    found = solve(equations, guess, tolerance=1e-13, where="here", losses=losses)
    assert losses.causes.tolist() == ["", "integrator-failed"]
    assert found.m[0, 0] == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(("at", "off", "is_accepted"), [
    (1.0, 0.0015, True), (1.0, 0.0025, False), (1e6, 500.0, True), (1e6, 2000.0, False),
])  # fmt: skip
def test_rounding_may_leave_a_thousandth_of_one_plus_the_member_s_size(at, off, is_accepted):
    """For any terms, and next to a large member that is solved: accepted corrections end the iteration."""
    roots = np.array([[at], [1e9]])
    equations, calls = separate(lambda y: y - roots, np.ones_like)
    large = equations._replace(terms=lambda y: PhaseState(1e30 + 0.0 * y.w, 1e30 + 0.0 * y.m))
    guess = roots + np.array([[off], [0.0]])
    found = solve(large, PhaseState(guess, guess), tolerance=1e-13, where="here")
    np.testing.assert_allclose(found.w, roots, rtol=1e-12)
    assert (calls["residual"] == 1) == is_accepted


def test_without_terms_that_cancel_a_flat_equation_is_solved_to_the_tolerance():
    equations, calls = separate(lambda y: 1e-6 * y, lambda y: 1e-6 + 0.0 * y)
    found = solve(equations, PhaseState(*np.full((2, 1, 1), 1e-10)), tolerance=1e-14, where="here")
    assert np.abs(found).max() < 1e-20 and calls["residual"] == 2


def test_corrections_that_shrink_fast_foretell_the_error():
    """Corrections of 10⁻⁴, 10⁻⁸ and 2·10⁻¹²: the second one shows that the third is within 10⁻¹⁰."""
    equations, calls = separate(lambda y: (y - 1.0) + (y - 1.0) ** 2, lambda y: 2.0 * y - 1.0)
    found = solve(equations, PhaseState(*np.full((2, 1, 1), 1.0 + 1e-4)), tolerance=1e-10, where="here")
    assert np.abs(np.stack(found) - 1.0).max() < 1e-11 and calls["residual"] == 2


@pytest.mark.parametrize(("p", "scale"), [(2, 1e5), (30, 10.0)])
def test_members_of_different_scales_have_differences_of_their_own(p, scale):
    roots = np.array([[scale], [1.0], [1.0 / scale]]) * np.linspace(1.0, 2.0, p)
    equations, calls = separate(lambda y: (y / roots) ** 2 - 1.0)
    found = solve(equations, PhaseState(1.5 * roots, 0.8 * roots), tolerance=1e-12, where="here")
    np.testing.assert_allclose(np.stack(found), np.stack([roots, roots]), rtol=1e-8)
    assert calls["residual"] < 1000


# Derivatives by the implicit function theorem


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3), (30,), (2, 30)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivatives_of_a_linear_solution_are_those_of_the_inverse(shape, dtype):
    """From 49 unknowns on by GMRES."""
    p = shape[-1]
    matrix, product = linear(p, kind=lambda x: torch.as_tensor(x, dtype=dtype))
    source = torch.Generator().manual_seed(0)
    right = torch.randn(*shape, 2, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
    weights = torch.randn(*shape, 2, generator=source, dtype=torch.float64)
    equations = Equations(
        lambda y: PhaseState(*(x - right[..., k] for k, x in enumerate(product(y)))), lambda y: product
    )
    guess = PhaseState(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
    w, m = solve(equations, guess, tolerance=1e-12, where="here")
    assert w.dtype == m.dtype == dtype and w.requires_grad and m.requires_grad
    (got,) = torch.autograd.grad((w * weights[..., 0] + m * weights[..., 1]).sum(), right)
    joined = torch.cat([weights[..., 0], weights[..., 1]], -1).numpy()
    exact = np.linalg.solve(matrix.T, joined[..., None])[..., 0]
    found = torch.cat([got[..., 0], got[..., 1]], -1).double().numpy()
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize(("p", "name"), [(1, "_direct"), (24, "_direct"), (25, "_by_gmres")])
def test_up_to_48_unknowns_are_factorised(p, name, monkeypatch):
    used = []
    for solver in ("_direct", "_by_gmres"):
        monkeypatch.setattr(
            _implicit_function, solver, lambda product, right, sound, own=solver: used.append(own) or right
        )
    theta = torch.ones(2, p, dtype=torch.float64, requires_grad=True)
    guess = PhaseState(*torch.ones(2, 2, p, dtype=torch.float64))
    w, _ = solve(Equations(lambda y: PhaseState(y.w - theta, y.m)), guess, tolerance=1e-12, where="here")
    torch.autograd.grad(w.sum(), theta)
    assert used == [name]


def test_stiff_equations_that_gmres_leaves_are_factorised():
    p = 30
    scales = torch.logspace(0, 14, p, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    a = mixing @ torch.diag(scales) @ mixing.mT
    right = torch.ones(2, p, dtype=torch.float64, requires_grad=True)
    equations = Equations(
        lambda y: PhaseState((y.w - right) @ a, y.m - right), lambda y: lambda d: PhaseState(d.w @ a, d.m)
    )
    w, _ = solve(equations, PhaseState(*torch.zeros(2, 2, p, dtype=torch.float64)), tolerance=1e-3, where="here")
    (got,) = torch.autograd.grad(w.sum(), right)
    torch.testing.assert_close(got, torch.ones_like(got), rtol=0, atol=0.05)


def test_gmres_is_given_up_after_2000_products():
    """On a shift, where 100 directions for 128 unknowns make no progress; each cycle starts with a residual."""
    products = []
    right = torch.eye(1, 128, dtype=torch.float64)
    found = _implicit_function._by_gmres(
        lambda x: products.append(1) or x.roll(1, -1), right, torch.ones(1, 1, dtype=torch.bool)
    )
    torch.testing.assert_close(found, right.roll(-1, -1))
    assert 2000 <= len(products) - 128 <= 2040  # the last 128 build the matrix


@pytest.mark.parametrize("part", [0, 1])
def test_one_half_of_the_equations_is_enough_to_carry_derivatives(part):
    theta = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    targets = [torch.tensor(1.0, dtype=torch.float64)] * 2
    targets[part] = theta
    equations = Equations(lambda y: PhaseState(y.w**2 - targets[0], y.m**2 - targets[1]))
    guess = PhaseState(*torch.ones(2, 1, dtype=torch.float64))
    found = solve(equations, guess, tolerance=1e-12, where="here")
    (got,) = torch.autograd.grad(found[part].sum(), theta)
    assert float(got) == pytest.approx(0.5 / 3.0**0.5, rel=1e-9)


def test_solutions_carry_a_graph_only_where_it_is_asked_for():
    theta = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    guess = PhaseState(*torch.ones(2, 1, dtype=torch.float64))

    def found(theta):
        return solve(Equations(lambda y: PhaseState(y.w - theta, y.m)), guess, tolerance=1e-12, where="here")

    assert found(theta).w.requires_grad and not found(theta.detach()).w.requires_grad
    with torch.no_grad():
        assert not found(theta).w.requires_grad
    with pytest.raises(RuntimeError, match="differentiated once only; leave create_graph=False"):
        torch.autograd.grad(found(theta).w.sum(), theta, create_graph=True)


@pytest.mark.parametrize("p", [1, 30])
def test_lost_members_leave_the_others_derivatives(p):
    theta = torch.full((3, p), 4.0, dtype=torch.float64, requires_grad=True)
    guess = PhaseState(torch.ones(3, p, dtype=torch.float64), torch.ones(3, p, dtype=torch.float64))
    guess.w[1] = torch.nan
    w, _ = solve(Equations(lambda y: PhaseState(y.w**2 - theta, y.m - theta)), guess, tolerance=1e-12, where="here")
    (got,) = torch.autograd.grad(w[[0, 2]].sum(), theta)
    torch.testing.assert_close(got[[0, 2]], torch.full((2, p), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("scheme", [scheme for scheme in INTEGRATORS.values() if issubclass(scheme, ImplicitScheme)])
def test_implicit_schemes_refuse_a_tolerance_that_is_not_positive(scheme):
    with pytest.raises(ValueError, match=r"^tolerance = 0"):
        scheme(tolerance=0.0)
