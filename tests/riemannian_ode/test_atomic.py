import os
import sys

import numpy as np
import pytest

from riemannian_ode.archive import write_arrays
from riemannian_ode.atomic import move_into_place, partial_folder, remove_partials, write_bytes, write_json


def write_folder(path, content):
    partial = partial_folder(path)
    (partial / "inside").mkdir(parents=True)
    (partial / "a.txt").write_text(content)
    (partial / "inside" / "b.txt").write_text(content)
    move_into_place(partial, path)


WRITERS = {
    "bytes": lambda path, content: write_bytes(path, content.encode()),
    "JSON": write_json,
    "arrays": lambda path, content: write_arrays(path, {"text": content, "numbers": np.arange(3)}),
    "folder": write_folder,
}


def contents(path):
    """The file's content, without the time stamps of an archive; ``None`` if it does not exist."""
    if path.is_dir():
        return {file.relative_to(path): file.read_text() for file in path.rglob("*") if file.is_file()}
    if path.suffix == ".npz" and path.exists():
        with np.load(path) as archive:
            return {name: archive[name].tolist() for name in archive.files}
    return path.read_text() if path.exists() else None


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("has_old", [False, True])
def test_a_writer_killed_at_any_operation_leaves_the_old_or_nothing(kind, has_old, tmp_path):
    write, name = WRITERS[kind], "a.npz" if kind == "arrays" else "a"
    (tmp_path / "new").mkdir()
    write(tmp_path / "new" / name, "new")
    new, old = contents(tmp_path / "new" / name), None
    found = []
    for operation in range(1, 99):
        path = tmp_path / str(operation) / name
        path.parent.mkdir()
        if has_old:
            write(path, "old")
            old = contents(path)
        child = os.fork()
        if not child:
            try:
                die_at(operation, path.parent)
                write(path, "new")
                os._exit(0)
            finally:
                os._exit(2)
        came_through = os.waitpid(child, 0)[1] == 0
        found.append(contents(path))
        remove_partials(path.parent)
        assert [left.name for left in path.parent.iterdir()] == ([] if found[-1] is None else [name])
        if came_through:
            break
    assert found[-1] == new
    assert found[0] == old
    assert all(there in (None, old, new) for there in found)
    if kind != "folder":  # a file is replaced in one step
        assert all(there in (old, new) for there in found)
    assert operation > 4


def die_at(operation, folder):
    """End this process, as kill -9 does, before its n-th operation on files of a folder."""
    left = operation

    def count(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(1)

    def audit(event, arguments):
        is_on_files = event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if is_on_files and str(arguments[0]).startswith((str(folder), "a", "b")):
            count()

    fsync = os.fsync
    os.fsync = lambda descriptor: (count(), fsync(descriptor))
    sys.addaudithook(audit)


@pytest.mark.parametrize("kind", WRITERS)
def test_content_and_name_are_on_the_disk(kind, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, path.exists())))
    path = tmp_path / ("a.npz" if kind == "arrays" else "a")
    WRITERS[kind](path, "new")
    # First the content, before it has its name; then the name.
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize("kind", ["bytes", "arrays"])
def test_a_full_disk_leaves_the_old_and_no_half(kind, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path = tmp_path / ("a.npz" if kind == "arrays" else "a")
    WRITERS[kind](path, "old")
    old = contents(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        WRITERS[kind](path, "new")
    assert contents(path) == old
    assert list(tmp_path.iterdir()) == [path]
