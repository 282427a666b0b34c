"""What a service answers when it does not do what it was asked."""

from __future__ import annotations

from farm.errors import FarmError


class NotFound(FarmError):
    """There is no such film, or the caller may not know of it."""


class NotReady(FarmError):
    """What is asked for has not been made yet."""


class Forbidden(FarmError):
    """The caller's role does not allow it."""


class TooMuch(FarmError):
    """A quota is spent: try again later."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s
