"""Files on their way to MLflow: a lane of their own, so that a store that takes no files holds up no metric.

What waits is listed in the sweep's folder before anything else happens, and struck out when MLflow has it. So what was
not taken, or what a killed driver has left, is sent by the next run of the sweep.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefixray.errors import first_line
from prefixray.system.atomic_files import write_whole

_logger = logging.getLogger(__name__)

LIST_FILE = "mlflow.waiting.json"
_TRIES, _PAUSE = 3, 1.0  # for each path, and seconds between them
_MOST_REFUSED = 3  # paths in a row that are refused at the end, where each has one more try; no other is tried then
_PATIENCE = 120.0  # seconds without progress after which closing gives up
_NUM_NAMED = 5


@dataclass(frozen=True)
class Upload:
    """A file or a folder of a run."""

    key: str  # the trial's; "" for the sweep's own run
    path: Path


class Uploads:
    """The lane and its thread; `deliver` sends a path to the run of an id, and raises where it cannot."""

    def __init__(self, folder: Path, deliver: Callable[[str, Path], None], uri: str) -> None:
        self._folder, self._deliver, self._uri = folder, deliver, uri
        self._left = self._noted()
        self._waiting: dict[Upload, tuple[str, int]] = {}  # with the ids of their runs, and how often each was put
        self._queue: deque[Upload] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._num_tried = 0
        self._problem = ""
        self._thread: threading.Thread | None = None

    def put(self, upload: Upload, run_id: str) -> None:
        """Note a path that the run of this id shall have; returns at once."""
        with self._changed:
            self._left = [other for other in self._left if other != upload]
            self._waiting[upload] = (run_id, self._waiting.get(upload, ("", 0))[1] + 1)
            self._store()
            self._queue.append(upload)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mlflow-files", daemon=True)
                self._thread.start()
            self._changed.notify()

    def left(self) -> list[Upload]:
        """What an earlier driver has noted, MLflow has not taken, and this driver has not put yet."""
        return list(self._left)

    def _noted(self) -> list[Upload]:
        file = self._folder / LIST_FILE
        if not file.is_file():
            return []
        try:
            noted = json.loads(file.read_text(encoding="utf-8"))
            return [Upload(str(key), self._folder / path) for key, path in noted]
        except (ValueError, TypeError) as error:
            _logger.warning("%s: cannot be read: %s", file, error)
            return []

    def drain(self) -> None:
        """Wait until everything is sent or refused, or until nothing happens for a while; name what is left."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        num_tried, since = self._num_tried, time.monotonic()
        while self._thread is not None and self._thread.is_alive() and time.monotonic() - since < _PATIENCE:
            self._thread.join(0.05)
            if self._num_tried != num_tried:
                num_tried, since = self._num_tried, time.monotonic()
        self._given_up.set()
        with self._changed:
            names = [f"{upload.key or 'the sweep'}: {upload.path.name}" for upload in self._waiting]
        if names:
            shown = ", ".join(names[:_NUM_NAMED]) + (f" and {len(names) - _NUM_NAMED} more" * (len(names) > _NUM_NAMED))
            problem = self._problem or "no answer"
            _logger.warning(
                "MLflow at %s has not taken %s (%s); the same command sends it again", self._uri, shown, problem
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing.is_set())
                if self._closing.is_set():
                    break
                upload = self._queue.popleft()
            for number in range(_TRIES):
                if (number and self._closing.wait(_PAUSE)) or self._try(upload):
                    break
        num_refused = 0
        for upload in list(self._waiting):
            num_refused = 0 if self._try(upload) else num_refused + 1
            if num_refused == _MOST_REFUSED or self._given_up.is_set():
                return

    def _try(self, upload: Upload) -> bool:
        """Send a path; returns whether it needs no further try."""
        put = self._waiting.get(upload)
        if put is None:
            return True
        run_id, _ = put
        try:
            if upload.path.exists():
                self._deliver(run_id, upload.path)
            else:
                _logger.info("%s is gone: MLflow cannot have it", upload.path)
        except Exception as error:  # whatever goes wrong in logging, the sweep goes on
            if not self._problem:
                _logger.warning("MLflow at %s takes no files; it is tried again: %s", self._uri, error)
            self._problem = f"{type(error).__name__}: {first_line(error)}"
            return False
        else:
            with self._changed:
                if self._waiting.get(upload) == put:  # else it was put again meanwhile, with another content
                    del self._waiting[upload]
                self._store()
            return True
        finally:
            self._num_tried += 1

    def _store(self) -> None:
        """Write what waits; a disk that is full ends no sweep here."""
        file = self._folder / LIST_FILE
        waiting = [*self._waiting, *self._left]
        noted = [(upload.key, os.path.relpath(upload.path, self._folder)) for upload in waiting]
        try:
            if noted:
                write_whole(file, json.dumps(noted, indent=1) + "\n")
            else:
                file.unlink(missing_ok=True)
        except OSError as error:
            _logger.info("%s: %s", file, error)
