"""Dev losses of the trials in a pack: at rungs over a sample of dev, elsewhere over all of it."""

import functools
import time
from collections.abc import Iterable, Mapping, Sequence

from prefixray.batching.rows import Row, sampled
from prefixray.training.pack import Pack
from prefixray.training.progress import Progress
from prefixray.trial import LOSS, SAMPLE_LOSS


class DevLosses:
    """Evaluates trials on the dev rows of their subsets."""

    def __init__(self, pack: Pack, rows: Sequence[Sequence[Row]]) -> None:
        """`rows` are the dev rows of each subset of the task."""
        self._pack, self._rows = pack, rows
        self.seconds = 0.0  # of evaluations so far

    def of(self, trials: Sequence[Progress]) -> dict[str, dict[str, float]]:
        """The dev losses of trials at their steps, as metrics by trial: means over a trial's members.

        Members that need the same rows share one pass. Where all of dev is due, the sample and the rest of it run one
        after the other, so that both losses are known.
        """
        began, wanted = time.monotonic(), dict[tuple[int, float, bool], list[str]]()
        for trial in trials:
            spec = trial.spec
            is_whole = trial.step in spec.whole_steps()
            for member, subset in spec.member_keys().items():
                for is_rest in (False, True) if is_whole else (False,):
                    wanted.setdefault((subset, spec.dev_sample, is_rest), []).append(member)
        found: dict[tuple[str, bool], float] = {}
        for (subset, share, is_rest), members in wanted.items():
            rows = self._parts(subset, share)[is_rest]
            if rows:
                losses = self._pack.evaluate(members, rows)
                found |= {(member, is_rest): loss for member, loss in losses.items()}
        self.seconds += time.monotonic() - began
        return {trial.spec.key: self._metrics(trial, found) for trial in trials}

    def _metrics(self, trial: Progress, found: Mapping[tuple[str, bool], float]) -> dict[str, float]:
        """A trial's losses, from those of its members over the sample and over the rest."""
        share, of_sample, of_all = trial.spec.dev_sample, list[float](), list[float]()
        for member, subset in trial.spec.member_keys().items():
            sample, rest = self._parts(subset, share)
            loss = found[member, False]
            of_sample.append(loss)
            if not rest:
                of_all.append(loss)
            elif (member, True) in found:
                total = loss * _num_targets(sample) + found[member, True] * _num_targets(rest)
                of_all.append(total / _num_targets(self._rows[subset]))
        metrics = {} if share == 1 else {SAMPLE_LOSS: _mean(of_sample)}
        return metrics | ({LOSS: _mean(of_all)} if len(of_all) == len(of_sample) else {})

    @functools.cache  # noqa: B019 - one for each trainer
    def _parts(self, subset: int, share: float) -> tuple[Sequence[Row], Sequence[Row]]:
        """A sample of a subset's dev rows, and the rest of them."""
        rows = self._rows[subset]
        numbers = sampled(range(len(rows)), share)
        rest = sorted({*range(len(rows))} - {*numbers})
        return [rows[number] for number in numbers], [rows[number] for number in rest]


def _num_targets(rows: Iterable[Row]) -> int:
    return sum(row.num_targets for row in rows)


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)
