"""The thread that runs the batch: requests wait for a seat, join, write, and leave.

- Other threads hand requests in by `submit` and take them back by `cancel`; the engine's own thread does all else.
- Requests are seated in the order in which they came, as many at once as their prompts fit one forward.
- A listener is called in the engine's thread, and must not wait.
- An error in a forward ends the engine, and all requests with it: `failure` says why.
"""

import itertools
import logging
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prefixray.model.backend import backend_for
from prefixray.serving.batch import Batch, Request
from prefixray.serving.models import Limits, Models

logger = logging.getLogger(__name__)

_PROMPT_TOKENS = 4096  # of newcomers' prompts in one forward, fillers included: others wait for it
_LONGEST_WAIT = 60  # seconds that a refused client is told to wait at most


class Full(Exception):
    """All seats are taken, and as many requests wait as may."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        """Seconds after which a place is likely to be free."""
        super().__init__(f"all seats are taken and the queue is full; try again in {retry_after} s")


@dataclass
class Counts:
    """What the engine has done since its start."""

    answers: Counter[str] = field(default_factory=Counter)
    """Ended answers by reason: stop, length, cancelled."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    rows: int = 0
    """Rows of all steps."""
    first_token_seconds: float = 0.0
    """From the request to its first token, the sum over all answers that have one."""
    num_first_tokens: int = 0
    seconds: float = 0.0
    """From the request to its end, the sum over all answers."""


class Engine:
    """Continuous batching of one server's models."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.counts = Counts()
        self.failure: BaseException | None = None
        """The error that has ended the engine."""
        self._batch = Batch(models.base, models.pad_id)
        self._waiting: deque[Request] = deque()
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None: look again
        self._num_accepted = 0  # written by those who submit
        self._num_ended = 0  # written by the engine
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def num_running(self) -> int:
        """Rows of the batch."""
        return len(self._batch.rows)

    @property
    def num_waiting(self) -> int:
        """Requests without a seat."""
        return max(0, self._num_accepted - self._num_ended - self.num_running)

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._is_stopping

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End all answers where they are. A signal handler may call it."""
        self._is_stopping = True
        self._inbox.put(None)

    def join(self) -> None:
        """Wait for the engine's end."""
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests on, all or none; one thread alone submits. Raises `Full`."""
        in_flight = self._num_accepted - self._num_ended
        if in_flight + len(requests) > self.limits.seats + self.limits.queue:
            raise Full(self._retry_after(in_flight))
        self._num_accepted += len(requests)
        for request in requests:
            self._inbox.put(request)

    def cancel(self, requests: Sequence[Request]) -> None:
        """Free the seats or the places of these requests, unless they have ended."""
        for request in requests:
            request.is_cancelled = True
        self._inbox.put(None)

    def _retry_after(self, in_flight: int) -> int:
        answered = self.counts.answers.total()
        each = self.counts.seconds / answered if answered else 1.0
        return min(_LONGEST_WAIT, math.ceil(each * max(1, in_flight - self.limits.seats) / self.limits.seats))

    def _run(self) -> None:
        base = self.models.base
        try:
            with torch.no_grad(), backend_for(base.device).serving(base.model):
                while not self._is_stopping:
                    self._receive()
                    self._drop_cancelled()
                    self._seat()
                    if self._batch.rows:
                        self._step()
        except BaseException as error:
            self.failure = error
        self._is_stopping = True
        self._receive()
        for request in (*self._batch.rows, *self._waiting):
            if not request.is_cancelled:
                request.listener("", None)

    def _receive(self) -> None:
        """Take what has been handed in; wait for it where there is nothing else to do."""
        is_idle = not (self._batch.rows or self._waiting or self._is_stopping)
        while is_idle or not self._inbox.empty():
            request = self._inbox.get()
            is_idle = False
            if request is not None:
                self._waiting.append(request)

    def _drop_cancelled(self) -> None:
        """Let go of requests to which nobody listens."""
        gone = [request for request in self._batch.rows if request.is_cancelled]
        for request in gone:
            self._batch.leave(request)
        gone += [request for request in self._waiting if request.is_cancelled]
        self._waiting = deque(request for request in self._waiting if not request.is_cancelled)
        for request in gone:
            self._count(request, "cancelled")

    def _seat(self) -> None:
        """Let the first of those that wait join, as many as there are seats and as fit one forward."""
        newcomers: list[Request] = []
        longest = 0
        for request in itertools.islice(self._waiting, self.limits.seats - len(self._batch.rows)):
            longest = max(longest, len(request.prompt))
            if newcomers and longest * (len(newcomers) + 1) > _PROMPT_TOKENS:
                break
            newcomers.append(request)
        if newcomers:
            self._batch.join(newcomers)
            self._waiting = deque(itertools.islice(self._waiting, len(newcomers), None))

    def _step(self) -> None:
        self.counts.steps += 1
        self.counts.rows += len(self._batch.rows)
        for request in self._batch.step():
            self._count(request, request.end().reason)

    def _count(self, request: Request, reason: str) -> None:
        counts = self.counts
        counts.answers[reason] += 1
        counts.seconds += time.monotonic() - request.asked_at
        counts.new_tokens += len(request.answer.ids)
        if request.first_at is not None:
            counts.prompt_tokens += request.num_prompt
            counts.num_first_tokens += 1
            counts.first_token_seconds += request.first_at - request.asked_at
        self._num_ended += 1
