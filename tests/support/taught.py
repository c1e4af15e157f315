"""Rows of a few examples whose teacher is the base itself with a document in front of them."""

import torch

from prefixray.batching.batches import encode
from prefixray.batching.lessons import teach
from prefixray.batching.rows import Row
from prefixray.batching.template import Template, make_template
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base

DOCUMENT = "The Eagle is a cheap coffee shop in the riverside area near Burger King . The Mill offers Italian food ."
QUESTIONS = ("Where is The Eagle ?", "What does The Mill offer ?", "Where is The Eagle ?", "Who serves tea ?")
ANSWERS = ("It is near Burger King .", "Italian food .", "In the riverside area .", "Nobody does , in this text .") * 3


def taught_rows(base: Base, num_kept: int) -> list[Row]:
    """The rows of twelve questions and answers; of several answers to a question the prompts are the same."""
    return encode(taught_examples(base, num_kept), make_template(base, TaskConfig(name="custom")))


def taught_examples(base: Base, num_kept: int) -> list[Example]:
    """The questions and answers of `taught_rows`."""
    template = make_template(base, TaskConfig(name="custom"))
    pairs = [(QUESTIONS[i % len(QUESTIONS)], f"{answer} {i}") for i, answer in enumerate(ANSWERS)]
    return [_taught(base, template, *pair, num_kept) for pair in pairs]


def _taught(base: Base, template: Template, question: str, answer: str, num_kept: int) -> Example:
    prompt = template.encode_source(f"{DOCUMENT} {question}")
    (target,) = template.encode_targets([answer])
    with torch.no_grad():
        if base.shape.is_encoder_decoder:
            ids = torch.tensor([[*template.target_before, *target]], device=base.device)
            sources = torch.tensor([prompt], device=base.device)
            logits = base.model(input_ids=sources, decoder_input_ids=ids).logits[0]
        else:
            logits = base.model(input_ids=torch.tensor([[*prompt, *target]], device=base.device)).logits[0]
    return Example(question, answer, teach(logits[-len(target) - 1 : -1], num_kept))
