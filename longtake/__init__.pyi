from cluster.cli.api import Film as Film
from cluster.cli.api import Planned as Planned
from cluster.cli.api import load_storyboard as load_storyboard
from cluster.cli.api import plan as plan
from cluster.cli.api import render as render
from cluster.client import Client as Client
from farm.errors import InputError as InputError
from farm.errors import RenderError as RenderError
from farm.film.storyboard import Storyboard as Storyboard
from pipelines.in_process import run_plan as run_plan

__all__: list[str]
__version__: str
