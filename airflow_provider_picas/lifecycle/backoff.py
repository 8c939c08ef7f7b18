"""When to try again: the one policy for requests, logins and connections, in the pilot and in the provider."""

import random
from typing import Optional, Tuple

JITTER = (0.5, 1.5)


def growing_pause(tries: int, first: float, longest: float, jitter: Tuple[float, float] = JITTER) -> float:
    """Seconds to wait after a number of failed tries, with jitter."""
    return min(longest, first * 2.0 ** min(tries - 1, 20)) * random.uniform(*jitter)


class Backoff:
    """Growing pauses, in seconds: each twice the one before, from ``first`` to ``longest``.

    ``most``: number of tries, after which ``again`` gives up; None: no limit. ``jitter``: each pause is multiplied by a
    random number in this range, so that many clients do not try at the same time.
    """

    def __init__(
        self,
        first: float = 0.2,
        longest: float = 15.0,
        most: Optional[int] = None,
        jitter: Tuple[float, float] = JITTER,
    ) -> None:
        self._first, self._longest, self._most, self._jitter = first, longest, most, jitter
        self.tries = 0  #: that have failed

    def pause(self, least: float = 0.0) -> float:
        """Record a failed try. Returns the seconds to wait before the next one, about ``least`` or more."""
        self.tries += 1
        return max(
            least * random.uniform(*self._jitter), growing_pause(self.tries, self._first, self._longest, self._jitter)
        )

    def again(self) -> Optional[float]:
        """``pause``, or None if there were enough tries."""
        pause = self.pause()
        return None if self._most is not None and self.tries >= self._most else pause

    def reset(self) -> None:
        """Record a success."""
        self.tries = 0
