"""Make the pictures of the README from a real render: `make pictures` (Chromium is needed for the report's)."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from dashboards.sheets import contact_sheet
from farm.models.checkpoint import BUILTIN_FOLDER

HERE = Path(__file__).parent
GIF_FILTER = (
    "fps=12,scale=288:-1:flags=lanczos,split[a][b];[a]palettegen=max_colors=96[p];[b][p]paletteuse=dither=bayer"
)


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="pictures-"))
    film = work / "demo.mp4"
    command = [sys.executable, "-m", "longtake", "render", str(HERE.parent / "examples" / "demo.yaml")]
    done = subprocess.run(
        [*command, "--store", str(work / "store"), "--out", str(film), "--json"],
        stdout=subprocess.PIPE, text=True, timeout=600, check=True,
    )  # fmt: skip
    job = json.loads(done.stdout.splitlines()[-1])["job"]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", str(film), "-vf", GIF_FILTER]
    subprocess.run([*ffmpeg, str(HERE / "demo.gif")], timeout=120, check=True)
    (HERE / "demo.jpg").write_bytes(contact_sheet(film.read_bytes(), num_frames=12, height_px=128))
    (HERE / "builtin.png").write_bytes(model_sheet())
    chromium = shutil.which("chromium")
    if chromium is None:
        print("chromium is not here: docs/report.png stays as it is", file=sys.stderr)
        return
    page = work / "store" / "films" / job / "report.html"
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={work / 'chromium'}", "--window-size=1000,2050", f"--screenshot={HERE / 'report.png'}",
         page.as_uri()],
        timeout=120, check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def model_sheet() -> bytes:
    """What the built-in model makes of sixteen drawn prompts that training never saw, unchosen: six frames of each."""
    from pipelines.builtin import evaluate

    model = evaluate.Model(BUILTIN_FOLDER)
    rows = []
    for scene, seed in evaluate.held_out(16, salt=20):
        video = model.frames(model.generate(scene.caption, seed=seed))
        rows.append(np.concatenate(list(video[1::3]), axis=1))
        print(f"sheet: {scene.caption}")
    columns = [np.concatenate(rows[i::2]) for i in range(2)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([columns[0], np.full_like(columns[0][:, :8], 255), columns[1]], axis=1)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


if __name__ == "__main__":
    main()
