"""What a user is told when something is wrong: a line per problem, no traceback."""

from prefixray.masking import masked


class UserError(Exception):
    """What the user can mend: one line per problem, each with its place, value, requirement and remedy."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(masked(problem) for problem in problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, ...]]:
        """Pickled as it was made: it travels from workers to the driver."""
        return type(self), self.problems


class SweepFailed(UserError):
    """What kept a sweep from its end although nothing that the user wrote is wrong."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or of what it is called where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_of_disk(error: Exception) -> bool:
    """Whether it comes from a file system, not from the network or from elsewhere."""
    return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)


def disk_problem(error: OSError) -> str:
    """What the file system has against it, and what to do."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}; make room or give access there, then run the same command again"
