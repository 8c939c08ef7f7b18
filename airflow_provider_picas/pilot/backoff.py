"""Growing pauses."""

import random


class Backoff:
    """Growing pauses with jitter."""

    def __init__(self, first: float = 0.2, longest: float = 15.0) -> None:
        self._first, self._longest = first, longest
        self.tries = 0

    def pause(self) -> float:
        """Seconds to wait before the next try."""
        self.tries += 1
        return min(self._longest, self._first * 2.0 ** min(self.tries - 1, 20)) * random.uniform(0.5, 1.5)
