"""Pictures of all formats become what a person sees (docs/pictures.md)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from farm.task import Known
from pipelines.encode import as_rgb, fit_picture

FIELD = Path(__file__).parents[2] / "data" / "field" / "pictures"


def png(picture: Image.Image, **how: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **how)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["pal.png", "rgba_cutout.png"])
@pytest.mark.parametrize(("around", "ground"), [("black", 0), ("white", 255)])
def test_a_colour_under_transparency_is_never_seen(name: str, around: str, ground: int) -> None:
    with Image.open(FIELD / name) as picture:
        seen = np.asarray(picture.convert("RGBA"))
        rgb = np.asarray(as_rgb(picture, around=around))
    clear, solid = seen[..., 3] == 0, seen[..., 3] == 255
    assert clear.any() and solid.any()
    assert (seen[clear][:, :3] != ground).any()  # else nothing would be shown by this test
    assert (rgb[clear] == ground).all()
    assert (rgb[solid] == seen[solid][:, :3]).all()


def test_half_transparent_pixels_are_mixed_with_what_is_around() -> None:
    half = Image.new("RGBA", (2, 2), (200, 100, 50, 128))
    assert np.asarray(as_rgb(half))[0, 0].tolist() == [100, 50, 25]


def test_gray_of_16_bits_keeps_its_shades() -> None:
    shades = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    with Image.open(io.BytesIO(png(Image.fromarray(shades)))) as picture:
        rgb = np.asarray(as_rgb(picture))
    assert rgb[..., 0].ravel().tolist() == list(range(256))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_opaque_pictures_are_as_pillow_converts_them(mode: str) -> None:
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).convert(mode)
    assert np.array_equal(np.asarray(as_rgb(picture)), np.asarray(picture.convert("RGB")))


def test_the_stage_uses_it() -> None:
    data = png(Image.new("RGBA", (64, 48), (0, 255, 0, 0)))
    assert np.asarray(fit_picture(data, Known(64, 48), "cover")).max() == 0
    assert np.asarray(fit_picture(data, Known(64, 48), "cover", around="white")).min() == 255
