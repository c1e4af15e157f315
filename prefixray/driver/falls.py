"""How often something may fall over before the sweep ends: three times in ten minutes."""

import time
from collections import deque


class Falls:
    """The falls of late."""

    MOST = 3
    SECONDS = 600.0

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=self.MOST)

    def bear(self) -> bool:
        """Note a fall; whether it can be borne."""
        now = time.monotonic()
        is_one_too_many = len(self._times) == self.MOST and now < self._times[0] + self.SECONDS
        self._times.append(now)
        return not is_one_too_many
