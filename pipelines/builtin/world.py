"""The world that the built-in model knows: captioned videos drawn by formula, and the language of their captions.

A `Scene` is one sentence of the language plus the accidents of a seed (where, how large, how fast). `render` draws
any stretch of its time, so that motions go on for ever: whatever travels is followed by the camera, and the scenery
passes by in parallax. Every edge is a signed distance turned into coverage, so pictures are anti-aliased as drawn.

Axes: T frames, H rows, W columns, C colour channels; distances in pixels of a 96x64 frame, times in seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FPS = 96, 64, 8
HORIZON_PX = 35.0
CONTACT_PX = 54.0  # the row on which objects touch the ground

COLOURS = {
    "red": (0.90, 0.13, 0.12),
    "orange": (0.98, 0.55, 0.06),
    "yellow": (0.98, 0.88, 0.12),
    "green": (0.10, 0.72, 0.22),
    "blue": (0.12, 0.30, 0.92),
    "purple": (0.58, 0.16, 0.80),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("ball", "cube", "cone", "car")
MOTIONS = ("rolls", "rolls left", "rolls right", "bounces", "floats", "spins", "stands")
GROUNDS = {
    "grass": ((0.36, 0.62, 0.22), (0.24, 0.47, 0.15)),
    "sand": ((0.90, 0.78, 0.50), (0.80, 0.64, 0.36)),
    "snow": ((0.93, 0.95, 0.98), (0.76, 0.84, 0.93)),
    "road": ((0.40, 0.40, 0.42), (0.30, 0.30, 0.33)),
}
SKIES = {  # top colour, colour at the horizon, tint of all that lies below
    "day": ((0.25, 0.55, 0.92), (0.72, 0.88, 0.98), (1.0, 1.0, 1.0)),
    "sunset": ((0.42, 0.22, 0.50), (1.00, 0.58, 0.26), (1.0, 0.82, 0.70)),
    "night": ((0.02, 0.03, 0.12), (0.10, 0.14, 0.32), (0.40, 0.46, 0.66)),
}
CAMERAS = ("", "pans left", "pans right", "zooms in")
HILLS = {
    "grass": (0.28, 0.50, 0.34),
    "sand": (0.78, 0.58, 0.38),
    "snow": (0.70, 0.78, 0.90),
    "road": (0.45, 0.50, 0.56),
}

SYNONYMS = {
    "crimson": "red", "scarlet": "red", "gold": "yellow", "golden": "yellow", "violet": "purple", "azure": "blue",
    "sphere": "ball", "box": "cube", "block": "cube", "pyramid": "cone", "automobile": "car", "vehicle": "car",
    "roll": "rolls", "rolling": "rolls", "drives": "rolls", "bounce": "bounces", "bouncing": "bounces",
    "jumps": "bounces",
    "float": "floats", "floating": "floats", "hovers": "floats", "spin": "spins", "spinning": "spins", "turns": "spins",
    "stand": "stands", "standing": "stands", "rests": "stands", "lawn": "grass", "meadow": "grass", "desert": "sand",
    "beach": "sand", "street": "road", "asphalt": "road", "noon": "day", "daylight": "day", "dusk": "sunset",
    "evening": "sunset", "midnight": "night", "pan": "pans", "panning": "pans", "zoom": "zooms", "zooming": "zooms",
}  # fmt: skip
MIDDLE = "continued"  # ends the prompt of what is generated in the middle of a stream
GLUE = ("a", "an", "the", "over", "on", "at", "in", "camera", "left", "right", "pans", "zooms", MIDDLE)
VOCABULARY = tuple(
    dict.fromkeys([*GLUE, *COLOURS, *SHAPES, *(w for m in MOTIONS for w in m.split()), *GROUNDS, *SKIES])
)


@dataclass(frozen=True)
class Scene:
    """One sentence of the language and the accidents that a seed adds to it."""

    colour: str
    shape: str
    motion: str
    ground: str
    sky: str
    camera: str = ""
    seed: int = 0

    @property
    def caption(self) -> str:
        end = f", camera {self.camera}" if self.camera else ""
        return f"a {self.colour} {self.shape} {self.motion} over {self.ground} at {self.sky}{end}"


def words_of(prompt: str) -> tuple[list[str], list[str]]:
    """Split a prompt into the words of the vocabulary (synonyms replaced) and the words that are not in it."""
    words = [SYNONYMS.get(w, w) for w in re.findall(r"[a-z]+", prompt.lower())]
    return [w for w in words if w in VOCABULARY], [w for w in words if w not in VOCABULARY]


def scene_of(prompt: str, *, seed: int = 0) -> Scene:
    """Read a prompt; what it does not say is the first choice of each list (red ball rolls over grass at day)."""
    words, _ = words_of(prompt)
    text = " ".join(words)
    head, _, tail = text.partition("camera")

    def first(options: tuple[str, ...], within: str) -> str:
        found = [(within.find(o), -len(o), o) for o in options if o and re.search(rf"\b{o}\b", within)]
        return min(found)[2] if found else options[0]

    return Scene(
        colour=first(tuple(COLOURS), head),
        shape=first(SHAPES, head),
        motion=first(MOTIONS, head),
        ground=first(tuple(GROUNDS), head),
        sky=first(tuple(SKIES), text),
        camera=first(CAMERAS, tail),
        seed=seed,
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """One scene at random; half of all scenes have a camera that does not turn or zoom."""
    return Scene(
        colour=str(rng.choice(list(COLOURS))),
        shape=str(rng.choice(SHAPES)),
        motion=str(rng.choice(MOTIONS)),
        ground=str(rng.choice(list(GROUNDS))),
        sky=str(rng.choice(list(SKIES))),
        camera=str(rng.choice(CAMERAS, p=[0.55, 0.15, 0.15, 0.15])),
        seed=int(rng.integers(2**31)),
    )


Array = NDArray[Any]  # float32


def _cover(distance: Array) -> Array:
    """Coverage of a pixel whose centre lies `distance` px outside an edge, which is two pixels soft."""
    inside = np.clip(0.5 - distance / 2, 0.0, 1.0)
    return np.asarray(inside * inside * (3 - 2 * inside))


def _over(image: Array, alpha: Array, colour: Array) -> Array:
    return np.asarray(image + alpha[..., None] * (colour - image))


def _wrap(x: Array, period: float) -> Array:
    return np.asarray((x + period / 2) % period - period / 2)


@dataclass(frozen=True)
class Path:
    """Where everything is at each time: all arrays have shape (T, 1, 1)."""

    travel: Array  # px that the object has rolled, to the right
    pan: Array  # px that the camera has turned, to the right
    zoom: Array
    x: Array
    height: Array  # px of the object's lowest point above the ground
    turn: Array  # rad, positive rolls to the right
    spin: Array  # rad about the vertical axis


def path_of(scene: Scene, times_s: NDArray[np.float64]) -> tuple[Path, float, int]:
    """The scene's geometry over time, the object's radius in px, and the direction it faces (1 right, -1 left)."""
    rng = np.random.default_rng(scene.seed)
    radius, phase, speed = rng.uniform(8.5, 10.5), rng.uniform(0, 2 * np.pi), rng.uniform(9.0, 13.0)
    x0, sway_px = rng.uniform(40, 56), rng.uniform(2, 5)
    facing = {"rolls left": -1, "rolls right": 1}.get(scene.motion, 1 if rng.random() < 0.5 else -1)
    t = times_s[:, None, None].astype(np.float32)
    rolls = scene.motion.startswith("rolls")
    travel = facing * speed * t if rolls else 0 * t
    turning = {"pans left": -1.0, "pans right": 1.0}.get(scene.camera, 0.0)
    pan = turning * rng.uniform(7.0, 10.0) * t
    zoom = 1 + (0.45 * (1 - np.exp(-t / 4.0)) if scene.camera == "zooms in" else 0 * t)
    beat_s = rng.uniform(1.6, 2.0)
    height = {
        "bounces": 13 * np.abs(np.sin(np.pi * t / beat_s + phase)),
        "floats": 11 + 3 * np.sin(2 * np.pi * t / 3.2 + phase),
    }.get(scene.motion, 0 * t)
    x = x0 + (sway_px * np.sin(2 * np.pi * t / 6.0 + phase) if rolls or scene.motion == "floats" else 0 * t)
    spin = facing * (2 * np.pi * t / 3.6) if scene.motion == "spins" else 0 * t
    path = Path(*(np.asarray(a, dtype=np.float32) for a in (travel, pan, zoom, x, height, travel / radius, spin)))
    return path, float(radius), facing


def _object(scene: Scene, path: Path, radius: float, facing: int, x: Array, y: Array, image: Array) -> Array:
    """Draw the object and its shadow into `image` (T, H, W, C); x and y are the (zoomed) pixel coordinates."""
    fade = 1 / (1 + path.height / 9)
    shade = np.exp(-((((x - path.x) / (radius * 1.05)) ** 2 + ((y - CONTACT_PX) / 2.4) ** 2) ** 2))
    image = _over(image, 0.5 * fade * shade, np.zeros(3, np.float32))
    alpha, colour = _figure(scene, path, radius, facing, x, y)
    return _over(image, alpha, np.clip(colour, 0, 1) * object_tint(scene.sky))


def object_tint(sky: str) -> Array:
    return np.asarray(0.35 + 0.65 * np.array(SKIES[sky][2], np.float32))


def _figure(scene: Scene, path: Path, radius: float, facing: int, x: Array, y: Array) -> tuple[Array, Array]:
    """The object alone: its coverage (T, H, W) and its colour (T, H, W, C) by daylight."""
    base = np.array(COLOURS[scene.colour], np.float32)
    dark = base * 0.55
    spins = scene.motion == "spins"
    dx = (x - path.x) / radius
    ground = CONTACT_PX - path.height
    colour: Array
    if scene.shape == "ball":
        dy = (y - ground + radius) / radius
        r = np.sqrt(dx**2 + dy**2)
        alpha = _cover((r - 1) * radius)
        u = dx * np.cos(path.turn) + dy * np.sin(path.turn)
        longitude = np.arcsin(np.clip(u / np.sqrt(np.clip(1 - dy**2, 0.05, 1)), -1, 1)) + path.spin
        mark = np.cos(2 * longitude) - 0.45 if spins else 0.30 - np.abs(u)
        colour = base + (dark - base) * np.clip(0.5 + mark * radius * 0.6, 0, 1)[..., None]
        light = 1.08 - 0.38 * np.clip(np.hypot(dx + 0.35, dy + 0.4), 0, 1.4)
    elif scene.shape == "cube":
        half = 0.84
        lift = half * (np.abs(np.cos(path.turn)) + np.abs(np.sin(path.turn)))
        dy = (y - ground) / radius + lift
        u = dx * np.cos(path.turn) + dy * np.sin(path.turn)
        v = dy * np.cos(path.turn) - dx * np.sin(path.turn)
        a = path.spin % (np.pi / 2)
        wide = half * (np.cos(a) + np.sin(a))
        alpha = _cover((np.maximum(np.abs(u) - wide, np.abs(v) - half)) * radius)
        edge = -wide + 2 * half * np.sin(a)  # two faces meet here while it spins
        face = _cover((u - edge) * radius)
        inner = _cover((np.maximum(np.abs(u), np.abs(v)) - 0.5) * radius)
        colour = base + (dark - base) * (0.75 * face if spins else 0.55 * inner)[..., None]
        light = 1.04 - 0.16 * np.clip(v + 0.3, -0.5, 1)
    elif scene.shape == "cone":
        rock = 0.16 * np.sin(path.turn * 1.5)
        dx = dx - rock * ((ground - y) / radius)
        up = (ground - y) / (2.0 * radius)  # 0 at the base, 1 at the apex
        wide = 0.95 * (1 - up)
        alpha = _cover((np.abs(dx) - wide) * radius * 0.9) * _cover(-up * 2 * radius) * _cover((up - 1) * 2 * radius)
        longitude = np.arcsin(np.clip(dx / np.clip(wide, 0.08, None), -1, 1)) - path.turn - path.spin
        colour = base + (dark - base) * np.clip(0.5 + (np.sin(3 * longitude) - 0.2) * 2.2, 0, 1)[..., None]
        light = 1.02 - 0.22 * dx
    else:
        squeeze = np.cos(path.spin)
        squeeze = np.where(np.abs(squeeze) < 0.3, 0.3 * np.sign(squeeze + 1e-6), squeeze)
        u = dx * facing / (1.25 * squeeze)
        v = (y - ground) / radius  # -1.5 roof, 0 road
        body = np.maximum(np.abs(u) - 1.0, np.abs(v + 0.58) - 0.32)
        cabin = np.maximum(np.abs(u + 0.12) - 0.58 - 0.35 * (v + 1.1), np.abs(v + 1.15) - 0.32)
        pane = np.maximum(np.abs(u + 0.10) - 0.42 - 0.35 * (v + 1.1), np.abs(v + 1.12) - 0.17)
        alpha = _cover(np.minimum(body, cabin) * radius)
        colour = base + np.zeros((*dx.shape, 1), np.float32)
        colour = _over(colour, _cover(pane * radius), np.array((0.55, 0.75, 0.88), np.float32) * 0.8)
        lamp = _cover((np.hypot(u - 0.9, v + 0.66) - 0.2) * radius)
        colour = _over(colour, lamp, np.array((1.0, 0.95, 0.6), np.float32))
        for wheel in (-0.55, 0.55):
            wx, wy = (u - wheel) * np.abs(1.25 * squeeze), v + 0.30
            tyre = _cover((np.hypot(wx, wy) - 0.34) * radius)
            hub = tyre * _cover((np.hypot(wx, wy) - 0.20) * radius)
            colour = _over(_over(colour, tyre, np.full(3, 0.08, np.float32)), hub, np.full(3, 0.8, np.float32))
            alpha = np.maximum(alpha, tyre)
        light = 1.0 - 0.15 * v - 0.1
    return np.asarray(alpha), colour * light[..., None]


def silhouettes(shape: str, *, radius: float, turns: NDArray[Any], spins: NDArray[Any], facing: int = 1) -> Array:
    """Outlines of a shape, one for each pair of rad turned and spun: coverage (T, H, W), standing at column 48."""
    still = np.zeros((len(turns), 1, 1), np.float32)
    turn, spin = (np.asarray(a, np.float32)[:, None, None] for a in (turns, spins))
    path = Path(still, still, still + 1, still + WIDTH / 2, still, turn, spin)
    x, y = np.meshgrid(np.arange(WIDTH, dtype=np.float32) + 0.5, np.arange(HEIGHT, dtype=np.float32) + 0.5)
    scene = Scene("red", shape, "spins" if spins.any() else "rolls", "grass", "day")
    return _figure(scene, path, radius, facing, x[None], y[None])[0]


def _sky(scene: Scene, pan: Array, drift: Array, x: Array, y: Array, rng: np.random.Generator) -> Array:
    top, low, _ = (np.array(c, np.float32) for c in SKIES[scene.sky])
    up = np.clip(y / HORIZON_PX, 0, 1)[..., None]
    image = (top + (low - top) * up**1.3) * np.ones((*x.shape, 1), np.float32)
    panorama = 150.0
    sun_x = rng.uniform(16, 80)
    sun_y, radius, colour = {
        "day": (9.0, 5.0, (1.0, 0.97, 0.80)),
        "sunset": (25.0, 8.5, (1.0, 0.85, 0.42)),
        "night": (10.0, 4.5, (0.92, 0.93, 0.85)),
    }[scene.sky]
    d = np.hypot(_wrap(x - sun_x + pan, panorama), y - sun_y)
    disc = np.array(colour, np.float32)
    image = _over(image, 0.35 * np.exp(-np.clip(d - radius, 0, None) / 5), disc)
    image = _over(image, _cover(d - radius), disc)
    if scene.sky == "night":
        for star_x, star_y in zip(rng.uniform(0, panorama, 9), rng.uniform(2, 26, 9), strict=True):
            glow = np.exp(-(_wrap(x - star_x + pan, panorama) ** 2 + (y - star_y) ** 2) / 2.2)
            image = _over(image, 0.7 * glow, np.ones(3, np.float32))
    else:
        white = np.array((1, 1, 1) if scene.sky == "day" else (1.0, 0.72, 0.62), np.float32)
        for cloud_x, cloud_y in zip(rng.uniform(0, panorama, 3), rng.uniform(5, 20, 3), strict=True):
            cx = _wrap(x - cloud_x + pan + 0.08 * drift, panorama)
            puff = np.exp(-(((cx / 10) ** 2 + ((y - cloud_y) / 2.6) ** 2) ** 1.5))
            puff = np.maximum(puff, np.exp(-((((cx - 4) / 5) ** 2 + ((y - cloud_y + 2) / 2.8) ** 2) ** 1.5)))
            image = _over(image, 0.75 * puff, white)
    return image


def _land(scene: Scene, path: Path, x: Array, y: Array, image: Array, rng: np.random.Generator) -> Array:
    """Hills, things along the horizon and the ground, each scrolling by its distance."""
    tint = np.array(SKIES[scene.sky][2], np.float32)
    far = x + path.pan + 0.22 * path.travel
    a, b = rng.uniform(0, 2 * np.pi, 2)
    ridge = HORIZON_PX - 5 - 3 * np.sin(2 * np.pi * far / 75 + a) - 2 * np.sin(2 * np.pi * far / 50 + b)
    image = _over(image, _cover(ridge - y), np.array(HILLS[scene.ground], np.float32) * tint)

    light, dark = (np.array(c, np.float32) for c in GROUNDS[scene.ground])
    v = np.clip((y - HORIZON_PX) / (HEIGHT - HORIZON_PX), 0, 1.2)
    near = (CONTACT_PX - HORIZON_PX) / (HEIGHT - HORIZON_PX)
    s = x + path.pan + (0.4 + 0.6 * v / near) * path.travel  # the row of contact moves exactly as fast as it rolls
    u = (s - WIDTH / 2) / (0.55 + 0.45 * v / near)
    phase = rng.uniform(0, 2 * np.pi)
    if scene.ground == "road":
        wave = 0.15 * np.sin(2 * np.pi * u / 60 + phase)
    elif scene.ground == "grass":
        wave = np.clip(1.4 * np.sin(2 * np.pi * u / 30 + phase + 3 * v), -1, 1)
    elif scene.ground == "sand":
        wave = 0.9 * np.sin(2 * np.pi * u / 24 + phase + 1.5 * np.sin(2 * np.pi * v * 2))
    else:
        wave = np.sin(2 * np.pi * u / 40 + phase) * np.cos(5 * v + 0.6)
    colour = (light + dark) / 2 + (light - dark) / 2 * (0.8 * wave)[..., None]
    colour = colour * (0.86 + 0.2 * v)[..., None]
    if scene.ground == "road":
        line = _cover(np.abs(y - 43.0) - 1.0) * _cover(np.abs(_wrap(u + 5 * phase, 26.0)) - 7.0)
        edge = _cover(np.abs(y - 61.5) - 1.2)
        colour = _over(colour, 0.9 * np.maximum(line, 0.8 * edge), np.array((0.95, 0.93, 0.85), np.float32))
    image = _over(image, _cover(HORIZON_PX - y), np.clip(colour, 0, 1) * tint)

    stand = _wrap(x + path.pan + 0.4 * path.travel - rng.uniform(0, 52), 52.0)
    up = HORIZON_PX + 1 - y
    if scene.ground == "sand":
        stem = np.minimum(np.maximum(np.abs(stand) - 1.3, np.abs(up - 4.5) - 4.5),
                          np.maximum(np.abs(np.abs(stand) - 3.0) - 0.9, np.abs(up - 5.5) - 2.0))  # fmt: skip
        stem = np.minimum(stem, np.maximum(np.abs(stand) - 3.0, np.abs(up - 4.2) - 0.8))
        image = _over(image, _cover(stem), np.array((0.24, 0.48, 0.26), np.float32) * tint)
    elif scene.ground == "road":
        post = np.maximum(np.abs(stand) - 1.0, np.abs(up - 6) - 6)
        image = _over(image, _cover(post), np.array((0.22, 0.22, 0.25), np.float32) * tint)
        bulb = np.hypot(stand, up - 12.5)
        image = _over(image, _cover(bulb - 2.2), np.array((1.0, 0.93, 0.65), np.float32))
    else:
        trunk = np.maximum(np.abs(stand) - 1.2, np.abs(up - 2) - 2)
        image = _over(image, _cover(trunk), np.array((0.36, 0.24, 0.14), np.float32) * tint)
        if scene.ground == "snow":
            crown = np.maximum(np.abs(stand) - 0.45 * (15 - up), np.abs(up - 9) - 6)
            leaf = (0.16, 0.36, 0.30)
        else:
            crown = np.hypot(stand, up - 8) - 5.2
            leaf = (0.16, 0.42, 0.16)
        image = _over(image, _cover(crown), np.array(leaf, np.float32) * tint)
    return image


def render(scene: Scene, *, num_frames: int, first_frame: int = 0, fps: float = FPS) -> NDArray[np.uint8]:
    """Draw frames `first_frame` to `first_frame + num_frames` of the scene: uint8 of shape (T, 64, 96, 3)."""
    path, radius, facing = path_of(scene, (first_frame + np.arange(num_frames)) / fps)
    rng = np.random.default_rng(scene.seed + 1)
    x0, y0 = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    x = ((x0[None] - WIDTH / 2) / path.zoom + WIDTH / 2).astype(np.float32)
    y = ((y0[None] - 46) / path.zoom + 46).astype(np.float32)
    image = _sky(scene, path.pan, path.travel, x, y, rng)
    image = _land(scene, path, x, y, image, rng)
    image = _object(scene, path, radius, facing, x, y, image)
    return np.asarray(np.clip(image, 0, 1) * 255 + 0.5, dtype=np.uint8)


def object_mask(scene: Scene, *, num_frames: int, first_frame: int = 0) -> NDArray[np.bool_]:
    """Where the object may be: a box of (T, H, W) around it, for weights and for measures inside the object."""
    path, radius, _ = path_of(scene, (first_frame + np.arange(num_frames)) / FPS)
    x0, y0 = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    x = (x0[None] - WIDTH / 2) / path.zoom + WIDTH / 2
    y = (y0[None] - 46) / path.zoom + 46
    middle = CONTACT_PX - path.height - radius * 0.95
    return np.asarray((np.abs(x - path.x) < 1.3 * radius) & (np.abs(y - middle) < 1.2 * radius))
