"""How frames between frames are made, and where RIFE's weights lie: the set-up puts them beside the installed packages.

RIFE: Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation" (2022), model 4.6.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

RIFE_SOURCE_SHA256 = "67efcd38673f5eb8f76887d4d216e2b71000606907960a5da278cd0efceafb77"  # of rife.pkl, as published
RIFE_SHA256 = "35fac5d1fa67ce738ac854a7017821875315ffbb3807e0721f6c4b8f2a649ca6"  # of what the set-up makes of it
RIFE_COMPONENT = ("rife-4.6", RIFE_SHA256)


def rife_weights() -> Path:
    """The converted weights; LONGTAKE_RIFE names another place."""
    default = Path(sys.prefix) / "share" / "longtake" / "rife-4.6.safetensors"
    return Path(os.environ.get("LONGTAKE_RIFE") or default)


def default_method() -> str:
    """RIFE where its weights are, else optical flow."""
    return "rife" if rife_weights().is_file() else "flow"
