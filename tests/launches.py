"""Processes that tests start, under torchrun on a port that torch finds; failures show their output."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def finished(command, *, timeout=1800, code=0, **environment):
    """Run a command to its end; an exit code other than ``code`` fails the test with the command's output."""
    words = [str(word) for word in command]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=own, cwd=ROOT, check=False)
    assert done.returncode == code, f"{' '.join(words)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def torchrun(ranks, *arguments, **options):
    """Run a script, or ``-m`` a module, on some ranks of this machine; see :func:`finished`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return finished([*launcher, *arguments], **options)


def accelerate_launch(ranks, *arguments, **options):
    """As :func:`torchrun`, but started by accelerate; ``--multi_gpu`` is its option for several ranks, also on CPUs."""
    places = [f"--num_processes={ranks}", "--num_machines=1", "--main_process_port=0"]
    choices = ["--multi_gpu", "--mixed_precision=no", "--dynamo_backend=no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *choices, *places]
    return finished([*launcher, *arguments], **options)
