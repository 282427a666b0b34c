"""The author's files that a shot names: pictures and LoRAs, read, checked, and known by the hash of their bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from farm.document import Place, dotted
from farm.errors import InputError
from farm.film.chunks import Chunk, num_frames_of
from farm.film.film import FilmImage, FilmLora
from farm.film.ground import Ground, first_of
from farm.film.storyboard import Shot
from farm.models.card import ModelCard
from farm.models.checkpoint import Checkpoint, hash_file
from farm.models.loras import fit_lora, layers_of
from farm.models.safetensors import read_header

MAX_SHAPE_ERROR = 0.01  # of an image's proportions, before it counts as of another shape


def image_of(ground: Ground, where: Place, name: str | None, fit: str) -> FilmImage | None:
    """A picture of the author's, looked at and noted."""
    if name is None:
        return None
    from PIL import Image, ImageOps

    path = ground.draft.document.path_of(name)
    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw), formats=["PNG", "JPEG", "WEBP"]) as picture:
            picture.load()
            if getattr(picture, "n_frames", 1) > 1:
                ground.warn(where, f"{dotted(where)}: {name} is animated; its first picture is used")
            wide, high, kind = *ImageOps.exif_transpose(picture).size, str(picture.format).lower()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        if not any(p.key == dotted(where) for p in ground.draft.problems):  # else the schema has told why
            ground.fault(where, f"{dotted(where)} must be a picture that can be read, got {name!r}: {e}")
        return None
    width, height = ground.size
    if fit == "refuse" and abs(wide * height / (high * width) - 1) > MAX_SHAPE_ERROR:
        ground.fault(
            where,
            f"{dotted(where)} must have the film's proportions ({width}x{height}), got {wide}x{high}; or say "
            "image_fit: cover, contain or stretch",
        )
    digest = hashlib.sha256(raw).hexdigest()
    ground.files[digest] = path
    return FilmImage(digest, kind, fit)


def keyframes_of(
    ground: Ground, place: Place, shot: Shot, frames: int, chunks: Sequence[Chunk], ahead: ModelCard
) -> tuple[tuple[int, FilmImage], ...]:
    """The pictures in between, by frame."""
    made: dict[int, FilmImage] = {}
    end = frames - (shot.last_image is not None)
    for k, asked in enumerate(shot.keyframes or ()):
        where: Place = (*place, "keyframes", k)
        frame = num_frames_of(seconds=asked.at, fps=ground.fps)
        if not 0 < frame < end or frame in made:
            last = f"{(end - 1) / ground.fps:g}"
            told = f"{dotted(where)}.at must be above 0, at most {last}, and at another frame than others"
            ground.fault((*where, "at"), f"{told}, got {asked.at:g}")
            continue
        if any(c.first_frame <= frame for c in chunks[1:]) and "keyframes" not in ahead.modes:
            ground.fault(where, f"{dotted(where)} must not be there: {ahead.name}, which makes that part, takes none")
        if image := image_of(ground, (*where, "image"), asked.image, shot.image_fit):
            made[frame] = image
    return tuple(sorted(made.items()))


def references_of(ground: Ground, place: Place, shot: Shot) -> tuple[FilmImage, ...]:
    """The pictures of what shall be seen, in their order."""
    where, fit = (*place, "references"), "contain" if shot.image_fit == "refuse" else shot.image_fit
    made = [image_of(ground, (*where, k), name, fit) for k, name in enumerate(shot.references or ())]
    return tuple(image for image in made if image)


def loras_of(ground: Ground, place: Place, shot: Shot, model: Checkpoint) -> tuple[FilmLora, ...]:
    """The LoRAs of a shot, each held against the layers of the transformers that it is for."""
    card = model.card
    where: Place = (*place, "loras") if shot.loras is not None else ("loras",)
    experts = [c for c in card.components["denoise"] if c.startswith("transformer")]
    made: list[FilmLora] = []
    for k, asked in enumerate(first_of(shot.loras, ground.top.loras, [])):
        name, path = dotted((*where, k)), ground.draft.document.path_of(asked.path)
        targets, fault = tuple(asked.targets or experts), ""
        if not card.takes_loras:
            fault = f"{name} must not be there: diffusers loads none for {card.name}"
        elif asked.targets is None and len(experts) > 1:
            fault = f"{name}.for must say which expert it changes: {', '.join(experts)}, or both"
        elif set(targets) - set(experts):
            fault = f"{name}.for must be of {', '.join(experts)} for {card.name}, got {', '.join(targets)}"
        else:
            try:
                told = f"{name}.path {asked.path!r}"
                for target in targets:
                    if (model.name, asked.path, target) not in ground.loras:  # a film's are those of all its shots
                        header, layers = read_header(path, place=told), layers_of(Path(model.folder) / target)
                        fit = fit_lora(header, layers, card, place=told)
                        ground.loras[model.name, asked.path, target] = fit
            except (InputError, OSError) as e:
                fault = str(e) if isinstance(e, InputError) else f"{name}.path must be a file: {e}"
        if fault:
            ground.fault((*where, k), fault)
            continue
        for target in targets:
            fit = ground.loras[model.name, asked.path, target]
            if fit.left_out:
                told = f"{name}: {asked.path} changes {len(fit.layers)} layers of {target}"
                ground.warn((*where, k), f"{told}; left out: {fit.omissions}")
        digest = hash_file(path)
        ground.files[digest] = path
        if any(one.sha256 == digest and set(one.targets) & set(targets) for one in made):
            ground.fault((*where, k), f"{name} must not be there twice; say one weight")
        made.append(FilmLora(digest, asked.weight, targets))
    return tuple(made)
