"""Errors that a user can mend: a line for each problem, no traceback, no credentials.

All text that is logged, printed or sent elsewhere goes through `redacted` first. It hides logins, tokens and signatures
in addresses, passwords and keys in connection strings, what follows `Bearer`, the hub's tokens, which it knows by their
form, and the values of environment variables with names like TOKEN or PASSWORD. Where the end of a password is not
certain, more is hidden rather than less. What others wrote, a model or a data file, goes through `printable`.
"""

import errno
import os
import re
from urllib.parse import quote

_LOGIN = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
# A password may hold anything: it goes up to the last @ before a blank; where there is none, and what follows the colon
# is no port, it has blanks, and goes up to the next @.
_PASSWORD = re.compile(r"(?<=://)[^/\s:'\"]*:\S*(?=@)")
_WITH_BLANKS = re.compile(r"(?<=://)[^/\s:'\"]*:(?!\d{1,5}(?:[/\s'\"?#,;)\]}]|$))(?:(?!://)[^@\n])*(?=@)")
_IN_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:token|api_?key|access_?key|password|passwd|pwd|secret|sig|signature|credential)=)[^&\s'\"]+"
)
_IN_STRING = re.compile(
    r"(?i)((?:password|passwd|pwd|secret|access_?key|account_?key|api_?key|access_?token|signature)"
    r"[\"']?\s*(?:=\s*|:\s*(?=[\"'])))(?:\"[^\"\n]*\"|'[^'\n]*'|[^;&\n\"']+(?=;)|[^;&\s,'\"]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
_OF_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_SECRET_NAME = re.compile(
    r"(?i)(?:TOKEN|PASSWORD|PASSWD|SECRET|ACCESS_KEY|ACCOUNT_KEY|API_KEY|CREDENTIALS|CONNECTION_STRING)$"
)
_REMEDIES = {
    errno.ENOENT: "put back what somebody has moved or deleted, or delete the trial's whole folder",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ESTALE: "mount that file system anew",
}
_SHORTEST = 8  # hiding a shorter value would hide ordinary words
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Problems that the user can mend: one line for each, with its place, value, requirement and remedy."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(printable(redacted(problem)) for problem in problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        """Pickle it by its problems: it travels from workers to the driver."""
        return type(self), self.problems


class SweepFailed(UserError):
    """The reason why a sweep ended early, although nothing that the user wrote is wrong."""


class NoMemory(UserError):
    """A trial that the device has no memory for now; once others have ended, it may have."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def typed_line(error: BaseException) -> str:
    """An error's type, and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def is_of_disk(error: Exception) -> bool:
    """Whether the error comes from a file system, not from the network or from elsewhere."""
    return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)


def disk_problem(error: OSError) -> str:
    """The file system's reason, and the remedy."""
    prefix = f"{error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "make room or give access there")
    return f"{prefix}{error.strerror or error}; {remedy}, then run the same command again"


def redacted(text: str) -> str:
    """The text with `***` in place of credentials."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, "***").replace(quote(value, safe=""), "***")
    if "://" in text and "@" in text:
        for pattern in (_PASSWORD, _WITH_BLANKS, _LOGIN):
            text = pattern.sub("***", text)
    if "=" in text or ":" in text:
        text = _IN_STRING.sub(r"\1***", _IN_QUERY.sub(r"\1***", text))
    text = _BEARER.sub(r"\1***", text)
    return _OF_HUB.sub("hf_***", text) if "hf_" in text else text


def printable(text: str) -> str:
    r"""The text with control characters as `\x1b`, but for line breaks and tabs: raw they would command a terminal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
