"""Step checkpoints: the newest whole one made by the same versions, and none once the artifact exists."""

from __future__ import annotations

from pathlib import Path

from farm.store.step_checkpoints import forget_steps, keep_step, read_step
from farm.store.store import Store

KEY = "ab" + 62 * "0"
OURS, OTHERS = {"torch": "2"}, {"torch": "3"}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*.safetensors"))


def test_a_newer_state_takes_the_place_of_older_ones(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert read_step(store, KEY, made_with=OURS) is None
    keep_step(store, KEY, 5, b"five", made_with=OURS)
    keep_step(store, KEY, 10, b"ten", made_with=OURS)
    assert read_step(store, KEY, made_with=OURS) == b"ten"
    assert len(names(tmp_path)) == 1
    keep_step(store, KEY, 7, b"seven", made_with=OURS)  # by a replica that was thought dead
    assert read_step(store, KEY, made_with=OURS) == b"ten"
    forget_steps(store, KEY)
    assert read_step(store, KEY, made_with=OURS) is None
    assert not list((tmp_path / "checkpoints").glob("*/*"))


def test_a_state_of_other_versions_is_not_used(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    keep_step(store, KEY, 5, b"five", made_with=OTHERS)
    assert read_step(store, KEY, made_with=OURS) is None


def test_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    keep_step(store, KEY, 5, b"five", made_with=OURS)
    (file,) = (tmp_path / "checkpoints").rglob("*.safetensors")
    other = file.with_name(file.name.replace("000005", "000009"))
    other.write_bytes(b"half of ni")
    (file.parent / "notes.txt").write_text("somebody's")
    assert read_step(store, KEY, made_with=OURS) == b"five"
    file.write_bytes(b"fi")
    assert read_step(store, KEY, made_with=OURS) is None
