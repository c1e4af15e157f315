"""Errors that a user can mend: a line for each problem, no traceback, no credentials.

All text that is logged, printed or sent elsewhere goes through `redacted` first. It hides logins and tokens in
addresses, the hub's tokens, which it knows by their form, and the values of environment variables with names like
TOKEN or PASSWORD.
"""

import os
import re

_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&](?:access_token|token|api_key|password|secret|sig|signature)=)[^&\s'\"]+")
_OF_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_SECRET_NAME = re.compile(r"(?i)(?:TOKEN|PASSWORD|PASSWD|SECRET|SECRET_ACCESS_KEY|API_KEY|CREDENTIALS)$")
_SHORTEST = 8  # hiding a shorter value would hide ordinary words


class UserError(Exception):
    """Problems that the user can mend: one line for each, with its place, value, requirement and remedy."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(redacted(problem) for problem in problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        """Pickle it by its problems: it travels from workers to the driver."""
        return type(self), self.problems


class SweepFailed(UserError):
    """The reason why a sweep ended early, although nothing that the user wrote is wrong."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_of_disk(error: Exception) -> bool:
    """Whether the error comes from a file system, not from the network or from elsewhere."""
    return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)


def disk_problem(error: OSError) -> str:
    """The file system's reason, and the remedy."""
    prefix = f"{error.filename}: " if error.filename else ""
    return f"{prefix}{error.strerror or error}; make room or give access there, then run the same command again"


def redacted(text: str) -> str:
    """The text with `***` in place of credentials."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    text = _IN_ADDRESS.sub("***", text) if "@" in text else text
    text = _IN_QUERY.sub(r"\1***", text) if "=" in text else text
    return _OF_HUB.sub("hf_***", text) if "hf_" in text else text
