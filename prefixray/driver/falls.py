"""How often something may fall over before the sweep ends: three times in ten minutes."""

import time
from collections import deque
from collections.abc import Iterable


class Falls:
    """The falls of late; `times` are those of earlier ones, in seconds on `time.monotonic`'s clock."""

    MOST = 3
    SECONDS = 600.0

    def __init__(self, times: Iterable[float] = ()) -> None:
        self.times: deque[float] = deque(times, maxlen=self.MOST)

    def bear(self) -> bool:
        """Note a fall; whether it can be borne."""
        now = time.monotonic()
        is_one_too_many = len(self.times) == self.MOST and now < self.times[0] + self.SECONDS
        self.times.append(now)
        return not is_one_too_many

    @classmethod
    def rule(cls) -> str:
        """The rule in words."""
        return f"more than {cls.MOST} times in {cls.SECONDS / 60:.0f} minutes"
