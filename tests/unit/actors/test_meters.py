"""The table of metrics is the README's."""

from __future__ import annotations

import re
from pathlib import Path

from actors.meters import TABLE

README = (Path(__file__).parents[3] / "README.md").read_text()


def test_the_readme_names_every_metric_with_its_tags() -> None:
    rows = re.findall(r"^\| (`ray_longtake_.+?) \| (\w+) \| (.*?) ?\| (.+) \|$", README, re.M)
    told = {
        name.removeprefix("ray_").removesuffix("_total"): (kind, tuple(filter(None, tags.split(", "))))
        for names, kind, tags, _ in rows for name in re.findall(r"`(.+?)`", names)
    }  # fmt: skip
    assert told == {name: (kind.replace("count", "counter"), tags) for name, (kind, _, tags) in TABLE.items()}
