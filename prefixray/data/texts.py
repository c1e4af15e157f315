"""Values from files as texts: which are empty, what is wrong with one, and where its lines end."""

from prefixray.data.row_files import kind_of


def one_line(text: str) -> str:
    """The text with a space for each line break: the characters at which `str.splitlines` divides a text."""
    return " ".join(text.splitlines())


def up_to_line_break(text: str) -> str:
    """The text's first line, which ends at the first of `one_line`'s line breaks."""
    return text.splitlines()[0] if text else ""


def is_empty(text: object) -> bool:
    """Whether a value from a file is no text at all, or nothing but white space; NaN is how Parquet lacks a number."""
    return text is None or text != text or (isinstance(text, str) and not text.strip())


def text_problem(text: object) -> str | None:
    """Why a value from a file is no text that can be read or scored; None where nothing is wrong with it."""
    if not isinstance(text, str):
        return f"is {kind_of(text)}; it must be text"
    if not text.strip():
        return "is empty"
    if "\0" in text:
        return "holds a NUL character"
    return encoding_problem(text)


def encoding_problem(text: str) -> str | None:
    """Why no file and no tokenizer takes a text; None where they do."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half a surrogate pair, which is no text"
    return None
