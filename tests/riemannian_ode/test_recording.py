"""Observers, flat memory, checkpoints: a resumed run equals the uninterrupted one."""

import tracemalloc

import numpy as np
import pytest
import torch

from riemannian_ode import INTEGRATORS, RISHD, Event, TimeDependent, Trajectory, VaryingDiagonalMetric, simulate
from riemannian_ode.integrators import OneStepIntegrator
from riemannian_ode.simulation_checkpoint import CheckpointError
from toy_landscapes import RiverValley

VALLEY = RiverValley([3.0], floor_curvatures=[0.2], amplitudes=0.8)
W0 = np.array([[1.0, 0.5], [-2.0, 0.1], [0.3, 1.0]])
GENERAL = [n for n, c in INTEGRATORS.items() if issubclass(c, OneStepIntegrator) and n not in ("discrete-gradient",)]


def system(**changes):
    settings = {"alpha": 0.3, "eta": TimeDependent(lambda t: 0.3 / (1 + 0.1 * t)), "beta": 0.1} | changes
    return RISHD.from_optimizer(VALLEY, **settings)


def height(t, w, m):
    return VALLEY.value(w)


class Interrupting:
    """The valley, whose gradient raises Ctrl-C at its nth call."""

    def __init__(self, calls):
        self.left = calls

    def value(self, w):
        return VALLEY.value(w)

    def hessian(self, w):
        return VALLEY.hessian(w)

    def gradient(self, w):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return VALLEY.gradient(w)


@pytest.mark.parametrize("scheme", GENERAL)
def test_resumed_run_is_the_run_to_the_last_bit(scheme, tmp_path):
    options = {"h": 0.3, "integrator": scheme, "observers": {"height": height}, "save_every": 3}
    whole = simulate(system(), W0, steps=20, **options)
    file = tmp_path / "run.npz"
    simulate(system(), W0, steps=7, checkpoint=file, **options)
    resumed = simulate(system(), W0, steps=20, checkpoint=file, **options)
    # The first part ended at step 7 and saved it; the whole run did not.
    assert np.array_equal(resumed.w[-1], whole.w[-1])
    assert np.array_equal(resumed.m[-1], whole.m[-1])
    kept = np.isin(resumed.times, whole.times)
    assert np.array_equal(resumed.w[kept], whole.w)
    assert np.array_equal(resumed.observed["height"][kept], whole.observed["height"])


@pytest.mark.parametrize("scheme", [name for name, cls in INTEGRATORS.items() if cls.adaptive])
def test_resumed_adaptive_runs_restart_their_step_control_and_agree_to_the_tolerance(scheme, tmp_path):
    integrator = INTEGRATORS[scheme](rtol=1e-9, atol=1e-11)
    options = {"h": 0.3, "integrator": integrator}
    whole = simulate(system(eta=0.3), W0, steps=20, **options)
    simulate(system(eta=0.3), W0, steps=7, checkpoint=tmp_path / "run.npz", **options)
    resumed = simulate(system(eta=0.3), W0, steps=20, checkpoint=tmp_path / "run.npz", **options)
    np.testing.assert_array_equal(resumed.times, whole.times)
    np.testing.assert_allclose(resumed.w, whole.w, atol=1e-6)


@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "implicit-midpoint"])
@pytest.mark.parametrize("terminal", [False, True])
def test_resumed_runs_have_the_events_of_the_whole_run(scheme, terminal, tmp_path):
    """Crossings before the checkpoint come from the file, later ones are located again."""
    events = [
        Event("over the river", lambda t, w, m: w[..., 1]),
        Event("low", lambda t, w, m: VALLEY.value(w) - 0.05, direction="falling", terminal=terminal),
    ]
    options = {"h": 0.5, "integrator": scheme, "events": events, "save_at": [0.3, 2.2, 9.9], "save_every": 4}
    whole = simulate(system(), W0, steps=60, **options)
    assert len(whole.events) >= 6
    file = tmp_path / "run.npz"
    for steps in (5, 11, 12, 29, 60, 60):
        resumed = simulate(system(), W0, steps=steps, checkpoint=file, **(options | {"save_at": [0.3, 2.2]}))
    for ours, theirs in zip(resumed.events, whole.events, strict=True):
        assert (ours.name, ours.member, ours.time, ours.terminal) == (
            theirs.name,
            theirs.member,
            theirs.time,
            theirs.terminal,
        )
        np.testing.assert_array_equal(ours.w, theirs.w)
        np.testing.assert_array_equal(ours.m, theirs.m)
    assert (resumed.status, resumed.message) == (whole.status, whole.message)
    np.testing.assert_array_equal(resumed.w[-1], whole.w[-1])
    np.testing.assert_array_equal(resumed.times[-1], whole.times[-1])
    resumed.save(tmp_path / "trajectory.npz")
    back = Trajectory.load(tmp_path / "trajectory.npz")
    assert [event.time for event in back.events] == [event.time for event in whole.events]
    assert [event.member for event in back.events] == [event.member for event in whole.events]


def test_a_single_run_that_ended_at_an_event_ends_there_again(tmp_path):
    low = Event("low", lambda t, w, m: VALLEY.value(w) - 0.05, direction="falling", terminal=True)
    options = {"h": 0.5, "events": [low], "checkpoint": tmp_path / "run.npz"}
    first = simulate(system(), W0[0], steps=60, **options)
    assert first.status == "event"
    again = simulate(system(), W0[0], steps=90, **options)
    np.testing.assert_array_equal(again.times, first.times)
    np.testing.assert_array_equal(again.w, first.w)
    assert again.message == first.message


def test_interrupted_run_continues_to_the_last_bit(tmp_path):
    whole = simulate(system(), W0, steps=30, h=0.3)
    file = tmp_path / "run.npz"

    def build(calls):
        return RISHD.from_optimizer(Interrupting(calls), alpha=0.3, eta=system().eta.map(lambda x: x), beta=0.1)

    first = simulate(build(12), W0, steps=30, h=0.3, checkpoint=file)
    assert first.status == "interrupted"
    second = simulate(build(10**9), W0, steps=30, h=0.3, checkpoint=file)
    assert second.status == "finished"
    assert np.array_equal(second.w, whole.w)
    assert np.array_equal(second.times, whole.times)


def test_periodic_checkpoints_survive_a_crash(tmp_path):
    """A run killed without warning continues from its last periodic checkpoint."""
    file = tmp_path / "run.npz"

    class CrashError(Exception):
        pass

    def observe(t, w, m):
        if t > 6.0:
            raise CrashError
        return t

    options = {"h": 0.3, "checkpoint": file, "checkpoint_every": 5}
    with pytest.raises(CrashError):
        simulate(system(), W0, steps=30, observers={"t": observe}, **options)
    resumed = simulate(system(), W0, steps=30, observers={"t": lambda t, w, m: t}, **options)
    assert np.array_equal(resumed.w, simulate(system(), W0, steps=30, h=0.3).w)


def test_finished_run_can_be_prolonged_and_lost_members_stay_lost(tmp_path):
    file = tmp_path / "run.npz"
    diverging = {"eta": np.array([0.1, 60.0, 0.1])}
    short = simulate(system(**diverging), W0, steps=300, checkpoint=file)
    again = simulate(system(**diverging), W0, steps=300, checkpoint=file)
    assert np.array_equal(short.w, again.w, equal_nan=True)
    longer = simulate(system(**diverging), W0, steps=310, checkpoint=file)
    assert longer.times[-1] == 310
    assert "1 of 3 members" in longer.message
    assert longer.failed_at[1] == short.failed_at[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"h": 0.2}, r"h is 0\.3 there, 0\.2 here"),
        ({"integrator": "rk4"}, "integrator is 'semi-implicit-euler' there, 'rk4' here"),
        ({"save_every": 2}, "save_every"),
        ({"keep_states": False}, "keep_states"),
        ({"observers": {"height": height}}, "observers"),
        ({"save_at": [0.1]}, "save_at is 'nothing' there, '1 times"),
        ({"events": [Event("low", height)]}, r"events is \[\] there, \[\['low', 'any', False\]\] here"),
        ({"integrator": "dop853"}, "integrator is"),
    ],
)
def test_checkpoints_of_other_runs_are_refused(changes, message, tmp_path):
    file = tmp_path / "run.npz"
    options = {"h": 0.3, "steps": 4, "checkpoint": file}
    simulate(system(), W0, **options)
    with pytest.raises(CheckpointError, match=message):
        simulate(system(), W0, **(options | changes))
    with pytest.raises(CheckpointError, match="alpha is"):
        simulate(system(alpha=0.4), W0, **options)
    with pytest.raises(CheckpointError, match="start is"):
        simulate(system(), W0 + 1.0, **options)
    file.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="not a checkpoint of a simulation"):
        simulate(system(), W0, **options)


def test_torch_runs_resume_as_torch(tmp_path):
    file = tmp_path / "run.npz"
    w0 = torch.as_tensor(W0)
    whole = simulate(system(), w0, steps=10, h=0.3)
    simulate(system(), w0, steps=4, h=0.3, checkpoint=file)
    resumed = simulate(system(), w0, steps=10, h=0.3, checkpoint=file)
    assert torch.equal(resumed.w, whole.w)


def test_observers_see_every_save_and_states_need_not_be_kept(tmp_path):
    options = {"steps": 50, "h": 0.3, "save_every": 5, "observers": {"height": height, "speed": lambda t, w, m: m}}
    whole = simulate(system(), W0, **options)
    lean = simulate(system(), W0, keep_states=False, **options)
    assert lean.w.shape == (2, 3, 2)
    np.testing.assert_array_equal(lean.times, [0.0, 15.0])
    np.testing.assert_array_equal(lean.observed_times, whole.times)
    np.testing.assert_array_equal(lean.observed["height"], VALLEY.value(whole.w))
    np.testing.assert_array_equal(lean.observed["speed"], whole.m)
    np.testing.assert_array_equal(lean.w[-1], whole.w[-1])
    lean.save(tmp_path / "lean.npz")
    back = Trajectory.load(tmp_path / "lean.npz")
    np.testing.assert_array_equal(back.observed["speed"], lean.observed["speed"])


def test_memory_stays_flat_when_only_observers_are_asked_for():
    w0 = np.random.default_rng(0).normal(size=(50_000, 2))
    peaks = []
    for steps in (50, 500):
        tracemalloc.start()
        simulate(system(), w0, steps=steps, h=0.1, keep_states=False, observers={"mean": lambda t, w, m: w.mean()})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


STEEP = RiverValley([30.0], floor_curvatures=[0.2], amplitudes=0.8)


@pytest.mark.parametrize(
    ("here", "there", "named"),
    [
        ({}, {"correction": False}, "correction"),
        ({}, {"metric": VaryingDiagonalMetric(lambda w: 2.0 + w**2)}, "metric"),
        ({}, {"objective": STEEP}, "objective"),
        ({"chi": 2.0, "flat": VALLEY.flat_split}, {"chi": 2.0, "flat": STEEP.flat_split}, "split"),
    ],
)
def test_a_checkpoint_of_another_system_is_refused(here, there, named, tmp_path):
    def run(**changes):
        settings = {"objective": VALLEY, "alpha": 0.3, "eta": 0.1}
        if "flat" not in changes:
            settings["metric"] = VaryingDiagonalMetric(one_more)
        return simulate(RISHD.from_optimizer(**(settings | changes)), W0, h=0.1, steps=4, checkpoint=tmp_path / "a.npz")

    first = run(**here)
    np.testing.assert_array_equal(run(**here).w, first.w)
    with pytest.raises(CheckpointError, match=rf"{named} is .* there, .* here"):
        run(**there)


def one_more(w):
    return 1.0 + w**2


def test_a_checkpoint_that_cannot_be_written_or_read_is_named_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        simulate(system(), W0, steps=2, checkpoint=tmp_path / "missing" / "run.npz")
    with pytest.raises(CheckpointError, match="is a folder"):
        simulate(system(), W0, steps=2, checkpoint=tmp_path)
    file = tmp_path / "run.npz"
    whole = simulate(system(), W0, steps=2, checkpoint=file, save_every=np.int64(2), h=np.float64(0.5))
    content = file.read_bytes()
    for broken in (b"", content[: len(content) // 2]):
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match="is not a checkpoint of a simulation"):
            simulate(system(), W0, steps=2, checkpoint=file)
        with pytest.raises(ValueError, match="is not a saved trajectory"):
            Trajectory.load(file)
    file.write_bytes(content)
    again = simulate(system(), W0, steps=2, checkpoint=file, save_every=2, h=0.5)
    np.testing.assert_array_equal(again.w, whole.w)


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    whole = simulate(system(), W0, steps=6)
    monkeypatch.setattr("riemannian_ode.simulation_checkpoint.write_arrays", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        run = simulate(system(), W0, steps=6, checkpoint=tmp_path / "run.npz", checkpoint_every=2)
    assert run.status == "finished"
    np.testing.assert_array_equal(run.w, whole.w)
