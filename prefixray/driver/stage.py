"""Stages, and which of them starts the next trial.

A stage holds the trials of one arm that are to be run: the arm's search, or its runs in the final stage. The final runs
of an arm that need not wait for other arms begin beside their searches. A schedule decides whose turn it is; it knows
how many trials run, but not their losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from prefixray.cluster.decode_queue import DecodeJob
from prefixray.cluster.pool import Pool
from prefixray.config.schema import ArmConfig, StopWhen
from prefixray.search.budget import Budget, ended_early, found_enough
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.halving import Halving
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Proposal, Record, TrialSource
from prefixray.trial import TrialSpec

MakeSpec = Callable[[Proposal | Record], TrialSpec]


@dataclass(frozen=True)
class Stage:
    """The trials of one arm that are to be run."""

    name: str  # of a search, the trials' keys are NAME/NUMBER
    arm: ArmConfig
    source: TrialSource
    concurrency: int
    spec: MakeSpec
    policy: Policy = field(default_factory=Halving)  # by default there is no rung
    decode: Callable[[TrialSpec], DecodeJob] | None = None  # how a trial that is done is decoded
    stop_when: StopWhen | None = None
    then: "Callable[[], Stage | None]" = lambda: None  # the stage that may begin once this one has ended
    num_then: int = 0  # how many trials that stage has at once, at most
    may_follow: Callable[[], bool] = lambda: True  # whether it is known by now what that stage is

    @property
    def is_search(self) -> bool:
        """Whether it is an arm's search, which a budget ends and requests change."""
        return isinstance(self.source, ArmStudy)

    def at_rung(self, step: int) -> str:
        """The note of a trial that is stopped or pauses at the rung of this step."""
        return f"at rung {self.policy.rungs.index(step) + 1}"

    def record(self, number: int) -> Record:
        """What the study knows of a trial."""
        return next(record for record in self.source.records() if record.number == number)

    def is_left(self, *, may_begin: bool) -> bool:
        """Whether trials of an arm's search run, pause or, where any may, are still to begin."""
        records = self.source.records()
        is_whole = len(records) >= self.source.num_wanted() or self.enough() is not None
        return (may_begin and not is_whole) or any(record.is_open for record in records)

    def enough(self) -> str | None:
        """Why the arm's search needs no more trials, whether it has any left or not; None while it does."""
        return None if self.stop_when is None else found_enough(self.source.records(), self.stop_when)


class Schedule:
    """Which stage may start a trial now.

    In a search, trials that share workers come first. Trials that need a worker alone are due when the other arms have
    begun half of their trials, until their own arm has begun half too; the rest comes last. So a search that ends early
    leaves every arm half searched.

    Final runs take the slots and the workers that the searches leave. Those that need a worker alone take long: they
    come first, and are due when such trials of a search would be, as long as they leave a worker for the rest.
    """

    def __init__(
        self,
        stages: list[Stage],
        pool: Pool,
        budget: Budget | None,
        *,
        num_begun: Callable[[Stage], int],
        num_active: Callable[[Stage], int],
        num_paused: Callable[[Stage], int],
    ) -> None:
        """`num_begun` counts the trials of a stage that have begun, `num_active` those that run.

        Stages that follow others join `stages`.
        """
        self._stages, self._pool, self._budget = stages, pool, budget
        self._num_begun, self._num_active, self._num_paused = num_begun, num_active, num_paused
        self._closed: dict[str, int | None] = {}  # stages that start no more, with the best trial where that was enough
        self._followed: set[str] = set()  # stages whose end has been followed by the next stage, if there is one
        self._is_held = False
        self._news: list[str] = []

    def in_turn(self) -> list[Stage]:
        """The stages that may start a trial now, in the order in which they are asked.

        While a stage that is due waits for an empty worker, one worker gets no more trials that share it.
        """
        sharing = [stage for stage in self._stages if stage.is_search and not stage.arm.exclusive]
        is_time = all(map(self._is_half_begun, sharing))
        due = [stage for stage in self._stages if is_time and stage.arm.exclusive and self._is_due(stage)]
        self._pool.reserve(any(self._num_active(stage) < stage.concurrency for stage in due))
        turns = {stage.name: 0 if stage in due else _turn(stage) for stage in self._stages}
        return sorted(self._stages, key=lambda stage: turns[stage.name])

    def propose(self, stage: Stage) -> Proposal | None:
        """The trial that gets a free slot; where none does, the stage may take no slot, or is closed from now on.

        First come trials that an earlier driver had running, then paused ones that the policy resumes, then new ones.
        """
        while not self._end_early(stage) and self._has_slot(stage):
            if not stage.source.num_orphans():
                key = stage.policy.take_up(more_come=self._has_new(stage))
                if key is not None:
                    stage.source.resume(number_of(key))
            is_closed = self._is_closed(stage)
            if not is_closed or stage.source.num_orphans():
                proposal = stage.source.ask()
                if proposal is not None:
                    return proposal
            if is_closed:
                return None
            self.close(stage)
        return None

    def more_come(self, stage: Stage) -> bool:
        """Whether a stage will start new trials."""
        return self._has_new(stage) and not (self._is_spent(stage) or stage.enough())

    def is_done(self, stage: Stage) -> bool:
        """Whether none of a stage's paused trials will be resumed; to be asked after `propose` has found none."""
        return self._is_closed(stage) and not self._num_active(stage) and self._has_slot(stage)

    def news(self) -> list[str]:
        """What a user should hear, once: which searches have ended before their last trials."""
        news, self._news = self._news, []
        return news

    def close(self, *stages: Stage) -> None:
        """Start no more new trials of these stages."""
        self._closed |= dict.fromkeys((stage.name for stage in stages), None)

    def hold(self) -> None:
        """Start no trial at all any more, and leave those that pause to the next driver."""
        self._is_held = True
        self.close(*self._stages)

    def reopen(self, stage: Stage) -> str | None:
        """Ask a stage again for trials; the run of the sweep for which they wait, None where any may start now."""
        if self._is_spent(stage):
            return "a run of the sweep with more hours, since those of this one are spent"
        if self._is_held:
            return "the next run of the sweep, since this one starts no more trials"
        self._closed.pop(stage.name, None)
        return None

    def has_ended(self, stage: Stage) -> bool:
        """Whether no trial of a stage runs or pauses, and none will start."""
        return self._is_closed(stage) and not self._num_active(stage) and not self._num_paused(stage)

    def follow(self) -> list[Stage]:
        """The stages that begin since others have ended; each begins once, and joins the stages."""
        if self._is_held:
            return []
        left = [stage for stage in self._stages if stage.name not in self._followed]
        ended = [stage for stage in left if self.has_ended(stage) and stage.may_follow()]
        self._followed |= {stage.name for stage in ended}
        following = [stage for one in ended if (stage := one.then()) is not None]
        self._stages += following
        return following

    def most_at_once(self) -> int:
        """How many trials there can be at a time, those of stages that follow included."""
        num_slots = self._pool.num_slots * self._pool.most_workers
        return max(1, min(num_slots, sum(stage.concurrency + stage.num_then for stage in self._stages)))

    def is_searching(self) -> bool:
        """Whether a trial of a search runs, pauses or may start."""
        return any(stage.is_search and not self.has_ended(stage) for stage in self._stages)

    def could_start(self) -> bool:
        """Whether a trial could start right now, so that no worker may take anything else."""
        return any(self._num_left(stage) and self._has_slot(stage) for stage in self._stages)

    def is_over(self) -> bool:
        """Whether no trial runs and none will start; to be asked after `follow`."""
        if not all(map(self._is_closed, self._stages)) or any(map(self._num_active, self._stages)):
            return False
        are_left = any(stage.name not in self._followed or self._num_paused(stage) for stage in self._stages)
        return self._is_held or not are_left

    def demand(self) -> tuple[int, int]:
        """Trials that run or could start now: those that share a worker, and those that need a worker alone."""
        num_sharing = num_exclusive = 0
        for stage in self._stages:
            num_active = self._num_active(stage)
            num_at_once = num_active + min(stage.concurrency - num_active, self._num_left(stage))
            if stage.arm.exclusive:
                num_exclusive += num_at_once
            else:
                num_sharing += num_at_once
        return num_sharing, num_exclusive

    def _end_early(self, stage: Stage) -> bool:
        """Close a stage that a spent budget or `search.stop_when` ends; whether it may start and resume nothing.

        Trials that an earlier driver had running go on in any case.
        """
        if stage.source.num_orphans():
            return False
        if self._closed.get(stage.name) is not None:
            if self._is_closed(stage):
                return True
            del self._closed[stage.name]
        is_spent = self._is_spent(stage)
        if not (is_spent or stage.enough()):
            return False
        if stage.name not in self._closed:
            assert isinstance(stage.source, ArmStudy), "nothing else ends early"
            news = ended_early(stage.arm, stage.source, stage.stop_when, self._budget)
            self._news += [] if news is None else [news]
            self._closed[stage.name] = None if is_spent else stage.source.best(1)[0].number
        return True

    def _is_closed(self, stage: Stage) -> bool:
        """Whether a stage starts no more new trials; a new best trial opens one that had found enough."""
        best = self._closed.get(stage.name)
        if best is None:
            return stage.name in self._closed
        return stage.source.best(1)[0].number == best or stage.enough() is not None

    def _has_new(self, stage: Stage) -> bool:
        """Whether new trials of a stage are left, and it is open."""
        return not self._is_closed(stage) and self._num_begun(stage) < stage.source.num_wanted()

    def _num_left(self, stage: Stage) -> int:
        """How many trials of a stage are still to begin, or pause while none of it runs."""
        num_left = 0 if self._is_closed(stage) else stage.source.num_wanted() - self._num_begun(stage)
        if not self._num_active(stage) and not self._is_held:
            num_left += self._num_paused(stage)
        return max(0, num_left)

    def _is_spent(self, stage: Stage) -> bool:
        """Whether a stage may start no trial since the budget is spent, which is the searches' alone."""
        return stage.is_search and self._budget is not None and self._budget.problem() is not None

    def _has_slot(self, stage: Stage) -> bool:
        if self._is_held or self._num_active(stage) >= stage.concurrency:
            return False
        return self._pool.has_room(exclusive=stage.arm.exclusive)

    def _is_due(self, stage: Stage) -> bool:
        """Whether a stage that needs a worker alone is due once the other searches are half begun."""
        if stage.is_search:
            return not self._is_half_begun(stage)
        num_alone = sum(self._num_active(other) for other in self._stages if other.arm.exclusive)
        return self._num_left(stage) > 0 and num_alone + 1 < self._pool.num_ready

    def _is_half_begun(self, stage: Stage) -> bool:
        return self._is_closed(stage) or 2 * self._num_begun(stage) >= stage.source.num_wanted()


def number_of(key: str) -> int:
    """The number of a trial in its stage's study, from the trial's key."""
    return int(key.rpartition("/")[2])


def _turn(stage: Stage) -> int:
    """When a stage that is not due is asked: first searches, and in the final stage those that need a worker alone."""
    if stage.is_search:
        return 2 if stage.arm.exclusive else 1
    return 3 if stage.arm.exclusive else 4
