"""What is known of a checkpoint without torch."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm.models.checkpoint import _Remembered


def test_threads_share_one_table_of_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [tmp_path / f"{i}" for i in range(8)]
    for file in files:
        file.write_text(file.name)
    for _ in range(50):
        table, together = _Remembered(), threading.Barrier(len(files))

        def hash_one(file: Path, table: _Remembered = table, together: threading.Barrier = together) -> str:
            together.wait(10)
            return table.hash_of(file)

        with ThreadPoolExecutor(len(files)) as pool:
            prints = list(pool.map(hash_one, files))
        assert len(set(prints)) == len(files)
        assert len(table.known) == len(files)
