"""What keeps a request from having an answer."""

TOO_MUCH = "is too large to be read"


class Unreachable(Exception):
    """No useful answer: no connection, a server error, or credentials refused for the time being. Try again later."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreadable(Unreachable):
    """An answer that Python cannot read because of what a document holds. ``why``: what it is then said to be."""

    def __init__(self, message: str, status: int, why: str) -> None:
        super().__init__(message, status)
        self.why = why


class LargeAnswer(Unreadable):
    """An answer with more bytes than the pilot reads."""
