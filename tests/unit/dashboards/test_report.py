"""The report's parts; the whole page is looked at in the integration tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dashboards.report import gantt, sessions, stage_table
from dashboards.seams import seams_table
from dashboards.sheets import contact_sheet, sheet_of
from farm.task import Attempt
from pipelines.frames import write_lossless


def attempt(start: float, *, replica: str = "p-0", label: str = "a", outcome: str = "succeeded") -> Attempt:
    return Attempt(
        attempt_id=str(start), job="j", task="t", stage="denoise", label=label, pool="p", replica=replica, node="n",
        queued_at=start - 1, started_at=start, ended_at=start + 2, outcome=outcome, run_s=1.5, load_s=0.5,
        peak_memory_bytes=2**30,
    )  # fmt: skip


def test_a_long_pause_starts_a_new_chart() -> None:
    assert [len(s) for s in sessions([attempt(0), attempt(5000), attempt(10)])] == [2, 1]


def test_the_chart_has_a_bar_for_each_attempt_and_escapes_labels() -> None:
    chart = gantt([attempt(0), attempt(3, replica="p-1", label="<script>"), attempt(6, outcome="failed")])
    assert chart.count("<title>") == 3
    assert "<script>" not in chart
    assert "stroke='#c0392b'" in chart


def test_the_table_sums_a_stage() -> None:
    table = stage_table([attempt(0), attempt(9)])
    assert all(cell in table for cell in ("<td>denoise</td>", "<td>3.00</td>", "<td>1024</td>"))


def test_the_table_of_seams_has_a_row_for_each() -> None:
    seam = {
        "shot": "<b>",
        "frame": 17,
        "kind": "join",
        "mad_ratio": 1.234,
        "warp_ratio": 2,
        "flow_jump": 0,
        "delta_e": 1,
    }
    table = seams_table([seam, seam | {"kind": "cut"}])
    assert table.count("<tr>") == 3
    assert "<b>" not in table
    assert "<td>1.23</td>" in table


def test_a_sheet_leaves_out_frames_that_are_not_there() -> None:
    clip = write_lossless(np.zeros((3, 32, 48, 3), np.uint8), width_px=48, height_px=32)
    assert Image.open(io.BytesIO(sheet_of(clip, [1, 2, 3, 4], 32))).size == (2 * 52 - 4, 32)


def test_a_contact_sheet_shows_frames_from_first_to_last() -> None:
    video = np.stack([np.full((32, 48, 3), 40 * i, np.uint8) for i in range(6)])
    sheet = Image.open(io.BytesIO(contact_sheet(write_lossless(video, width_px=48, height_px=32), height_px=32)))
    assert sheet.size == (6 * 52 - 4, 32)
    assert [round(sheet.getpixel((24 + 52 * i, 16))[0] / 40) for i in range(6)] == list(range(6))
