"""The candidates of an arm: its best configurations, trained with one seed each, of which one goes on.

Where `final.candidates` is above 1, their hypotheses on dev decide. An arm whose search has ended decides while others
are still searched, as soon as its candidates have decoded dev.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from prefixray.cluster.decode_queue import DecodeJob
from prefixray.cluster.pool import Pool
from prefixray.data import Sourced
from prefixray.metrics import higher_is_better
from prefixray.metrics.challenge_words import WordForm
from prefixray.results.by_document import parts_of, score_together
from prefixray.results.final_run import FinalRun, by_seed, complete
from prefixray.results.hypotheses import sources_about

logger = logging.getLogger(__name__)


def best_candidate(
    runs: Sequence[FinalRun], dev_sources: Sequence[Sourced], metric: str, form: WordForm | None = None
) -> FinalRun:
    """The run whose hypotheses on dev score best; `form` is that in which texts are compared."""
    sign = 1.0 if higher_is_better(metric) else -1.0
    scores: dict[int, float] = {}
    for of_trial in by_seed(runs):
        parts = parts_of(of_trial)
        sources = [sourced for part in parts for sourced in sources_about(dev_sources, part.document)]
        scores[of_trial[0].number] = score_together(parts, "dev", sources, [metric], form)[metric].corpus()
    logger.info("candidates on dev: %s", ", ".join(f"trial {number} {value:.2f}" for number, value in scores.items()))
    return max(runs, key=lambda run: sign * scores[run.number])


class EarlyChoice:
    """The choice among an arm's candidates while others are searched.

    It is made in a thread of its own, since it reads the data and scores for seconds to minutes. Where it cannot be
    made, it is left to the final stage, which says why.
    """

    def __init__(
        self,
        runs: Sequence[FinalRun],
        pool: Pool,
        job_of: Callable[[FinalRun], DecodeJob],
        choose: Callable[[Sequence[FinalRun]], FinalRun],
    ) -> None:
        """`runs` are those of all candidates; `choose` gets those that have ended well, decoded by `job_of`."""
        self._runs, self._pool, self._job_of, self._choose = runs, pool, job_of, choose
        self._jobs: Sequence[DecodeJob] | None = None
        self._thread: threading.Thread | None = None
        self.made: FinalRun | None = None
        """The run that was chosen, once `is_over`; None where none could be."""

    def is_over(self) -> bool:
        """Whether the choice is made or cannot be made now; to be asked once all runs have ended.

        Until then idle workers decode what is left.
        """
        if self._jobs is None:
            self._runs = complete(self._runs)
            self._jobs = [self._job_of(run) for run in self._runs]
            for job in self._jobs:
                self._pool.decode_when_idle(job)
        if self._thread is None:
            if any(map(self._pool.is_decoding, self._jobs)):
                return False
            self._thread = threading.Thread(target=self._make, name="candidates", daemon=True)
            self._thread.start()
        return not self._thread.is_alive()

    def _make(self) -> None:
        try:
            self.made = self._choose(self._runs) if self._runs else None
        except Exception as error:  # of a decoding that has failed, for instance, which is tried again in the end
            logger.info("no candidate of %s could be chosen early", self._runs[0].arm.name, exc_info=error)
