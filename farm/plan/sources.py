"""Files of the author as tasks: pictures and LoRAs, which lie in the store by their bytes."""

from __future__ import annotations

from farm.film.film import FilmImage, FilmLora
from farm.keys import make_task
from farm.task import SourceFile, Task


def source_task(file: FilmImage | FilmLora) -> Task:
    """The place of an author's file in the graph and in the store."""
    return make_task("encode", SourceFile(file.sha256), extension=file.extension)
