"""What a request is answered with where it cannot be served, in OpenAI's error shape."""

from __future__ import annotations

from typing import Any

from truing.errors import TargetBusy, TruingError
from truing.targets.local.memory import out_of_memory
from truing.text import short


class Refusal(TruingError):
    """A request is refused: HTTP status, and what OpenAI's clients read."""

    def __init__(self, status: int, said: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(said)
        self.status, self.param, self.code = status, param, code

    @property
    def plain(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refusal(error: Exception) -> Refusal | None:
    """An error as a refusal, 503 where the client may try again; None for one that nobody raised on purpose."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TargetBusy):
        return Refusal(503, str(error), code="unavailable")
    if out_of_memory(error):
        return Refusal(503, f"memory ran out: {short(error)}. Try again, or send less at once.", code="unavailable")
    return Refusal(400, str(error)) if isinstance(error, TruingError) else None
