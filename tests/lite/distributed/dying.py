"""Two ranks, the last killed while a checkpoint is written; started without an agent that would end the other.

FOLDER/good is complete before. Rank 0 writes its outcome to FOLDER/survivor.txt.
"""

import datetime
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from tests.lite.distributed.checks import all_state, built, digest, saved_state
from tests.lite.distributed.models import train


class DyingWriter(FileSystemWriter):
    """Writes its data; then the process dies before the metadata are written."""

    def write_data(self, plan, planner):
        super().write_data(plan, planner)
        os.kill(os.getpid(), signal.SIGKILL)


def outcome_of(function):
    try:
        function()
    except (Exception, dcp.CheckpointException) as error:
        return f"error {type(error).__name__}"
    return "no error"


def main():
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(minutes=10))
    model, _, optimizer = built("muon", "fsdp", rank, 2)
    train(model, optimizer, range(2), rank=rank, world=2)
    kept = digest(all_state(model, optimizer))
    dcp.save(saved_state(model, optimizer, "plain"), checkpoint_id=folder / "good")
    train(model, optimizer, range(2, 3), rank=rank, world=2)
    writer = (DyingWriter if rank == 1 else FileSystemWriter)(folder / "cut")
    saving = outcome_of(lambda: dcp.save(saved_state(model, optimizer, "plain"), storage_writer=writer))
    stepping = outcome_of(optimizer.step)
    (folder / "survivor.txt").write_text(f"{kept}\n{saving}\n{stepping}\n")
    os._exit(0)  # destroying the group would wait for the dead rank


if __name__ == "__main__":
    main()
