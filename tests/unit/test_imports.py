"""Who may import whom (DESIGN.md, "Folders" and "Rooms"), enforced over the source and in fresh interpreters."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"farm", "actors", "pipelines", "cluster", "dashboards", "longtake"}
FARM = {"farm"} | {f"farm.{r}" for r in ("models", "film", "plan", "pools", "store", "service", "control", "worlds")}
ROOMS = {  # what a room may import of ours, itself apart; lazy imports and those for type checkers included
    "farm": set(),
    "farm.models": {"farm"},
    "farm.film": {"farm", "farm.models"},
    "farm.plan": {"farm", "farm.models", "farm.film"},
    "farm.pools": {"farm", "farm.models", "farm.plan"},
    "farm.store": {"farm", "farm.models", "farm.film", "farm.plan"},
    "farm.service": {"farm", "farm.film", "farm.store"},
    "farm.control": {"farm", "farm.plan", "farm.pools", "farm.store"},
    "farm.worlds": FARM,
    "pipelines": FARM,
    "pipelines.builtin": {*FARM, "pipelines", "pipelines.families"},
    "pipelines.families": {*FARM, "pipelines"},
    "dashboards": FARM,
    "actors": {*FARM, "pipelines"},
    "cluster": {*FARM, "actors"},
    "cluster.service": {*FARM, "actors", "cluster"},
    "cluster.http": {*FARM, "cluster", "cluster.service", "dashboards"},
    "cluster.cli": {*FARM, "actors", "cluster", "cluster.service", "cluster.http", "dashboards"},
    "longtake": {*FARM, "actors", "pipelines", "cluster", "cluster.service", "cluster.http", "cluster.cli"},
}
NOT_AT_MODULE_LEVEL = {  # by folder: what it imports inside functions at most
    "farm": {"huggingface_hub", "av"},
    "actors": {"torch", "pipelines"},
    "cluster": {"torch", "pipelines", "ray"},
    "longtake": {*OURS, "torch", "ray", "diffusers"} - {"longtake"},
}
NEVER = {
    "farm": {"ray", "torch", "diffusers", "transformers", "deepspeed"},
    "pipelines": {"ray"},
    "dashboards": {"ray", "torch"},
}


def source_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for folder in sorted(OURS) for path in source_files(folder)}


def room_of(module: str) -> str:
    """The longest row of the table that a module lies in."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    while package not in ROOMS:
        package = package.rpartition(".")[0]
    return package


@cache
def imports_of(path: Path, *, only_module_level: bool = False) -> tuple[str, ...]:
    """The full names of all modules that a file imports; one of ours is named to the file, not to the package."""
    return tuple(_imports_of(path, only_module_level=only_module_level))


def _imports_of(path: Path, *, only_module_level: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if only_module_level and node in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            yield from (names & MODULES.keys()) or {base}


def tops(names: tuple[str, ...]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", sorted({room_of(m) for m in MODULES}))
def test_a_room_imports_only_what_its_row_names(room: str) -> None:
    allowed = ROOMS[room] | {room}
    for module, path in MODULES.items():
        if room_of(module) == room:
            used = {name: room_of(name) for name in imports_of(path) if name in MODULES}
            wrong = {name for name, other in used.items() if other not in allowed}
            assert not wrong, f"{module} imports {wrong}"


def test_no_module_of_ours_is_imported_in_a_circle() -> None:
    graph = {module: {n for n in imports_of(path) if n in MODULES} - {module} for module, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


@pytest.mark.parametrize("folder", sorted(OURS))
def test_no_folder_imports_what_it_must_not(folder: str) -> None:
    for path in source_files(folder):
        wrong = NEVER.get(folder, set()) & tops(imports_of(path))
        early = NOT_AT_MODULE_LEVEL.get(folder, set()) & tops(imports_of(path, only_module_level=True))
        assert not wrong | early, f"{path.relative_to(ROOT)} imports {wrong | early}"


def run_without(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter in which importing these packages fails."""
    guard = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {packages!r}: raise ImportError('must not be imported: ' + name)
sys.meta_path.insert(0, Refuse())
"""
    return subprocess.run(
        [sys.executable, "-c", guard + code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


HEAVY = {"ray", "torch", "diffusers", "transformers", "deepspeed"}


def test_all_of_farm_works_where_torch_and_ray_cannot_be_imported() -> None:
    modules = [m for m in MODULES if m.split(".")[0] == "farm" and not m.endswith("__main__")]
    done = run_without(HEAVY, "\n".join(f"import {m}" for m in modules))
    assert done.returncode == 0, done.stderr


def test_plan_works_where_torch_and_ray_cannot_be_imported(tiny_wan: Path, tmp_path: Path) -> None:
    board = tmp_path / "film.yaml"
    board.write_text(f"model: {tiny_wan}\nsize: 64x48\nshots: [{{id: a, prompt: a ball, frames: 9}}]\n")
    words = ["plan", str(board), "--store", str(tmp_path / "s")]
    done = run_without(HEAVY, f"from cluster.cli.main import main\nsys.exit(main({words!r}))")
    assert done.returncode == 0, done.stderr
    assert "needs encode, denoise, decode, assemble" in done.stdout


def test_no_python_file_is_longer_than_400_lines() -> None:
    files = [path for folder in (*sorted(OURS), "tests", "docs") for path in source_files(folder)]
    assert len(files) > 200, "the tree was not found"
    assert {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400} == {}
