"""`farm models`: what the families can do, and what one checkpoint is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import tiny_families as tiny

from cluster.cli.tables import model_rows, model_table
from farm.errors import InputError
from farm.models.cards import PIPELINES


def test_the_table_has_every_pipeline_with_modes_contexts_and_memory() -> None:
    rows = model_rows(None)
    assert [row["model"] for row in rows] == ["builtin", *PIPELINES]
    by_name = {row["model"]: row for row in rows}
    assert by_name["WanVACEPipeline"]["modes"] == "text, image, first_last, frames, reference"
    assert by_name["StableVideoDiffusionPipeline"]["contexts"] == "last_frame"
    assert by_name["MochiPipeline"]["rule"] == "6n+1"
    lines = "\n".join(model_table(rows))
    for row in rows:
        assert row["model"] in lines
    assert "Wan2.2 A14B" in lines
    assert not {"builtin"} & by_name["WanPipeline"]["gib"].keys()


def test_one_checkpoint_tells_its_weights_and_how_long_shots_go(tmp_path: Path) -> None:
    text = tiny.save(partial(tiny.cogvideox, "CogVideoXPipeline"), tmp_path / "text")
    rows = model_rows(str(text))
    assert rows[0]["family"] == "cogvideox"
    held = sum(f.stat().st_size for f in (text / "transformer").glob("*.safetensors"))
    assert rows[0]["gib"]["denoise"] == pytest.approx(held / 2 / 2**30, rel=0.1)  # half of float32, but for the header
    assert "continuity.model" in "\n".join(model_table(rows, is_one=True))
    image = tiny.save(tiny.svd, tmp_path / "image")
    assert "last frame of a chunk only" in "\n".join(model_table(model_rows(str(image)), is_one=True))
    (image / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match=r"must be of a known pipeline class .*MochiPipeline.*, got 'FluxPipeline'"):
        model_rows(str(image))
