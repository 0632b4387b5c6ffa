"""Limits on the cost of logging: no wait for TensorBoard, and no repeated counts at every step."""

import gc

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.recorder import tensorboard
from tests.rishd.runs import run, tiny


@pytest.mark.parametrize("closed", [True, False])
def test_tensorboard_has_every_number_however_training_ends(tmp_path, closed):
    (callback,) = tensorboard(PretrainConfig(), tmp_path, 0)
    writer = callback.tb_writer
    for step in range(5):
        writer.add_scalar("loss", step, step)
        writer.flush()
    if closed:
        writer.close()
    del callback, writer
    gc.collect()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3, 4]


def test_a_run_neither_waits_for_tensorboard_nor_counts_parameters_at_each_step(text, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    calls = []
    for owner, name in ((EventFileWriter, "flush"), (PreTrainedModel, "num_parameters")):
        right = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, _right=right, _name=name, **kw: (calls.append(_name), _right(*args, **kw))[1]
        )
    result, _ = run(tiny(text, {"logging.trackers": ["tensorboard"]}), tmp_path / "run")
    assert len(result.series("loss")) == 6  # a row at every step
    assert calls.count("num_parameters") < 6  # some at the ends, none at a step
    assert calls.count("flush") <= 2  # at the end
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
