"""Bad input: exit code 2, every fault with file, line, key and what to do; nothing rendered, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import GOOD, check_faults, run
from PIL import Image


def swap(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


def plus(line: str) -> bytes:
    return (line + "\n" + GOOD).encode()


def with_continuity(text: str) -> bytes:
    return plus(f"continuity: {text}")


# name: (storyboard, line that must be named or None, key, words that the message must have)
STORYBOARDS: dict[str, tuple[bytes, int | None, str, tuple[str, ...]]] = {
    "empty file": (b"", None, "", ("empty",)),
    "yaml syntax": (b"title: [unclosed\nshots: 3\n", 2, "", ("not valid YAML",)),
    "tab indentation": (b"shots:\n\t- id: a\n", 2, "", ("not valid YAML",)),
    "binary file": (bytes(range(256)), None, "", ("UTF-8",)),
    "a list at the top": (b"- 1\n- 2\n", 1, "", ("mapping",)),
    "alias bomb": (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(8)),
        1, "", ("too large once its aliases are expanded",),
    ),
    "endless nesting": (b"[" * 200 + b"]" * 200, 1, "", ("nested too deeply",)),
    "a python tag": (plus("style: !!python/object/apply:os.system [id]"), 1, "style", ("tags are not used",)),
    "an own tag": (plus("negative_prompt: !thing x"), 1, "negative_prompt", ("tags are not used",)),
    "unknown key": (plus("sed: 3"), 1, "sed", ("did you mean seed?",)),
    "unknown key of a shot": (swap("frames: 9", "frame: 9"), 8, "shots[0].frame", ("did you mean frames?",)),
    "unknown key of output": (plus("output: {codek: h264}"), 1, "output.codek", ("did you mean codec?",)),
    "a key twice": (plus("title: again"), 2, "title", ("stands twice",)),
    "text for a number": (swap("steps: 2", "steps: many"), 4, "steps", ("whole number", "'many'")),
    "quoted number": (swap("steps: 2", "steps: '2'"), 4, "steps", ("whole number",)),
    "a fraction of a step": (swap("steps: 2", "steps: 2.5"), 4, "steps", ("whole number",)),
    "true for a number": (plus("seed: true"), 1, "seed", ("whole number",)),
    "a number for a prompt": (swap("prompt: a red ball", "prompt: 3"), 7, "shots[0].prompt", ("text",)),
    "fps not a number": (swap("fps: 8", "fps: .nan"), 3, "fps", ("nan",)),
    "fps infinite": (swap("fps: 8", "fps: .inf"), 3, "fps", ("inf",)),
    "fps zero": (swap("fps: 8", "fps: 0"), 3, "fps", ("at least 0.1",)),
    "seed negative": (plus("seed: -1"), 1, "seed", ("at least 0",)),
    "seed too large": (plus("seed: 9223372036854775808"), 1, "seed", ("less than",)),
    "steps zero": (swap("steps: 2", "steps: 0"), 4, "steps", ("at least 1",)),
    "guidance of a pair for one expert": (plus("guidance: {high: 4.0, low: 3.0}"), 1, "guidance", ("one number",)),
    "guidance half a pair": (plus("guidance: {high: 4.0}"), 1, "guidance.low", ("required",)),
    "duplicate ids": (
        GOOD.encode() + b"  - {id: one, prompt: x, frames: 5}\n", 9, "shots[1].id", ("unique", "shots[0]"),
    ),
    "id with blanks": (swap("id: one", "id: One Two"), 6, "shots[0].id", ("must be",)),
    "no shots": (b"title: x\nshots: []\n", 2, "shots", ("must not be empty",)),
    "shots missing": (b"title: x\n", 1, "shots", ("required",)),
    "shots not a list": (b"shots: 3\n", 1, "shots", ("a list",)),
    "a shot that is text": (b"shots:\n  - hello\n", 2, "shots[0]", ("mapping",)),
    "no prompt": (swap("    prompt: a red ball\n", ""), 6, "shots[0]", ("must have a prompt",)),
    "empty prompt": (swap("a red ball", "''"), 7, "shots[0].prompt", ("must not be empty",)),
    "no length": (swap("    frames: 9\n", ""), 6, "shots[0]", ("seconds or frames",)),
    "both lengths": (GOOD.encode() + b"    seconds: 1\n", 8, "shots[0].frames", ("seconds or frames, not both",)),
    "zero seconds": (swap("frames: 9", "seconds: 0"), 8, "shots[0].seconds", ("greater than 0",)),
    "negative seconds": (swap("frames: 9", "seconds: -2"), 8, "shots[0].seconds", ("greater than 0",)),
    "absurd seconds": (swap("frames: 9", "seconds: 1.0e+12"), 8, "shots[0].seconds", ("at most",)),
    "zero frames": (swap("frames: 9", "frames: 0"), 8, "shots[0].frames", ("at least 1",)),
    "size not a size": (swap("64x48", "large"), 2, "size", ("must be",)),
    "width off the grid": (swap("64x48", "70x48"), 2, "size", ("multiple of 16", "64 and 80")),
    "height off the grid": (swap("64x48", "64x8"), 2, "size", ("multiple of 16", "nearest is 16")),
    "size beyond all": (swap("64x48", "99968x48"), 2, "size", ("at most 8192",)),
    "chunk off the rule": (
        with_continuity("{chunk_frames: 16}"), 1, "continuity.chunk_frames", ("4n+1", "got 16", "13 and 17"),
    ),
    "overlap off the rule": (
        with_continuity("{chunk_frames: 17, overlap_frames: 6}"), 1, "continuity.overlap_frames", ("4n+1", "5 and 9"),
    ),
    "overlap as long as the chunk": (
        with_continuity("{chunk_frames: 17, overlap_frames: 17}"), 1, "continuity.overlap_frames", ("below",),
    ),
    "overlap without context": (
        with_continuity("{mode: extend, context: none, overlap_frames: 5}"), 1, "continuity.overlap_frames",
        ("must be 0",),
    ),
    "unknown mode": (with_continuity("{mode: extent}"), 1, "continuity.mode", ("did you mean extend?",)),
    "unknown codec": (plus("output: {codec: h266}"), 1, "output.codec", ("h264", "did you mean")),
    "crf too large": (plus("output: {crf: 60}"), 1, "output.crf", ("at most 51",)),
    "crf for prores": (plus("output: {codec: prores, crf: 3}"), 1, "output.crf", ("no such setting",)),
    "odd enlargement": (plus("output: {scale: 1.01}"), 1, "output.scale", ("even",)),
    "transition on the first shot": (
        GOOD.encode() + b"    transition: {kind: crossfade}\n", 9, "shots[0].transition", ("first shot",),
    ),
    "a long shot without context": (
        with_continuity("{mode: extend}").replace(b"frames: 9", b"seconds: 20"), 9, "shots[0].seconds",
        ("must be none for", "which cannot go on from frames, got nothing"),
    ),
    "a missing image": (GOOD.encode() + b"    image: no.png\n", 9, "shots[0].image", ("can be read",)),
    "an unreadable image": (GOOD.encode() + b"    image: film.yaml\n", 9, "shots[0].image", ("cannot identify",)),
    "going on from nowhere": (
        GOOD.encode() + b"    continue_from: oen\n", 9, "shots[0].continue_from", ("must name another shot",),
    ),
    "an unknown transition": (
        GOOD.encode() + b"  - {id: two, prompt: x, frames: 5, transition: {kind: crosfade}}\n",
        9, "shots[1].transition", ("did you mean crossfade?",),
    ),
    "an unsorted schedule": (
        swap("prompt: a red ball", "prompts: [{at: 0, prompt: x}, {at: 5, prompt: y}, {at: 2, prompt: z}]"),
        7, "shots[0].prompts", ("begin at 0 and go up",),
    ),
    "brackets without end": (b"a: " + b"[" * 200_000, 1, "", ("nested too deeply",)),
    "dashes without end": (b"- " * 100_000, 1, "", ("nested too deeply",)),
    "a forced number": (plus("seed: !!int abc"), 1, "seed", ("cannot be read",)),
    "a number of 5000 digits": (plus("seed: " + "9" * 5000), 1, "seed", ("cannot be read",)),
    "an image for a model of text": (
        GOOD.encode() + b"    image: hill.png\n", 9, "shots[0].image", ("takes text", "WanImageToVideoPipeline"),
    ),
    "a last image": (
        GOOD.encode() + b"    last_image: hill.png\n", 9, "shots[0].last_image", ("takes text", "WanVACEPipeline"),
    ),
    "a gate for blend": (
        GOOD.encode() + b"    continuity: {mode: blend, max_seam: 1.5}\n", 9, "shots[0].continuity.max_seam",
        ("of extend",),
    ),
    "an anchor for a model of text": (
        GOOD.encode() + b"    continuity: {mode: blend, anchor: true}\n", 9, "shots[0].continuity.anchor",
        ("takes no clean latent frames",),
    ),
    "tries without a gate": (
        GOOD.encode() + b"    continuity: {mode: extend, rerolls: 3}\n", 9, "shots[0].continuity.rerolls",
        ("beside max_seam",),
    ),
    "an unknown way between frames": (
        plus("output: {fps: 24, interpolate: riff}"), 1, "output.interpolate", ("did you mean rife?",),
    ),
    "a model of its own that is not there": (
        GOOD.encode() + b"    model: ./nowhere\n", 9, "shots[0].model", ("./nowhere",),
    ),
    "a key without a value": (swap("prompt: a red ball", "prompt:"), 7, "shots[0].prompt", ("has no value",)),
    "null": (swap("frames: 9", "frames: null"), 8, "shots[0].frames", ("has no value",)),
    "minutes and seconds": (swap("frames: 9", "seconds: 1:30"), 8, "shots[0].seconds", ("a number, got '1:30'",)),
    "an octal number": (swap("frames: 9", "frames: 021"), 8, "shots[0].frames", ("a whole number, got '021'",)),
    "a merge key": (GOOD.encode() + b"    <<: {seed: 3}\n", 9, "shots[0].<<", ("is not a key",)),
    "text with a colon": (swap("a red ball", "scene: a red ball"), 7, "", ("in quotes",)),
    "a control character": (swap("title: A test", 'title: "a\\x07b"'), 1, "title", ("must be",)),
}  # fmt: skip


@pytest.mark.parametrize("name", STORYBOARDS)
@pytest.mark.parametrize("command", ["render", "plan"])
def test_bad_storyboards_are_refused(
    name: str, command: str, tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, line, key, words = STORYBOARDS[name]
    board = tmp_path / "film.yaml"
    board.write_bytes(raw)
    code, answer, told = run(capsys, command, str(board), "--model", str(tiny_wan), "--store", str(tmp_path / "store"))
    check_faults(code, answer, told, board, line, key, words)
    assert not (tmp_path / "store").exists()


# the same for what needs a model that takes pictures and context; a second shot begins in line 9
MORE = GOOD + "  - {id: two, prompt: a blue cube, frames: 9%s}\n"
TAKES: dict[str, tuple[str, int, str, tuple[str, ...]]] = {
    "a schedule beyond the end": (
        GOOD.replace("prompt: a red ball", "prompts: [{at: 0, prompt: x}, {at: 1.2, prompt: y}]"), 7,
        "shots[0].prompts[1].at", ("before the shot's end (1.125 s), got 1.2",),
    ),
    "a circle": (
        GOOD + "    continue_from: two\n  - {id: two, prompt: x, frames: 9, continue_from: one}\n", 9,
        "shots[0].continue_from", ("one > two > one",),
    ),
    "a shot that goes on from itself": (
        GOOD + "    continue_from: one\n", 9, "shots[0].continue_from", ("must name another shot",),
    ),
    "going on in another context": (
        MORE % ", continue_from: one, continuity: {context: frames}", 9, "shots[1].continue_from",
        ("same continuity.context",),
    ),
    "a transition longer than its shot": (
        MORE % ", transition: {kind: crossfade, seconds: 2}", 9, "shots[1].transition",
        ("take 16 and 0 of its 9 delivered",),
    ),
    "a transition longer than the shot before": (
        MORE.replace("frames: 9\n", "frames: 3\n", 1) % ", transition: {kind: crossfade, seconds: 1}", 9,
        "shots[1].transition", ("take 0 and 8 of its 3 delivered",),
    ),
    "transitions that overlap": (
        MORE % ", transition: {kind: crossfade}"
        + "  - {id: three, prompt: x, frames: 9, transition: {kind: wipeleft, seconds: 1}}\n", 10,
        "shots[2].transition", ("take 4 and 8 of its 9 delivered",),
    ),
    "a picture of another shape": (
        GOOD + "    image: hill.png\n", 9, "shots[0].image", ("proportions (64x48), got 96x32", "image_fit"),
    ),
    "chunks that cannot go on": (
        "continuity: {chunk_frames: 8}\n" + GOOD.replace("frames: 9", "frames: 40"), 1, "continuity.chunk_frames",
        ("4n+1", "5 and 9"),
    ),
    "an overlap longer than its chunk": (
        "continuity: {chunk_frames: 5, overlap_frames: 9}\n" + GOOD.replace("frames: 9", "frames: 40"), 1,
        "continuity.overlap_frames", ("below chunk_frames (5), got 9",),
    ),
    "two prompts in one frame": (
        GOOD.replace("prompt: a red ball", "prompts: [{at: 0, prompt: x}, {at: 0.05, prompt: y}]"), 7,
        "shots[0].prompts[1].at", ("at least a frame after",),
    ),
    "a picture cut short": (GOOD + "    image: short.png\n", 9, "shots[0].image", ("can be read",)),
    "an overlap of nothing": (
        "continuity: {overlap_frames: 0}\n" + GOOD.replace("frames: 9", "seconds: 20"), 9, "shots[0].seconds",
        ("overlap_frames must be above 0 in mode extend",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES)
def test_bad_takes_end_with_2_and_say_where(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, line, key, words = TAKES[name]
    board = tmp_path / "film.yaml"
    board.write_text(text)
    Image.new("RGB", (96, 32)).save(tmp_path / "hill.png")
    Image.effect_noise((64, 48), 80).save(tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    code, answer, told = run(capsys, "render", str(board), "--model", "builtin", "--store", str(tmp_path / "store"))
    check_faults(code, answer, told, board, line, key, words)
    assert not (tmp_path / "store").exists()


def test_words_that_the_builtin_model_does_not_know_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "film.yaml"
    board.write_text(GOOD.replace("a red ball", "a shiny crimson sphere rolls slowly over the lawn"))
    code, _, told = run(capsys, "plan", str(board), "--model", "builtin", "--store", str(tmp_path / "store"))
    assert code == 0
    assert (
        "film.yaml:7: builtin does not know these words, and leaves them out: shiny (shot one); slowly (shot one)"
        in told
    )


def test_all_faults_are_told_at_once(tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = tmp_path / "film.yaml"
    board.write_text(
        "titel: x\nsize: 70x48\nsteps: 0\nshots:\n"
        "  - {id: a, prompt: x, frames: 9, seconds: 1}\n  - {id: a, prompt: x, frames: 0}\n  - {id: c, prompt: 3}\n"
    )
    _, answer, _ = run(capsys, "plan", str(board), "--model", str(tiny_wan))
    keys = {e["key"] for e in answer["errors"]}
    assert {"titel", "steps", "shots[0].frames", "shots[1].id", "shots[1].frames", "shots[2].prompt"} <= keys
