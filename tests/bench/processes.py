"""A command and everything that it starts, wherever that goes: its memory and its CPU time while it runs, its end.

Ray's processes may lose their parents, and some overwrite their environment: a process belongs to the command if it or
an ancestor bears the command's mark.
"""

import contextlib
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_MARK = "WHOLE_SWEEP_COMMAND"
REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE_SECONDS = 1.0


class Watched:
    """A command that runs, and the peak memory of all its processes (proportional set size: shared pages once)."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Start it in a folder, with the repository's modules; what it prints goes to `output.txt` there."""
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        with (folder / "output.txt").open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, **environment, name: value},
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                start_new_session=True,
            )
        self.peak_bytes = 0
        self.num_processes = 0
        """At the peak."""
        self._cpu_seconds: dict[tuple[int, float], float] = {}  # by process: its id and when it was created
        self._commands: dict[tuple[int, float], str] = {}  # its command line, as it was last: Ray renames its workers
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give it a minute to end, or no time where something has gone wrong."""
        self.close(60.0 if kind is None else 0.0)

    @property
    def cpu_seconds(self) -> float:
        """Of all processes so far, those that have ended too; what they took since the last sample is not in it."""
        return sum(self._cpu_seconds.values())

    def cpu_by_command(self) -> Sequence[tuple[str, float]]:
        """The command line of each process so far, and its CPU seconds; taken anew of those that live."""
        self._note_cpu(self.processes())
        return [(self._commands[which], seconds) for which, seconds in self._cpu_seconds.items()]

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def close(self, seconds: float) -> None:
        """Wait for its end, and end by force what is left of it then."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._ended.set()
        self._sampler.join()
        left = self.processes()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=30)

    def processes(self) -> list[psutil.Process]:
        """Those that live now."""
        parents = {process.pid: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        marked = {pid for pid in parents if self._bears_mark(pid)}

        def belongs(pid: int | None) -> bool:
            while pid is not None and pid in parents:
                if pid in marked:
                    return True
                pid = parents[pid] if parents[pid] != pid else None
            return False

        found = []
        for pid in filter(belongs, parents):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            processes = self.processes()
            self._note_cpu(processes)
            used = sum(proportional_bytes(process.pid) for process in processes)
            if used > self.peak_bytes:
                self.peak_bytes, self.num_processes = used, len(processes)

    def _note_cpu(self, processes: Sequence[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                which, times = (process.pid, process.create_time()), process.cpu_times()
                self._commands[which] = " ".join(process.cmdline()) or self._commands.get(which, "")
                self._cpu_seconds[which] = times.user + times.system

    def _bears_mark(self, pid: int) -> bool:
        try:
            return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def proportional_bytes(pid: int) -> int:
    """The memory of a process, its part of shared pages; 0 where it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
