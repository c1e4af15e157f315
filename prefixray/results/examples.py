"""The sources that a report shows with every arm's output: the first ones, and those where the arms differ most."""

from collections.abc import Mapping, Sequence

import numpy as np

from prefixray.data import Sourced
from prefixray.metrics import Floats, Scored, higher_is_better
from prefixray.results.record import UNTRAINED, ExampleOutputs

NUM_EXAMPLES = 3  # first sources that are printed with their outputs
NUM_EXTREMES = 20  # sources on which arms and the reference differ most


def all_outputs(
    outputs: Mapping[str, Sequence[str]], scored: Mapping[str, Scored], sources: Sequence[Sourced]
) -> list[ExampleOutputs]:
    """Every source with the arms' outputs and their scores; `outputs` and `scored` are by arm, of one run each."""
    scores = {arm: run.of_sums(run.statistics) for arm, run in scored.items()}  # (N,) each, a score per source
    return [
        ExampleOutputs(
            source=sourced.source,
            references=list(sourced.references),
            outputs={arm: texts[index] for arm, texts in outputs.items()},
            scores={arm: float(values[index]) for arm, values in scores.items()},
        )
        for index, sourced in enumerate(sources)
    ]


def choose_examples(every: Sequence[ExampleOutputs], reference: str, metric: str) -> list[ExampleOutputs]:
    """The first sources, then those where the arms differ most."""
    scores = {arm: np.array([example["scores"][arm] for example in every]) for arm in every[0]["scores"]}
    chosen = choose_extremes(scores, reference, 1.0 if higher_is_better(metric) else -1.0)
    num_first = NUM_EXAMPLES if chosen else NUM_EXTREMES
    examples = []
    for index in dict.fromkeys([*range(min(num_first, len(every))), *chosen]):
        example = every[index].copy()
        if index in chosen:
            example["arm"] = chosen[index]
        examples.append(example)
    return examples


def choose_extremes(scores: Mapping[str, Floats], reference: str, sign: float) -> dict[int, str]:
    """The sources on which an arm is farthest behind the reference or ahead, each with its arm; arms take turns."""
    queues: list[tuple[str, list[int]]] = []
    for arm in (arm for arm in scores if arm not in (reference, *UNTRAINED)):
        difference = sign * (scores[arm] - scores[reference])
        for end in (difference, -difference):
            queues.append((arm, [int(i) for i in np.argsort(end, kind="stable") if end[i] < 0]))
    chosen: dict[int, str] = {}
    while len(chosen) < NUM_EXTREMES and any(queue for _, queue in queues):
        for arm, queue in queues:
            while queue and queue[0] in chosen:
                del queue[0]
            if queue and len(chosen) < NUM_EXTREMES:
                chosen[queue.pop(0)] = arm
    return chosen
