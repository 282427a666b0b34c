"""Shared fixtures. torch's waiting threads must not spin, and Ray must not talk to anybody."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)  # Ray reads it once per process
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("LONGTAKE_STORE", None)

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a time: here several share two cores, and some run only while others wait.
settings.register_profile("farm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("farm")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how long each test took, for whoever asked (tests/side_by_side.py). Workers of xdist leave it to the first
    process."""
    path = os.environ.get("LONGTAKE_DURATIONS")
    if path and report.when == "call" and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(path, "a") as out:
            out.write(json.dumps([report.duration, report.nodeid.rpartition("/")[2]]) + "\n")


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Wan checkpoint with the UniPC scheduler."""
    from tiny_checkpoints import make_wan

    return make_wan(tmp_path_factory.mktemp("checkpoints") / "wan")


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stages leave for others to take goes with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    from farm.models import checkpoint

    monkeypatch.setattr(checkpoint._remembered, "file", tmp_path_factory.getbasetemp() / "fingerprints.json")
