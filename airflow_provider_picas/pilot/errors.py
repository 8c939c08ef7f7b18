"""Errors of requests without a usable response."""

TOO_MUCH = "is too large to be read"


class Unreachable(Exception):
    """No usable response: no connection, a server error, or credentials refused for now. Try again later."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreadable(Unreachable):
    """A response that Python cannot read because of a document's content. ``why``: the reason for the log."""

    def __init__(self, message: str, status: int, why: str) -> None:
        super().__init__(message, status)
        self.why = why


class LargeAnswer(Unreadable):
    """A response with more bytes than the pilot reads."""
