"""Runs the checks under torchrun, one process per rank. Results go to FOLDER/<ranks>-<rank>.json."""

import datetime
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from tests.lite.distributed import checks, layouts, stages  # noqa: F401  # they register what they check
from tests.lite.distributed.registry import CHECKS

LONG = ("layouts", "compiled_steps")  # minutes; pytest -m layouts sets the variable


def main():
    folder, only = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=10))
    rank, world = dist.get_rank(), dist.get_world_size()
    found = {}
    for name, (function, ranks) in CHECKS.items():
        if world not in ranks or (only and name not in only):
            continue
        if name in LONG and not only and "RISHD_TEST_LAYOUTS" not in os.environ:
            continue
        start = time.monotonic()
        try:
            found[name] = {"value": function(rank, world, folder), "seconds": time.monotonic() - start}
        except Exception:
            found[name] = {"error": traceback.format_exc()}
        (folder / f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # Python's shutdown is now and then aborted for gloo's threads, see rishd.pretraining.ranks.leave


if __name__ == "__main__":
    main()
