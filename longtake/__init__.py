"""Longtake: a storyboard becomes a film. The names that people import; each is loaded when it is first used.

    import longtake
    film = longtake.render("film.yaml", out="film.mp4")

docs/python.md has more. The command line is `farm`, or `python -m longtake`.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Client",
    "Film",
    "InputError",
    "Planned",
    "RenderError",
    "Storyboard",
    "__version__",
    "load_storyboard",
    "plan",
    "render",
    "run_plan",
]

_HOMES = {
    "Client": "cluster.client",
    "Film": "cluster.cli.api",
    "InputError": "farm.errors",
    "Planned": "cluster.cli.api",
    "RenderError": "farm.errors",
    "Storyboard": "farm.film.storyboard",
    "load_storyboard": "cluster.cli.api",
    "plan": "cluster.cli.api",
    "render": "cluster.cli.api",
    "run_plan": "pipelines.in_process",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("longtake")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'longtake' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
