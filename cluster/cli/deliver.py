"""Bring a finished film to where `--out` says: one file, atomically, or a folder of PNG frames."""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

from farm.errors import InputError, Problem
from farm.film.film import CODEC_CONTAINERS
from farm.plan.plan import Plan
from farm.store.store import Store

MARKER = ".longtake-frames"  # says that a folder's PNG files are ours to replace
OURS = re.compile(r"\d{6,}\.png")
SUFFIXES = tuple(dict.fromkeys(f".{c}" for containers in CODEC_CONTAINERS.values() for c in containers))


@dataclass(frozen=True)
class Target:
    """Where the film goes; neither file nor folder where it stays in the store."""

    file: Path | None = None
    folder: Path | None = None

    @property
    def suffix(self) -> str:
        return self.file.suffix if self.file else ""


def read_target(out: str | None) -> Target:
    """Understand `--out`, and refuse what could not be written or would overwrite something of somebody's.

    Raises:
        InputError: an unknown container, a folder that holds other files, a place that cannot be written.
    """
    if out is None:
        return Target()
    path = Path(out).expanduser()
    if path.is_dir() or not path.suffix:
        _check_folder(path)
        return Target(folder=path)
    if path.suffix.lower() not in SUFFIXES:
        raise _fault(f"--out must be a folder or end in {', '.join(SUFFIXES)}, got {out}")
    if not path.parent.is_dir():
        raise _fault(f"--out must lie in a folder that exists, got {out}")
    _check_writable(path.parent)
    return Target(file=path)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise _fault(f"--out must be a folder or end in {', '.join(SUFFIXES)}, got the file {folder}")
    if not folder.is_dir():
        parent = folder.parent
        if not parent.is_dir():
            raise _fault(f"--out must lie in a folder that exists, got {folder}")
        _check_writable(parent)
        return
    _check_writable(folder)
    others = [f.name for f in folder.iterdir() if f.name != MARKER and not OURS.fullmatch(f.name)]
    is_export = (folder / MARKER).is_file()
    if others or (not is_export and any(folder.iterdir())):
        held = others[0] if others else next(folder.iterdir()).name
        raise _fault(f"--out must be a new or empty folder, or an earlier export of frames, got {folder} with {held}")


def _check_writable(folder: Path) -> None:
    """Try it: permissions alone do not tell (root, read-only mounts)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as e:
        raise _fault(f"--out must lie in a folder that can be written: {folder}: {e.strerror}") from None


def _fault(message: str) -> InputError:
    return InputError(Problem(message, "out"))


def deliver(target: Target, store: Store, plan: Plan, film: str) -> str:
    """Write the film where the target says. Returns its path: the file, the folder, or the film in the store."""
    if target.file:
        part = target.file.with_name(f".{target.file.name}.{uuid.uuid4().hex[:8]}.part")
        task = plan.tasks[plan.film]
        try:
            source = store.local_path_of(task)
            if source:
                shutil.copyfile(source, part)
            else:
                part.write_bytes(store.read(task))
            part.replace(target.file)
        finally:
            part.unlink(missing_ok=True)
        return str(target.file)
    if target.folder:
        write_frames(target.folder, store, plan)
        return str(target.folder)
    return film


def write_frames(folder: Path, store: Store, plan: Plan) -> None:
    """Unpack the stills, numbered through the film. The marker goes first, so that after a stop it is ours."""
    folder.mkdir(exist_ok=True)
    (folder / MARKER).write_text("frames written by longtake; this folder may be written again\n")
    for old in [f for f in folder.iterdir() if OURS.fullmatch(f.name)]:
        old.unlink()
    number = 0
    for key in plan.stills:
        task = plan.tasks[key]
        path = store.local_path_of(task)
        with zipfile.ZipFile(path if path else io.BytesIO(store.read(task))) as archive:
            for name in sorted(archive.namelist()):
                (folder / f"{number:06d}.png").write_bytes(archive.read(name))
                number += 1
