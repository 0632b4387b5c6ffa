"""The studies of the open questions: each test asserts the theory's predictions for the data."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from discretizations.noise import loss_floor
from discretizations.stability import descent_limit, stable_limit
from discretizations.update_rule import UpdateState, lite_step
from lite import MuonLITE
from riemannian_ode import GramRootMetric, VaryingDiagonalMetric
from riemannian_ode.errors import MissingExtraError
from rishd.probing.edge_sharpness import edge_sharpness
from rishd.studies.alignment import OPTIMIZERS
from rishd.studies.certificate import choose
from rishd.studies.correction import AtGradient, FactoredRootMetric, correction_row, optimizer_metric
from rishd.studies.descent import Coefficients, descend, graded_valley, hessian_mask, upstream_starts
from rishd.studies.mask import faulty_mask
from rishd.studies.noise import stationary_height
from rishd.studies.noise_schedules import ALPHA, BETA, final_loss, slow_limit_chi
from rishd.studies.proxy import MaskSource, partial_traces
from rishd.studies.robustness import lagging_mask
from rishd.study import STUDIES, run_study
from toy_landscapes import BigramModel, KroneckerQuadratic, Quadratic, RiverValley, TinyTransformer, TwoLayerNetwork

HAS_PEP = find_spec("PEPit") is not None
NAMES = [name for name in STUDIES if name != "schemes" and (HAS_PEP or name != "worst_cases")]


@pytest.fixture(scope="module")
def results():
    return {name: run_study(name, quick=True) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_study_is_json_draws_and_repeats_its_data_in_answer_and_conclusion(results, name):
    result = results[name]
    json.dumps(result.data, allow_nan=False)
    assert result.table and all(row.keys() == result.table[0].keys() for row in result.table)
    for draw in result.figures.values():
        assert draw().axes
    for text in (result.answer, result.conclusion):
        assert "nan" not in text
        assert any(character.isdigit() for character in text)


# correction


def test_correction_is_zero_for_a_constant_metric():
    landscape = KroneckerQuadratic(np.eye(2), np.eye(3))
    metric = AtGradient(VaryingDiagonalMetric(lambda g: 0.0 * g + 2.0), landscape)
    w, v, m = np.random.default_rng(0).normal(size=(3, 4, 6))
    assert np.abs(metric.correction(w, v, m)).max() == 0.0


@pytest.mark.parametrize("name", ["Adam", "Muon", "SOAP"])
def test_size_of_the_correction_depends_on_curvature_over_epsilon_only(name):
    starts = np.random.default_rng(0).normal(size=(1, 6))
    row, scaled = (correction_row(name, c, 0.01, starts, epsilon=0.1 * c) for c in (1.0, 4.0))
    assert scaled.typical == pytest.approx(row.typical, rel=1e-8)
    assert scaled.distance == pytest.approx(row.distance, rel=1e-8)
    assert row.typical > 0.01
    assert scaled.of_memory == pytest.approx(row.of_memory, rel=1e-6, nan_ok=True)
    assert np.isnan(row.of_memory) == (name == "Muon")


def test_correction_vanishes_as_the_metric_becomes_constant():
    starts = np.random.default_rng(0).normal(size=(1, 6))
    sizes = [correction_row("Adam", 1.0, 0.01, starts, epsilon=epsilon).typical for epsilon in (1e2, 1e3)]
    assert sizes[1] == pytest.approx(sizes[0] / 1e3, rel=0.2)  # ∇F, ẇ and F⁻¹m are ∝ 1/ε each


def test_metrics_at_the_gradient():
    landscape = KroneckerQuadratic(np.eye(2), np.eye(3))  # ∇f(w) = w
    w, v = np.random.default_rng(1).normal(size=(2, 5, 6))
    muon = optimizer_metric("Muon", landscape, 0.3)
    np.testing.assert_allclose(muon.lower_index(w, v), GramRootMetric((2, 3), epsilon=0.09).lower_index(w, v))
    soap = FactoredRootMetric((2, 3), epsilon=0.3)
    np.testing.assert_allclose(soap.raise_index(w, soap.lower_index(w, v)), v, atol=1e-12)


# mask


def test_hard_mask_is_the_valleys_own_and_an_error_swaps_it():
    valley = graded_valley()
    w = valley.valley_floor(np.linspace(-6, 2, 9)[:, None])
    x = np.random.default_rng(0).normal(size=w.shape)
    exact = valley.flat_projector(w)(x)
    for fault in ("softness", "cadence", "error rate"):
        none = np.array([1.0 if fault == "cadence" else 0.0])
        np.testing.assert_allclose(faulty_mask(valley, fault, none, seed=0)(0, w)(x), exact, atol=1e-10)
    swapped = faulty_mask(valley, "error rate", np.array([1.0]), seed=0)(0, w)(x)
    np.testing.assert_allclose(swapped, x - exact, atol=1e-10)


def test_stale_mask_is_refreshed_on_its_turn_only():
    valley = graded_valley()
    w = valley.valley_floor(np.array([[-6.0], [1.0]]))
    x = np.ones_like(w[:1])
    mask = faulty_mask(valley, "cadence", np.array([3.0]), seed=0)
    first = mask(0, w[:1])(x)
    np.testing.assert_array_equal(mask(1, w[1:])(x), first)
    np.testing.assert_allclose(mask(3, w[1:])(x), valley.flat_projector(w[1:])(x), atol=1e-10)
    lagging = lagging_mask(valley, 1)
    lagging(0, w[:1])
    np.testing.assert_allclose(lagging(1, w[1:])(x), valley.flat_projector(w[:1])(x), atol=1e-12)


# damping, certificate


def test_damping_everywhere_and_in_sharp_directions_costs_the_stable_rate_that_c6_says(results):
    sweeps = {sweep["place"]: sweep for sweep in results["damping"].data["sweeps"]}
    for place in ("all directions", "sharp only"):
        np.testing.assert_allclose(sweeps[place]["stable"], sweeps[place]["predicted"], rtol=0.1)
        assert sweeps[place]["stable"][-1] < 0.1 * sweeps[place]["stable"][0]
    flat = sweeps["flat only"]["stable"]
    assert flat[-1] > 0.8 * flat[0]


def test_descent_limit_is_where_an_energy_stops_to_fall():
    for alpha, beta in ((0.1, 0.0), (0.1, 5.0), (0.5, 1.0), (0.3, -0.3)):
        limit = float(descent_limit(alpha, beta))
        assert limit == pytest.approx(2 * alpha / (1 + alpha * beta))
        assert limit <= stable_limit(alpha, beta)
        for factor, falls in ((1.0, True), (1.01, False)):
            kappa, s = factor * limit, 1.0 - alpha
            # E_{k+1} − E_k ≤ a quadratic form in (m_k, g_k), at η = a = 1 and L = κ.
            form = 0.5 * np.array(
                [
                    [kappa + s - 1 / s, kappa * beta - 1 + 1 / s],
                    [kappa * beta - 1 + 1 / s, kappa * beta**2 - 2 * beta - 1 / s],
                ]
            )
            assert (np.linalg.eigvalsh(form).max() <= 1e-12) == falls


@pytest.mark.parametrize("beta", [-1.0, -0.6])
def test_descent_limit_refuses_what_it_cannot_certify(beta):
    with pytest.raises(ValueError, match="beta"):
        descent_limit(0.1, beta)


def test_certified_choice_never_increases_its_energy_on_a_straight_valley():
    valley = RiverValley([8.0, 2.0], floor_curvatures=[0.05], floor_width=2.0)
    curvatures = np.array([8.0, 2.0, 0.05])
    eta = float(descent_limit(0.1, 0.0)) / 8.0
    rank, chi, beta = choose(descent_limit, eta, curvatures, curvatures)
    assert eta * chi * curvatures[rank] <= descent_limit(0.1, beta) * (1 + 1e-12)
    valley.sharp_rank = 2
    if rank != 2:
        chi = float(descent_limit(0.1, beta)) / (eta * 0.05)
    starts = upstream_starts(valley, 4, 0)
    rule = Coefficients(eta=eta, chi=chi, beta_flat=beta, mask=hessian_mask(valley))
    state_w, state_m = starts, np.zeros_like(starts)
    scale = np.array([chi, 1.0, 1.0])  # A = P + χQ on (u, s)
    energies = []
    for k in range(200):
        energies.append(valley.value(state_w) + 0.5 * eta * 0.9 * (scale * state_m**2).sum(-1))

        state_w, state_m = rule.step(k, UpdateState(state_w, state_m), valley.gradient(state_w))
    assert np.diff(energies, axis=0).max() <= 1e-14


def test_certified_choice_beats_the_base_method_and_linear_stability_does_not_suffice(results):
    for case in results["certificate"].data["cases"]:
        heights = {choice["method"]: choice["height"] for choice in case["choices"]}
        assert heights["grid search"] <= heights["C9 (descent)"] < case["base_height"] < heights["C6 (stability)"]


def test_certificate_figure_draws_limits_and_filled_choices_at_the_colours_sharp_rank(results):
    result = results["certificate"]
    (draw,) = result.figures.values()
    for axes, case in zip(draw().axes[: len(result.data["cases"])], result.data["cases"], strict=True):
        rank = int(axes.get_title().rpartition("d_s = ")[2])
        lines = {line.get_label(): line for line in axes.get_lines()}
        for name, limit in (("C9 (descent)", descent_limit), ("C6 (stability)", stable_limit)):
            line = lines[f"largest χ by {name} at the colours' d_s"]
            largest = limit(0.1, np.array(line.get_xdata())) / (case["eta"] * result.data["curvatures"][rank])
            np.testing.assert_allclose(line.get_ydata(), largest, rtol=1e-9)
        for choice in case["choices"]:
            is_hollow = lines[f"chosen by {choice['method']}"].get_markerfacecolor() == "none"
            assert is_hollow == (choice["sharp_rank"] != rank)


def test_damping_figure_crosses_out_exactly_the_unstable_points(results):
    result = results["damping"]
    (draw,) = result.figures.values()
    height = draw().axes[1]
    crossed = {
        (x, y) for line in height.get_lines() if line.get_marker() == "x" for x, y in zip(*line.get_data(), strict=True)
    }
    expected = {
        (beta, min(f, 100.0))
        for sweep in result.data["sweeps"]
        for beta, f, stable in zip(result.data["beta"], sweep["height"], sweep["stable"], strict=True)
        if stable is not None and stable < result.data["eta"]
    }
    assert expected
    assert crossed == expected
    assert "diverged" not in height.get_ylabel()


# noise


def test_stationary_height_is_what_a_noisy_mode_reaches():
    rng = np.random.default_rng(0)
    curvature, eta, beta = 0.5, 0.1, 2.0
    mode = Quadratic([curvature])
    heights = descend(
        mode,
        np.zeros((20000, 1)),
        Coefficients(eta=eta, beta_sharp=beta),
        steps=150,
        gradient=lambda k, w: mode.gradient(w) + rng.standard_normal(w.shape),
    )
    assert heights[-1].mean() == pytest.approx(stationary_height(curvature, eta, 0.1, beta), rel=0.05)
    # κ ≪ α: σ²ηa(1/α + β)/4, claim C10.
    assert stationary_height(1e-4, eta, 0.1, beta) == pytest.approx(eta * (10.0 + beta) / 4, rel=1e-3)


def test_final_loss_of_a_mode_is_that_of_noisy_runs():
    kappa, noise, steps = 1e-3, 0.05, 120
    chi = 6.0 / (1.0 + np.arange(steps) / 30.0)
    sigma = (noise * 0.5 * kappa / loss_floor(kappa, ALPHA, BETA, rate=1.0, sigma=1.0)) ** 0.5
    rng, w, m = np.random.default_rng(0), np.ones(20000), np.zeros(20000)
    for x in chi:
        g = kappa * w + sigma * rng.standard_normal(w.shape)
        w, m = lite_step(w, m, g, eta=x, alpha=ALPHA, nesterov=BETA)
    assert final_loss(chi, noise, kappa) == pytest.approx((w**2).mean(), rel=0.04)


def test_final_loss_at_constant_chi_tends_to_the_floor_of_c10():
    kappa, noise, chi = 1e-3, 0.05, 3.0
    ratio = loss_floor(chi * kappa, ALPHA, BETA, rate=chi, sigma=1.0) / loss_floor(
        kappa, ALPHA, BETA, rate=1.0, sigma=1.0
    )
    assert final_loss(np.full(2000, chi), noise, kappa) == pytest.approx(noise * ratio, rel=1e-9)


def test_no_other_schedule_of_chi_beats_the_best_one(results):
    rng = np.random.default_rng(0)
    for case in results["noise"].data["schedules"]["cases"]:
        best, steps = np.array(case["best"]), len(case["best"])
        kappa = case["horizon"] / (2 * steps * (1 / ALPHA + BETA))
        rivals = best[:, None] * np.exp(0.3 * rng.standard_normal((steps, 200)))
        assert final_loss(np.minimum(rivals, 20.0), case["noise"], kappa).min() >= case["best_loss"]
        assert min(*case["losses"], case["formula_loss"]) >= case["best_loss"]


def test_the_formula_for_chi_is_the_best_one_of_slow_modes():
    """At a tenth of the curvature and ten times the steps its loss nears ℓ/(1 + sℓT/2ℓ∞), the slow limit's optimum."""
    noise, kappa, steps = 0.1, 5e-6, 20000
    s = kappa * (1 / ALPHA + BETA)
    loss = final_loss(slow_limit_chi(noise, kappa, steps, 20.0), noise, kappa)
    assert loss == pytest.approx(1.0 / (1.0 + s * steps / (2 * noise)), rel=0.01)


def test_small_batches_take_the_gain(results):
    data = results["noise"].data
    assert data["batches"] == sorted(data["batches"], reverse=True)
    for sweep in data["batch_sweeps"]:
        gain = np.array(sweep["base"]) / np.array(sweep["lite"])
        assert gain[0] > 2 * gain[-1]
        assert gain[-1] > 0.8


def test_noise_takes_the_gain(results):
    for sweep in results["noise"].data["sweeps"]:
        gains = np.array(sweep["base"]) / np.array(sweep["lite"])
        assert gains[0] > 10 * gains[-1]


# edge


@pytest.mark.parametrize("method", ["Muon", "MuonLITE"])
def test_at_the_edge_the_frozen_rule_oscillates_with_period_2(method):
    """The rule with metrics, mask and Hessian held fixed, from its own formulas, returns −ξ and −m at η = 2/S."""
    chain = np.full((4, 4), 0.25)
    network = TinyTransformer.on_bigrams(BigramModel(chain), sequences=6, length=4, width=4, hidden=6, seed=0)
    model = network.module
    torch.nn.utils.vector_to_parameters(torch.as_tensor(network.initial(1)), model.parameters())
    to_vector = torch.nn.utils.parameters_to_vector
    for p in model.parameters():
        p.requires_grad_(p.ndim == 2)
    matrices = [p for p in model.parameters() if p.requires_grad]
    optimizer = MuonLITE(matrices, 0.02, weight_decay=0.0, ns_steps=0, mask="exact", sharp_fraction=0.25)

    def gradients():
        logits = model(network.tokens[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, network.tokens[:, 1:].flatten())
        return torch.autograd.grad(loss, matrices, create_graph=True)

    for _ in range(6):
        for p, g in zip(matrices, gradients(), strict=True):
            p.grad = g.detach()
        optimizer.step()
    graph = gradients()
    found = edge_sharpness(model, optimizer, graph, chi=2.0, beta_flat=1.0, sharp_fraction=0.25)
    is_lite = method == "MuonLITE"
    eta = 2.0 / (found.flat if is_lite else found.muon)
    theta, c = 0.95, 0.05

    def inverse(x):
        u, sigma, vh = torch.linalg.svd(x.detach(), full_matrices=False)
        sigma = sigma.clamp(min=1e-6 * float(sigma[0]))  # as the probe's: the head's gradient has one that is 0
        scale = 0.2 * max(x.shape) ** 0.5
        narrow = x.shape[0] > x.shape[1]
        return lambda y: scale * (y @ (vh.mT / sigma) @ vh if narrow else (u / sigma) @ u.mT @ y)

    def flat(x):
        top = torch.linalg.svd(x.detach())[2][:1]
        return lambda y: y - y @ top.mT @ top if is_lite else y

    ahead = [
        theta * optimizer.state[p]["momentum"] + c * g + c / theta * g for p, g in zip(matrices, graph, strict=True)
    ]
    maps = [(inverse(x), inverse(g), flat(x)) for x, g in zip(ahead, graph, strict=True)]

    def directions(hessian_xi, m):
        """F⁻¹(m + νg) for Muon, χQ[F⁻¹(m + νg) + F_g⁻¹g] for LITE."""
        return [
            2.0 * q(f(x + c / theta * g) + own(g)) if is_lite else f(x + c / theta * g)
            for (f, own, q), g, x in zip(maps, hessian_xi, m, strict=True)
        ]

    def hessian(parts):
        images = torch.autograd.grad(graph, matrices, parts, retain_graph=True)
        return [q(x) for (_, _, q), x in zip(maps, images, strict=True)]

    def matrices_of(vector):
        sizes = [p.numel() for p in matrices]
        return [x.reshape(p.shape) for x, p in zip(torch.split(vector, sizes), matrices, strict=True)]

    columns = []
    for unit in torch.eye(sum(p.numel() for p in matrices), dtype=torch.float64):
        image = hessian(matrices_of(unit))  # the momentum of an oscillation is c/(2 − α)·Hξ
        columns.append(to_vector(directions(image, [c / (1.0 + theta) * g for g in image])))
    values, vectors = torch.linalg.eig(torch.stack(columns, dim=1))
    xi = matrices_of(vectors[:, values.real.argmax()].real)
    image = hessian(xi)
    before = [-c / (1.0 + theta) * g for g in image]
    m = [theta * x + c * g for x, g in zip(before, image, strict=True)]
    for x, y in zip(m, before, strict=True):
        torch.testing.assert_close(x, -y)
    after = [x - eta * u for x, u in zip(xi, directions(image, m), strict=True)]
    assert float((to_vector(after) + to_vector(xi)).norm()) < 0.01 * float(to_vector(xi).norm())


def test_slow_runs_are_below_the_edge_and_lites_flat_block_reaches_it_first(results):
    rows = results["edge"].data["rows"]
    slowest, fastest = rows[0], rows[2]
    assert slowest["method"] == fastest["method"] == "Muon"
    assert slowest["sharpness"] < 2.0 < fastest["sharpness"]
    assert slowest["cosine"] > 0.95 > fastest["cosine"]
    for row in rows[3:]:
        assert row["method"] == "MuonLITE"
        assert row["muon_sharpness"] < row["sharpness"]


# robustness, proxies, alignment


def test_disturbances_start_undisturbed(results):
    sweeps = {sweep["disturbance"]: sweep for sweep in results["robustness"].data["sweeps"]}
    clean = sweeps["weight decay"]["lite"][0]
    assert sweeps["clipping"]["lite"][0] == pytest.approx(clean, rel=1e-9)
    assert sweeps["spike"]["lite"][0] == pytest.approx(clean, rel=1e-9)
    assert sweeps["lag, ω = 0.7"]["lite"][0] == pytest.approx(clean, rel=1e-6)
    assert sweeps["float32"]["lite"][0] == pytest.approx(clean, rel=0.1)
    assert sweeps["bfloat16"]["lite"][0] > 2 * clean


def test_exact_mask_holds_all_that_a_right_subspace_can(results):
    rows = {row["proxy"]: row for row in results["proxy"].data["proxies"]}
    assert rows["exact"]["captured"] == pytest.approx(1.0, abs=1e-9)
    assert all(row["captured"] <= 1.0 + 1e-9 for row in rows.values())
    assert rows["random"]["captured"] < rows["momentum"]["captured"] < rows["HVP"]["captured"]


def test_products_estimate_the_gram_matrix_of_the_blocks():
    network = TwoLayerNetwork.teacher_student(inputs=4, width=4, outputs=3, samples=16, seed=0)
    w = torch.as_tensor(network.initial(0))
    source = MaskSource(network, "HVP", 0)
    zeros = network.layout.unpack(torch.zeros_like(w))
    mean = {name: 0.0 for name in network.layout}
    for _ in range(400):
        grams = source._observed(w, zeros, torch.arange(4))
        mean = {name: mean[name] + gram / 400 for name, gram in grams.items()}
    hessian = network.hessian(w)
    for name, block in network.layout.items():
        own = hessian[block.coordinates, block.coordinates]
        squared = (own @ own).reshape(*block.shape, *block.shape)
        expected = torch.einsum("iaib->ab", squared)
        assert float((mean[name] - expected).norm() / expected.norm()) < 0.15
    traces = partial_traces(network, w)
    total = sum(float(torch.trace(c)) for c in traces.values())
    assert total == pytest.approx(float(torch.trace(hessian)))


def test_matrix_optimizers_are_more_isotropic_than_gradient_descent(results):
    data = results["alignment"].data
    for step in data["steps"]:
        rows = {row["optimizer"]: row for row in data["updates"] if row["step"] == step}
        assert list(rows) == list(OPTIMIZERS)
        assert rows["SGD"]["isotropy"] < rows["Muon"]["isotropy"] < rows["LITE"]["isotropy"]
        for row in rows.values():
            assert 0 < row["isotropy"] < 1
            assert np.mean(np.square(row["size"])) == pytest.approx(1.0, rel=0.02)
    assert all(0 <= row["score"] <= 1 for row in data["coverage"])


# worst cases


@pytest.mark.skipif(not HAS_PEP, reason="needs an extra: pip install 'rishd[pep]'")
def test_worst_cases_are_above_the_minimax_loss_and_below_the_bound(results):
    data = results["worst_cases"].data
    for row in data["methods"]:
        assert np.all(np.array(row["worst"]) >= 0.9999 * np.array(data["minimax"]))
    *known, free = (row["worst"][-1] for row in data["methods"])
    assert free <= min(known)  # each of them is a choice of its three coefficients
    assert all(0.3 < x < 1.0 for row in data["slack"] for x in row["tightness"])
    equal, far = data["split"]
    assert equal["best_share"] == 1.0 == pytest.approx(equal["best"] / equal["worst"][data["shares"].index(1.0)])
    assert far["best"] < 0.9 * min(far["worst"])
    for one, scaled in data["ball"].values():
        assert one == pytest.approx(scaled, rel=1e-4)


def test_worst_case_study_without_its_extra_says_what_to_install(monkeypatch):
    from discretizations import worst_cases

    monkeypatch.setattr(worst_cases, "LIBRARIES", ("no_such_library",))
    with pytest.raises(MissingExtraError, match=r"needs no_such_library: pip install 'rishd\[pep\]'"):
        run_study("worst_cases", quick=True)
