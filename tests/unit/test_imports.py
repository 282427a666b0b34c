"""Who may import whom (DESIGN.md, "Folders"), enforced over the source and in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"farm", "actors", "pipelines", "cluster", "dashboards"}
NEVER = {  # anywhere in the folder's files
    "farm": {"ray", "torch", "diffusers", "transformers", "actors", "pipelines", "cluster", "dashboards"},
    "pipelines": {"ray", "actors", "cluster", "dashboards"},
    "actors": {"cluster", "dashboards"},
    "dashboards": {"ray", "torch", "pipelines", "actors", "cluster"},
    "cluster": set(),
}
NOT_AT_MODULE_LEVEL = {"actors": {"torch", "pipelines"}, "cluster": {"torch"}}


def imports_of(path: Path, *, only_module_level: bool) -> Iterator[str]:
    """The top-level packages that a file imports; lazy imports included unless told otherwise."""
    tree = ast.parse(path.read_text())
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if only_module_level and node in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", sorted(OURS))
def test_no_folder_imports_what_it_must_not(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        wrong = NEVER[folder] & set(imports_of(path, only_module_level=False))
        wrong |= NOT_AT_MODULE_LEVEL.get(folder, set()) & set(imports_of(path, only_module_level=True))
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


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


@pytest.mark.parametrize("module", sorted(p.stem for p in (ROOT / "farm").glob("*.py") if p.stem != "__init__"))
def test_farm_works_where_torch_and_ray_cannot_be_imported(module: str) -> None:
    done = run_without(HEAVY, f"import farm.{module}")
    assert done.returncode == 0, done.stderr


def test_plan_works_where_torch_and_ray_cannot_be_imported(tiny_wan: Path, tmp_path: Path) -> None:
    board = tmp_path / "film.yaml"
    board.write_text(f"model: {tiny_wan}\nsize: 64x48\nshots: [{{id: a, prompt: a ball, frames: 9}}]\n")
    code = f"from cluster.cli import main\nsys.exit(main(['plan', {str(board)!r}, '--store', {str(tmp_path / 's')!r}]))"
    done = run_without(HEAVY, code)
    assert done.returncode == 0, done.stderr
    assert "needs encode, denoise, decode, assemble" in done.stdout


def test_the_order_of_the_folders_has_no_cycle() -> None:
    order = ["farm", "pipelines", "actors", "dashboards", "cluster"]
    for folder in order:
        below = set(order[: order.index(folder) + 1])
        for path in (ROOT / folder).rglob("*.py"):
            assert OURS & set(imports_of(path, only_module_level=False)) <= below, path
