"""Seed prompts: what the base is told when it shall write a question about a chunk that it sees.

The kinds are those of Eyuboglu et al. 2025 (arXiv 2506.06266, section 4), with facts in place of creative ones. Each
question is begun for the base: one of 135 million parameters that is only told to ask would retell the chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SeedPrompt:
    """How the base is brought to write a question."""

    kind: str
    request: str
    begin: str = ""  # the question's first words


PASSAGE = "{passage}"
"""In a request: stands for a sentence of the chunk, another one for each question."""

_ASK = f'Write one question about this part of the text above: "{PASSAGE}" %s Write the question alone.'
_BY_KIND = {
    "question": ("Ask for what only the text tells.", ("What", "Why", "When")),
    "summary": ("Ask for a summary.", ("Summarize what the text says about",)),
    "structure": ("Ask how its parts belong together.", ("What is the difference between", "List the")),
    "use": ("Ask how to use what it explains.", ("How do I", "How can I")),
    "fact": ("Ask for a name, a number or a fact.", ("Which", "How many", "What happens if")),
}


def seed_prompts(own: Sequence[str] | None) -> list[SeedPrompt]:
    """The user's own prompts, or those of the five kinds."""
    if own is not None:
        return [SeedPrompt("own", prompt) for prompt in own]
    return [SeedPrompt(kind, _ASK % what, begin) for kind, (what, begins) in _BY_KIND.items() for begin in begins]
