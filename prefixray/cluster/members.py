"""The trials in a worker's pack as their seats know them, and the reports that these have not fetched yet.

A trial's membership is its key and a token, so a call from a seat (`driver/engine`) that has been replaced is
recognised, and ignored.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefixray.trial import Report


@dataclass
class _Membership:
    """A trial in the pack, and the seat that asks for its reports."""

    token: str
    reports: deque[Report] = field(default_factory=deque)  # that the seat has not fetched yet
    verdict_due: bool = False  # the seat has the report of a rung, and has not come back yet


class Members:
    """The trials in the pack and their reports; used by several threads, under one condition."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._members: dict[str, _Membership] = {}
        self.may_go_on: set[str] = set()  # trials at a rung whose verdict is to go on

    def join(self, key: str, token: str) -> None:
        """Make a trial a member."""
        with self._changed:
            self._members[key] = _Membership(token)

    def forget(self, *keys: str) -> None:
        """Let trials be no members any more; their seats get None."""
        with self._changed:
            for key in keys:
                self._members.pop(key, None)
                self.may_go_on.discard(key)
            self._changed.notify_all()

    def deliver(self, reports: Sequence[Report]) -> None:
        """Have reports ready for the seats of their trials."""
        with self._changed:
            for report in reports:
                if report.key in self._members:
                    self._members[report.key].reports.append(report)
            self._changed.notify_all()

    def has_report(self, key: str) -> bool:
        """Whether a trial's seat has a report to fetch."""
        with self._changed:
            return key in self._members and bool(self._members[key].reports)

    def next_report(self, key: str, token: str) -> Report | None:
        """Wait for a trial's next report. To ask again after the report of a rung is the verdict to go on.

        None: the trial is no member (any more) under this token.
        """
        with self._changed:
            while True:
                member = self._members.get(key)
                if member is None or member.token != token:
                    return None
                if member.verdict_due:
                    member.verdict_due = False
                    self.may_go_on.add(key)
                    self._changed.notify_all()
                if member.reports:
                    report = member.reports.popleft()
                    member.verdict_due = report.rung is not None
                    if report.state != "running":
                        del self._members[key]
                    return report
                self._changed.wait()
