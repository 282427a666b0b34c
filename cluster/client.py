"""The films API from Python: what `farm submit --url ...` uses.

    with Client("https://farm.example.org", key="ltk_...") as farm:
        film = farm.submit(Path("storyboard.yaml"))
        film = farm.wait(film.id)
        farm.download(film.id, Path("film.mp4"))

A request that does not come through is tried again; a submission carries an Idempotency-Key, so it makes one film all
the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from cluster.shapes import EstimateAnswer, FilmAnswer, FilmList, TaskList
from farm.document import read_document
from farm.errors import InputError, Problem, RenderError
from farm.film.storyboard import names_in, read_storyboard
from farm.states import ENDED

TRIES, WAIT_S = 6, 1.0
TIMEOUT_S = 60.0
LOOK_S = 2.0  # between looks at a film that is waited for


class Client:
    """One server. Its methods raise InputError where the request is at fault, RenderError where the server is."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Args:
        url: of the server, without a path.
        """
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self.http = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)
        except httpx2.InvalidURL as e:
            raise InputError(Problem(f"--url must be the URL of a server, got {url!r}: {e}", "--url")) from None
        self.url = url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    # -- films

    def submit(self, storyboard: str | Path, *, priority: int = 50, key: str = "", webhook: str = "") -> FilmAnswer:
        """Send a storyboard with the files that it names.

        Args:
            key: Idempotency-Key; drawn where it is not given.
        """
        headers = {"idempotency-key": key or secrets.token_hex(16)}
        params = {"priority": str(priority)} | ({"webhook": webhook} if webhook else {})
        answer = self._send_board(Path(storyboard), "/v1/films", params=params, headers=headers)
        return FilmAnswer.model_validate(answer.json())

    def estimate(self, storyboard: str | Path) -> EstimateAnswer:
        return EstimateAnswer.model_validate(self._send_board(Path(storyboard), "/v1/estimates").json())

    def show(self, job: str) -> FilmAnswer:
        return FilmAnswer.model_validate(self._ask("GET", f"/v1/films/{job}").json())

    def tasks(self, job: str) -> TaskList:
        return TaskList.model_validate(self._ask("GET", f"/v1/films/{job}/tasks").json())

    def list(self, *, status: str = "") -> Iterator[FilmAnswer]:
        """All films that the key may see, the newest first."""
        after = ""
        while True:
            params = {"limit": "100", "after": after, "status": status}
            page = FilmList.model_validate(self._ask("GET", "/v1/films", params=params).json())
            yield from page.data
            if not page.has_more or page.last_id is None:
                return
            after = page.last_id

    def order(self, job: str, order: str, *, priority: int | None = None, everything: bool = False) -> FilmAnswer:
        """Args:
        order: pause | resume | cancel | requeue | priority.
        """
        body = {"priority": priority} if order == "priority" else {"everything": everything} if everything else None
        return FilmAnswer.model_validate(self._ask("POST", f"/v1/films/{job}/{order}", json=body).json())

    def wait(self, job: str, *, timeout_s: float | None = None) -> FilmAnswer:
        """Wait until a film has ended.

        Raises:
            TimeoutError: it has not within `timeout_s`.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while (film := self.show(job)).status not in ENDED:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"film {job} is {film.status} after {timeout_s:g} s")
            time.sleep(LOOK_S)
        return film

    def download(self, job: str, path: str | Path, *, shot: str = "") -> None:
        """Write the film, or the clip of a finished shot, to a file: whole or not at all."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        place = f"/v1/films/{job}/shots/{shot}/content" if shot else f"/v1/films/{job}/content"
        try:
            with self.http.stream("GET", place) as answer, part.open("wb") as out:
                if answer.status_code >= 400:
                    answer.read()
                    _refuse(answer)
                for piece in answer.iter_bytes():
                    out.write(piece)
            part.replace(path)
        except httpx2.TransportError as e:
            raise RenderError(f"{self.url} cannot be reached: {type(e).__name__}") from e
        finally:
            part.unlink(missing_ok=True)

    # -- requests

    def _send_board(self, storyboard: Path, place: str, **more: Any) -> httpx2.Response:
        raw = read_storyboard(storyboard)
        document = read_document(raw, file=str(storyboard))
        names = dict.fromkeys(n.value for n in names_in(document.data) if n.what != "model")
        with ExitStack() as stack:
            files = [("storyboard", ("storyboard", stack.enter_context(storyboard.open("rb"))))]
            for name in names:
                try:
                    files.append(("files", (name, stack.enter_context(document.path_of(name).open("rb")))))
                except OSError as e:
                    told = f"{name!r} must be a file that can be read: {e.strerror}"
                    raise InputError(Problem(told, file=str(storyboard))) from None
            try:
                return self._ask("POST", place, files=files, **more)
            except InputError as e:
                raise e.at(file=str(storyboard)) from None

    def _ask(self, method: str, place: str, **more: Any) -> httpx2.Response:
        """One request; tried again where the server cannot be reached or says to come again."""
        for left in reversed(range(TRIES)):
            wait_s = WAIT_S * 2 ** (TRIES - 1 - left)
            try:
                answer = self.http.request(method, place, **more)
            except httpx2.TransportError as e:
                if left == 0:
                    raise RenderError(f"{self.url} cannot be reached: {type(e).__name__}: {e}") from e
            else:
                if answer.status_code not in (429, 502, 503, 504) or left == 0:
                    return _refuse(answer)
                told = answer.headers.get("retry-after", "")
                wait_s = float(told) if told.isdigit() else wait_s
            for _, (_, file) in more.get("files", ()):
                file.seek(0)
            time.sleep(min(wait_s, 30.0))
        raise AssertionError  # the last try returns or raises


def _refuse(answer: httpx2.Response) -> httpx2.Response:
    """The answer itself, where it is a good one."""
    if answer.status_code < 400:
        return answer
    try:
        told = answer.json()
        message, rows = str(told["error"]["message"]), told["errors"]
        problems = [Problem(r["message"], r["key"], "", r["line"]) for r in rows] or [Problem(message)]
    except (ValueError, KeyError, TypeError):
        message = f"the server answers {answer.status_code}"
        problems = [Problem(message)]
    if answer.status_code < 500:
        raise InputError(*problems)
    raise RenderError(message)
