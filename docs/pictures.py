"""Make the pictures of the README from a real render: `make pictures` (Chromium is needed for the report's)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg

from dashboards.sheets import contact_sheet

HERE = Path(__file__).parent
GIF_FILTER = (
    "fps=12,scale=288:-1:flags=lanczos,split[a][b];[a]palettegen=max_colors=96[p];[b][p]paletteuse=dither=bayer"
)


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="pictures-"))
    film = work / "demo.mp4"
    command = [sys.executable, "-m", "cluster.cli", "render", str(HERE.parent / "examples" / "demo.yaml")]
    done = subprocess.run(
        [*command, "--store", str(work / "store"), "--out", str(film), "--json"],
        stdout=subprocess.PIPE, text=True, timeout=600, check=True,
    )  # fmt: skip
    job = json.loads(done.stdout.splitlines()[-1])["job"]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", str(film), "-vf", GIF_FILTER]
    subprocess.run([*ffmpeg, str(HERE / "demo.gif")], timeout=120, check=True)
    (HERE / "demo.jpg").write_bytes(contact_sheet(film.read_bytes(), num_frames=12, height_px=128))
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


if __name__ == "__main__":
    main()
