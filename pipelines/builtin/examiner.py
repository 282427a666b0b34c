"""What a clip of the built-in world shows, found by classical vision: the world's palette and outlines are known.

Sky and ground are read from their colours, the object from the pixels that its colours explain better than the
background's, its shape from the world's own outlines, motion and camera from how the layers scroll and how the object
lies. Frames are uint8 (T, H, W, C) of any size in the proportion 3:2, at 8 frames a second unless told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.builtin import world

Array = NDArray[Any]
SHADES = np.linspace(0.38, 1.08, 15)  # of the object's colour, from its dark marks to its lit side
NEAR = 0.10  # RGB distance within which a colour explains a pixel
SCAN = (slice(10, 58), slice(16, 80))  # rows and columns where objects may be
MIN_AREA_PX, SOFT_PX = 60, 1.5


@dataclass(frozen=True)
class Finding:
    """What one clip shows. Positions in px of 96x64, speeds in px a second; motion is `rolls left` or `right`."""

    colour: str
    shape: str
    motion: str
    ground: str
    sky: str
    camera: str
    seen: float  # share of the frames in which an object was found
    travel_px_s: float  # of the ground under the object, positive where it rolls to the right
    pan_px_s: float
    zoom_per_s: float  # growth of the object
    x_px: tuple[float, ...]  # the object's middle in each frame; nan where it was not found
    bottom_px: tuple[float, ...]
    area_px: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        lists = {k: [None if np.isnan(v) else round(v, 2) for v in getattr(self, k)] for k in LISTS}
        return asdict(self) | lists

    def agrees(self, prompt: str) -> dict[str, bool]:
        """Which parts of a prompt the clip shows. `rolls` is right in either direction; a zoom ends after seconds, so
        a camera that zooms in may also stand still."""
        asked = world.scene_of(prompt)
        said = {k: getattr(self, k) == getattr(asked, k) for k in ("colour", "shape", "ground", "sky", "camera")}
        said["motion"] = self.motion.startswith(asked.motion)
        return said


LISTS = ("x_px", "bottom_px", "area_px")


def examine(frames: NDArray[np.uint8], *, fps: float = world.FPS) -> Finding:
    """Examine one clip of at least three frames.

    Raises:
        ValueError: another shape, or fewer frames.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 3:
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T from 3, got shape {frames.shape}")
    size = (world.WIDTH, world.HEIGHT)
    small = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in np.ascontiguousarray(frames)]
    video = np.stack(small).astype(np.float32) / 255
    sky = _nearest(np.median(video[:, :6].reshape(-1, 3), 0), {k: np.array(v[0]) for k, v in world.SKIES.items()})
    ground = _nearest(_low_ground(video), {g: _ground_mean(g, sky) for g in world.GROUNDS})
    colour, masks = _find_object(video, sky, ground)
    tracks = np.array([_place(m) for m in masks])  # x, bottom, area
    seen = ~np.isnan(tracks[:, 0])
    pan, travel = _scroll(video, masks, fps)
    heights = masks.any(2).sum(1)[seen]
    zoom = min(_growth_per_s(0.5 * np.log(tracks[seen, 2]), fps, seen), _growth_per_s(np.log(heights), fps, seen))
    motion = _motion(video / world.object_tint(sky), masks, tracks, travel)
    shape = _shape_of(masks[seen][::2], spins=motion == "spins") if seen.any() else ""
    return Finding(
        colour=colour, shape=shape, ground=ground, sky=sky, seen=float(seen.mean()), travel_px_s=travel,
        motion=motion, camera=_camera(pan, zoom), pan_px_s=pan, zoom_per_s=zoom,
        **{k: tuple(float(v) for v in tracks[:, i]) for i, k in enumerate(LISTS)},
    )  # fmt: skip


# -- colours -----------------------------------------------------------------------------------------------------------


def _nearest(colour: Array, options: dict[str, Array]) -> str:
    return min(options, key=lambda k: float(np.sum((options[k] - colour) ** 2)))


def _tint(sky: str) -> Array:
    return np.array(world.SKIES[sky][2])


def _ground_mean(ground: str, sky: str) -> Array:
    return np.asarray(np.mean(world.GROUNDS[ground], axis=0) * 1.05 * _tint(sky))


def _low_ground(video: Array) -> Array:
    """The middle colour of the lowest rows, below the object's contact and the road's edge line."""
    return np.asarray(np.median(video[:, 57:60].reshape(-1, 3), 0))


@cache
def _background(sky: str, ground: str) -> Array:
    """Colours that the background can have: (N, 3)."""
    top, low, tint = (np.array(c) for c in world.SKIES[sky])
    ramp = np.linspace(0, 1, 9)[:, None]
    gradient = top + (low - top) * ramp
    light, dark = (np.array(c) for c in world.GROUNDS[ground])
    earth = [(dark + (light - dark) * ramp) * k * tint for k in (0.86, 0.92, 0.98, 1.03, 1.08)]
    sun = {"day": (1, 0.97, 0.8), "sunset": (1, 0.85, 0.42), "night": (0.92, 0.93, 0.85)}[sky]
    glow = [gradient + (np.array(sun) - gradient) * k for k in (0.35, 0.7, 1.0)]
    cloud: list[tuple[float, float, float]] = {"day": [(1.0, 1.0, 1.0)], "sunset": [(1.0, 0.72, 0.62)], "night": []}[
        sky
    ]
    clouds = [gradient + (np.array(c) - gradient) * k for c in cloud for k in (0.4, 0.75)]
    hill = [np.array(world.HILLS[ground])[None] * tint]
    things = {
        "grass": [(0.36, 0.24, 0.14), (0.16, 0.42, 0.16)], "snow": [(0.36, 0.24, 0.14), (0.16, 0.36, 0.30)],
        "sand": [(0.24, 0.48, 0.26)], "road": [(0.22, 0.22, 0.25)],
    }[ground]  # fmt: skip
    paint = np.array((0.95, 0.93, 0.85))
    road = [(dark + (light - dark) * k) * 0.95 for k in (0.0, 0.5, 1.0)] if ground == "road" else []
    lines = [(r + (paint - r) * ramp) * tint for r in road]  # their edges are soft
    lamp = [np.array((1.0, 0.93, 0.65))[None]] if ground == "road" else []
    scenery = [np.array(c)[None] * tint for c in things]
    shadow = [e * k for e in earth for k in (0.55, 0.75)]
    found = np.concatenate([gradient, *earth, *glow, *clouds, *hill, *scenery, *lines, *lamp, *shadow])
    return np.asarray(np.clip(found, 0, 1))


def _distance(pixels: Array, colours: Array) -> Array:
    """From each pixel (N, 3) to the nearest colour (M, 3)."""
    p, c = pixels.astype(np.float32), colours.astype(np.float32)
    squared = (p**2).sum(1)[:, None] + (c**2).sum(1)[None] - 2 * p @ c.T
    return np.asarray(np.sqrt(np.maximum(squared.min(1), 0)))


def _find_object(video: Array, sky: str, ground: str) -> tuple[str, NDArray[np.bool_]]:
    """The colour whose shades explain most of one connected patch, and the patch in every frame (T, H, W)."""
    rows, columns = SCAN
    crop = video[:, rows, columns]
    pixels = crop.reshape(-1, 3)
    tint = world.object_tint(sky)
    shades = {c: np.clip(np.array(rgb) * SHADES[:, None], 0, 1) * np.asarray(tint) for c, rgb in world.COLOURS.items()}
    others = _distance(pixels, _background(sky, ground))
    distances = {c: _distance(pixels, s) for c, s in shades.items()}
    best = np.min(list(distances.values()), axis=0)
    found: dict[str, NDArray[np.bool_]] = {}
    for colour, d in distances.items():
        mine = ((d < NEAR) & (d < 0.8 * others) & (d <= best)).reshape(crop.shape[:3])
        whole = np.zeros(video.shape[:3], bool)
        for t, mask in enumerate(mine):
            whole[t, rows, columns] = _largest_patch(mask)
        found[colour] = whole
    colour = max(found, key=lambda c: float(np.median(found[c].sum((1, 2)))) + float(found[c].sum()) * 1e-6)
    return colour, found[colour]


def _largest_patch(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected patch with its holes filled (marks, windows); nothing where it is too small."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed)
    if count < 2:
        return np.zeros_like(mask)
    left, right = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_LEFT] + stats[:, cv2.CC_STAT_WIDTH]
    areas = np.where((left > 0) & (right < mask.shape[1]), stats[:, cv2.CC_STAT_AREA], 0)  # scenery runs out of view
    largest = 1 + int(np.argmax(areas[1:]))
    if areas[largest] == 0:
        return np.zeros_like(mask)
    patch = (labels == largest).astype(np.uint8)
    edges, _ = cv2.findContours(patch, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(patch, edges, -1, 1, cv2.FILLED)
    return np.asarray(patch.astype(bool) if patch.sum() >= MIN_AREA_PX else np.zeros_like(mask))


def _place(mask: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The middle column, the lowest row and the area of a patch."""
    if not mask.any():
        return (np.nan, np.nan, np.nan)
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5), float(rows.max() + 1), float(mask.sum())


# -- shape -------------------------------------------------------------------------------------------------------------


@cache
def _outlines(shape: str, *, spins: bool) -> NDArray[np.float32]:
    """The shape's outlines at some sizes and all attitudes that it has, each centred in 48x48: (N, 48, 48)."""
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    none = np.zeros_like(turns)
    upright = (none[:1], none[:1])
    if spins:
        pairs = {"cube": [(none[:6], turns[:6] / 4 + 0.02)], "car": [(none, turns)]}.get(shape, [upright])
    else:
        pairs = {"cube": [(turns[:6] / 2, none[:6])], "cone": [(turns[:8], none[:8]), upright]}.get(shape, [upright])
    out = []
    for radius in (8.0, 9.0, 10.0, 11.5, 13.0):
        for facing in (1, -1) if shape == "car" else (1,):
            for a, b in pairs:
                drawn = world.silhouettes(shape, radius=radius, turns=a, spins=b, facing=facing)
                soft = [cv2.GaussianBlur(m, (0, 0), SOFT_PX) for m in drawn]  # thin tips go where pictures are soft
                out += [_centred(m > 0.5) for m in (*drawn, *soft)]
    return np.stack(out)


def _centred(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The patch moved so that its box's middle lies in the middle of 48x48, slightly blurred."""
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1][:46, :46]
    out = np.zeros((48, 48), np.float32)
    top, left = (48 - box.shape[0]) // 2, (48 - box.shape[1]) // 2
    out[top : top + box.shape[0], left : left + box.shape[1]] = box
    return np.asarray(cv2.GaussianBlur(out, (0, 0), 0.7), dtype=np.float32)


def _shape_of(masks: NDArray[np.bool_], *, spins: bool) -> str:
    """The shape whose outlines cover the patches best: intersection over union, mean over frames."""
    seen = np.stack([_centred(m) for m in masks]).reshape(len(masks), -1)

    def cover(shape: str) -> float:
        outlines = _outlines(shape, spins=spins).reshape(-1, seen.shape[1])
        shared = np.minimum(seen[:, None], outlines[None]).sum(-1)
        total = np.maximum(seen[:, None], outlines[None]).sum(-1)
        return float((shared / total).max(1).mean())

    return max(world.SHAPES, key=cover)


# -- motion ------------------------------------------------------------------------------------------------------------


SHIFTS = np.arange(-12, 12.01, 0.25)  # px between two frames LAG apart
LAG = 3
ZOOMS = (1.0, 1.15, 1.3, 1.45)


def _row_costs(video: Array, masks: NDArray[np.bool_]) -> Array:
    """How badly each row, moved by each of SHIFTS, explains the row LAG frames later: (H, shifts), object left out."""
    video, free = video[::LAG], ~_grown(masks[::LAG])
    columns = np.arange(video.shape[2])
    costs = np.zeros((video.shape[1], len(SHIFTS)))
    for i, shift in enumerate(SHIFTS):
        at = columns + shift
        inside = (at >= 0) & (at <= video.shape[2] - 1)
        low = np.clip(np.floor(at).astype(int), 0, video.shape[2] - 2)[inside]
        part = (at[inside] - low)[None, None, :, None]
        moved = video[:-1, :, low] * (1 - part) + video[:-1, :, low + 1] * part
        weight = free[:-1, :, low] & free[1:, :, inside]
        error = ((moved - video[1:, :, inside]) ** 2).sum(-1) * weight
        costs[:, i] = error.sum((0, 2)) / np.maximum(weight.sum((0, 2)), 1)
    return costs


def _scroll(video: Array, masks: NDArray[np.bool_], fps: float) -> tuple[float, float]:
    """Pan of the camera and travel of the ground beyond it, px a second, that together explain best how all rows move.

    Each row moves by pan + its share of travel (`world._land`); a zoom scales both and moves the rows.
    """
    costs = _row_costs(video, masks)
    near = (world.CONTACT_PX - world.HORIZON_PX) / (world.HEIGHT - world.HORIZON_PX)
    rows = np.arange(world.HEIGHT) + 0.5
    best = (np.inf, 0.0, 0.0)
    pans, travels = np.arange(-4.5, 4.51, 0.25), np.arange(-6, 6.01, 0.25)
    pan, travel = (g.ravel() for g in np.meshgrid(pans, travels, indexing="ij"))
    for zoom in ZOOMS:
        y = (rows - 46) / zoom + 46
        v = (y - world.HORIZON_PX) / (world.HEIGHT - world.HORIZON_PX)
        share = np.where(y > 37, 0.4 + 0.6 * v / near, np.where(y > 28, 0.4, 0.0))
        used = np.nonzero((y < 20) | ((y > 28) & (y < world.HORIZON_PX)) | (y > 37))[0]
        total = np.zeros(len(pan))
        for row in used:
            total += np.interp(zoom * (pan + share[row] * travel), SHIFTS, costs[row])
        i = int(np.argmin(total + 1e-9 * (pan**2 + travel**2)))
        if total[i] / len(used) < best[0] * (1 if zoom == 1 else 0.9):
            best = (total[i] / len(used), float(pan[i]), float(travel[i]))
    return best[1] * fps / LAG, best[2] * fps / LAG


def _grown(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    kernel = np.ones((5, 7), np.uint8)
    return np.stack([cv2.dilate(m.astype(np.uint8), kernel) for m in masks]).astype(bool)


def _growth_per_s(log_sizes: Array, fps: float, seen: Array) -> float:
    """Slope over time. Turning changes the height of a cube and the area of a car, so both must grow in a zoom."""
    if len(log_sizes) < 4:
        return 0.0
    return float(np.polyfit(np.nonzero(seen)[0] / fps, log_sizes, 1)[0])


def _camera(pan: float, zoom: float) -> str:
    if abs(pan) > 4.0:
        return "pans right" if pan > 0 else "pans left"
    return "zooms in" if zoom > 0.025 else ""


def _motion(video: Array, masks: NDArray[np.bool_], tracks: Array, travel: float) -> str:
    bottoms = tracks[~np.isnan(tracks[:, 1]), 1]
    if len(bottoms) < 2:
        return ""
    height = world.CONTACT_PX - bottoms
    if np.ptp(height) > 8.5:
        return "bounces"
    if np.median(height) > 5:
        return "floats"
    if abs(travel) > 4:
        return "rolls right" if travel > 0 else "rolls left"
    return "spins" if _stir(video, masks) > STIR else "stands"


STIR = 0.030  # on 80 clips from the autoencoder: at least 0.05 where objects spin, at most 0.023 where they stand


def _stir(video: Array, masks: NDArray[np.bool_]) -> float:
    """Mean change of colour over half a second inside the object: a turn adds up, a flicker does not."""
    lag = min(4, len(video) - 1)
    inside = masks[lag:] & masks[:-lag]
    change = np.abs(video[lag:] - video[:-lag]).mean(-1)
    return float(change[inside].mean()) if inside.any() else 0.0
