"""Optimizer state in a checkpoint: one file, or for several ranks a folder of torch.distributed.checkpoint.

A checkpoint cannot run code: files load with ``weights_only=True``, and the folder's index, a pickle that torch would
load unchecked, may only name the classes of such an index.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded
from torch.distributed.tensor import DTensor

from lite import LITEOptimizer
from riemannian_ode.checks import one_line

_WHOLE, _SHARDED = "optimizer.pt", "optimizer"
_OLD_ENDINGS = (".first_moment", ".m")  # state names of AdamW groups and of SOAP
_HARMLESS = {("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath")}


def saved_optimizer(folder: Path) -> str:
    """Name of the file or folder in a checkpoint."""
    return _SHARDED if (folder / _SHARDED).is_dir() else _WHOLE


def save_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: Path, *, is_first_rank: bool
) -> None:
    """Write the optimizer's state into a checkpoint; every rank calls it.

    Args:
        optimizer: Without accelerate's wrapper.
        model: Its parameters'.
        folder: The checkpoint.
        is_first_rank: Whether this rank writes the state that all ranks have.
    """
    if _is_divided(optimizer, model):
        with _ordinary_errors():
            save_sharded(_state(optimizer, model), checkpoint_id=folder / _SHARDED)
    elif is_first_rank:
        torch.save(optimizer.state_dict(), folder / _WHOLE)


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, folder: Path, *, device: torch.device
) -> None:
    """Load state written by any number of ranks; every rank calls it.

    Args:
        optimizer: Without accelerate's wrapper.
        model: Its parameters'.
        folder: The checkpoint.
        device: Device of this rank.

    Raises:
        ValueError: for state of AdamW groups or SOAP written by several ranks with version 0.1.0.
    """
    if saved_optimizer(folder) == _WHOLE:
        optimizer.load_state_dict(torch.load(folder / _WHOLE, map_location=device, weights_only=True))
        return
    reader = _PlainReader(folder / _SHARDED)
    _refuse_old(reader.read_metadata())  # torch would log a traceback for an unreadable index
    state = _state(optimizer, model)
    with _ordinary_errors():
        load_sharded(state, storage_reader=reader, planner=_PlainPlanner())
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def _state(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, Any]:
    """This rank's part of the state; missing parts are initialised."""
    if isinstance(optimizer, LITEOptimizer):
        optimizer.init_state()
    return {"optimizer": get_optimizer_state_dict(model, optimizer)}


def _refuse_old(metadata: Metadata) -> None:
    """Refuse state with different names in version 0.1.0, for which torch would only report missing keys."""
    for key in metadata.state_dict_metadata:
        if key.endswith(_OLD_ENDINGS):
            raise ValueError(
                f"several ranks wrote it with version 0.1.0 ({one_line(key, 80)}), whose state has other names; "
                "continue with that version, or from a checkpoint of one process, which is converted"
            )


def _is_divided(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> bool:
    """Whether ranks have different parts of the state."""
    if isinstance(optimizer, LITEOptimizer) and optimizer.is_divided:
        return True
    return isinstance(next(model.parameters()), DTensor)


@contextmanager
def _ordinary_errors() -> Iterator[None]:
    """Raise the first rank's error instead of torch's error, which is not an ``Exception``."""
    try:
        yield
    except CheckpointException as problem:
        rank, (first, _) = min(problem.failures.items())
        raise RuntimeError(f"rank {rank}: {first}") from problem


class _PlainReader(FileSystemReader):
    """torch's reader with an index that cannot run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata = _IndexUnpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(".metadata is not an index of torch.distributed.checkpoint")
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if module == dcp_metadata.__name__ and "." not in name:
            found = getattr(dcp_metadata, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        if (module, name) == (_StorageInfo.__module__, _StorageInfo.__name__):
            return _StorageInfo
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} may not be in .metadata")


class _PlainPlanner(DefaultLoadPlanner):
    """torch's planner with numbers and strings that cannot run code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises for anything except plain data
        value.seek(0)
        super().load_bytes(read_item, value)
