"""The types that a sweep file becomes: one frozen class per section, with a sentence beneath each field.

`load.py` reads the YAML into them; nothing else constructs a `SweepConfig`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from prefixray.config.space import AnyDimension, AnyDistribution, Cases, corner_values
from prefixray.config.trials import METHODS, MethodName, TrainConfig, TrialConfig
from prefixray.data.catalog import CATALOG
from prefixray.data.task_config import TaskConfig
from prefixray.system.records import Scalar, Strict, Text

if TYPE_CHECKING:  # metrics import sacrebleu and numpy
    from prefixray.metrics.challenge_words import WordForm

SweepName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Evaluation = Literal["own", "paper"]
"""How hypotheses are made and scored: prefixray's own way, or the paper's."""

NamedPolicy = Literal["stop", "promote", "settle", "freeze_thaw"]
PolicyName = Literal["auto", NamedPolicy]
SamplerName = Literal["tpe", "gp", "cmaes", "random", "grid"]

_MOST_SEARCHED = 4  # documents, where the file says nothing

RECIPE_OF_ALL = frozenset({"eval_every", "precision", "gradient_checkpointing"})
"""Keys of `train` that an arm may not override: arms are comparable only where these are the same."""


class ArmConfig(Strict):
    """One method with its search space."""

    name: str
    """The arm's name in the sweep file."""
    method: MethodName
    """The method; in the file it may be left out where the arm has the method's name."""
    fixed: Mapping[str, Scalar]
    """The values that are not searched, by their keys."""
    dimensions: Mapping[str, AnyDimension]
    """The values that are searched, by their keys."""
    num_trials: PositiveInt
    """Trials of the search; 1 where nothing is searched."""
    first: tuple[Mapping[str, Scalar], ...] = ()
    """Configurations that are tried first."""
    first_auto: bool = False
    """Whether measured starting points near the arm are tried first: `first: auto`."""
    train: TrainConfig
    """The recipe that the arm overrides."""

    @property
    def num_steps(self) -> int:
        """Steps of a whole schedule: the same for all trials of the arm, so that those at a rung are comparable."""
        steps = self.fixed.get("num_steps")
        return steps if isinstance(steps, int) else self.train.num_steps

    @property
    def exclusive(self) -> bool:
        """Whether a trial cannot share the base, and so needs a worker alone."""
        return METHODS[self.method].has_own_model

    def largest(self, key: str) -> int:
        """The largest value that a key of the recipe, a whole number, has in the arm."""
        values, dimension = [self.fixed.get(key, getattr(self.train, key))], self.dimensions.get(key)
        if dimension is not None:
            is_always = isinstance(dimension, Cases) or not dimension.when
            values = [*dimension.ends(), *([] if is_always else values)]
        return max(value for value in values if isinstance(value, int))

    def distribution(self, key: str, values: Mapping[str, Scalar]) -> AnyDistribution | None:
        """The values that a key is searched over beside these values of the keys above it; None: it has its default."""
        return self.dimensions[key].at({**self.fixed, **values})

    def corners(self) -> Iterator[dict[str, Scalar]]:
        """Values of the searched keys in which each end of each dimension meets each end of each other one."""
        return corner_values(self.dimensions, self.fixed)

    def trial(self, values: Mapping[str, Any]) -> TrialConfig:
        """The configuration in which the searched keys have these values.

        Values are taken as strictly as in JSON: true is not 1, 5.0 is not a whole number, and "5" is no number. Raises
        pydantic's `ValidationError`.
        """
        given = {**self.fixed, **values}
        of_method = {key: value for key, value in given.items() if key in METHODS[self.method].model_fields}
        recipe = {**self.train.model_dump(), **{key: value for key, value in given.items() if key not in of_method}}
        trial = {**recipe, "arm": self.name, "method": {**of_method, "method": self.method}}
        return TrialConfig.model_validate_json(json.dumps(trial), strict=True)


class StopWhen(Strict):
    """When an arm's search has found enough: it starts no more trials, and those that run end as they would."""

    no_better: PositiveInt | None = None
    """Once this many trials in a row have ended, or pause, without a new best dev loss; null: never."""
    dev_loss: PositiveFloat | None = Field(default=None, alias="dev/loss")
    """Once a finished trial's dev loss is at most this; null: never."""

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if self.no_better is None and self.dev_loss is None:
            raise ValueError("must have no_better, dev/loss or both")
        return self


class SearchConfig(Strict):
    """How configurations are proposed, compared and stopped. Counts hold for each arm."""

    metric: Literal["dev/loss"] = "dev/loss"
    """What trials are compared by; lower is better."""
    num_trials: PositiveInt
    """Trials per arm that has something to search."""
    concurrency: PositiveInt | None = None
    """Trials of an arm at once; null: a quarter of num_trials, at least 8 and at most the slots (more would blind the
    sampler)."""
    policy: PolicyName = "auto"
    """What becomes of the worse trials at a rung. stop: they end there. promote: they pause there; a paused trial goes
    on once it is among the best `keep` of its rung. At the last rung all trials are ranked together, at the others each
    kind by itself (a kind: the method, and of a prefix whether it is flat, its prefix_mode and its format_mode).
    settle: as promote, but no higher than the rung that orders its trials as the rung below does; then the best one
    goes on alone. freeze_thaw: they pause where their curves promise less than a new trial, and go on once they promise
    more; keep does not count. Fine-tuning is stopped in any case. auto: promote, which was chosen on recorded
    curves."""
    rungs: Literal["auto"] | tuple[PositiveInt, ...] = "auto"
    """Steps at which the worse trials are stopped, or pause; none before the end of a warm-up. auto: at 0.1, 0.2 and
    0.4 of the shortest schedule of the arms that are searched. []: every trial comes to its end."""
    keep: float | None = Field(default=None, gt=0.0, le=1.0)
    """The share of trials that goes on at a rung; null: 0.35 by policy auto, 0.5 by the others. Where
    trials pause, 0.6 of this share goes on as long as trials are still to begin; by promote two go on at least after
    that."""
    dev_sample: float | None = Field(default=None, gt=0.0, le=1.0)
    """The share of the dev examples on which trials are compared at all rungs but the last, at least 8 of them. The
    last rung, each train.eval_every and the end take all. null: 0.25, and 1 by freeze_thaw, which looks at whole
    curves, or where train.eval_every takes all at the first rung anyway."""
    sampler: SamplerName = "tpe"
    """How configurations are proposed. tpe takes every space. gp: no conditions. cmaes: at least two ranges per arm, no
    choices, no conditions; needs the extra cmaes. random takes every space. grid: no float ranges; points in any
    order, each once."""
    seed: int = Field(default=1, ge=0)
    """Every random draw of the sweep derives from it."""
    warm_start: Text | None = None
    """Another sweep's folder, runs/OTHER: its best configurations are tried first, and its trials teach the sampler.
    Its base and task must be the same, and its trials such as this sweep's arms could have. null: nothing is known."""
    documents: PositiveInt | None = None
    """Task document: how many of the documents, by their files' names the first ones, each trial of a search trains on,
    one prefix for each; its dev loss is the mean over them. null: 4, or all where there are fewer."""
    stop_when: StopWhen | None = None
    """When an arm starts no more trials, such as {no_better: 12} or {dev/loss: 1.6}; null: after num_trials alone."""
    max_hours: PositiveFloat | None = None
    """Hours on the clock of all runs of the command together, counted while anything is searched. After them no trial
    of a search is started; running ones end as they would."""
    max_gpu_hours: PositiveFloat | None = None
    """The same after this many hours of all workers' devices together, GPUs or not."""
    max_wait_hours: PositiveFloat | None = None
    """How long the sweep waits for a worker's device while there is none at all, or none large enough for the
    fine-tuning that is left; null: as long as it takes."""
    max_failures: PositiveInt = 3
    """How often a worker may die in a row with this trial alone in its pack before the trial has failed."""

    def num_searched(self, num_documents: int) -> int:
        """Of so many documents of a task, those that a trial of a search trains on; 1 where the task has none."""
        return max(1, min(self.documents or _MOST_SEARCHED, num_documents))


class DecodingSettings(Strict):
    """How a hypothesis is found: the same for every arm, recorded in artifacts and results."""

    num_beams: PositiveInt = 5
    """Beams of the search; 1 is greedy."""
    min_new_tokens: int = Field(default=0, ge=0)
    """No end before this many tokens."""
    max_new_tokens: PositiveInt = 100
    """Tokens after which a hypothesis is cut."""
    length_penalty: float = 1.0
    """Exponent of the length by which a beam's score is divided."""
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """No run of this many tokens comes twice in a hypothesis; 0: no such rule."""
    early_stopping: bool = False
    """true: a source is done when as many hypotheses as beams have ended; false: when no better one can come."""
    length_with_prompt: bool = False
    """Decoder-only bases: the length that divides a beam's score counts the prompt too, and no end token, as in the
    transformers of 2020. So longer hypotheses are preferred less."""
    ban_line_breaks: bool = False
    """Decoder-only bases: no token that is only line breaks is written. A hypothesis that has one is cut there."""
    batch_size: PositiveInt = Field(default=32)
    """Sources that are decoded at once, at most."""


class FinalRuns(Strict):
    """How many runs the final stage has, and the metrics by which they are compared."""

    candidates: PositiveInt = 1
    """Configurations per arm that are retrained and compared on dev by `metric`; with 1 there is nothing to compare."""
    num_seeds: PositiveInt = 1
    """Fresh seeds of each arm's winner; only these see test."""
    metric: str = "test/bleu"
    """The primary metric: one of the task's, or package.module:function of your own, which takes all hypotheses and the
    list of each source's references, and returns a number for each source, higher for better. Its module lies where
    Python looks, or in the working directory."""
    more_metrics: tuple[str, ...] = ()
    """Metrics that are scored besides `metric` and the task's own: test/ter, test/meteor_1_5 (needs Java). Two read no
    hypothesis: test/perplexity is that of each source's first reference, and test/divergence, for a document, the mean
    Kullback-Leibler divergence from the teacher, in nats per token of the answers."""
    reference: str | None = None
    """The arm that the others are compared with; null: the first."""

    @property
    def named_metrics(self) -> tuple[str, ...]:
        """All metrics that the file names."""
        return self.metric, *self.more_metrics


class FinalConfig(DecodingSettings, FinalRuns):  # pydantic puts the last base's keys first
    """The final stage: the best configurations again with fresh seeds, decoded and scored on test."""

    @property
    def decoding(self) -> DecodingSettings:
        """The settings of the beam search alone."""
        return DecodingSettings(**{key: getattr(self, key) for key in DecodingSettings.model_fields})


class TrackingConfig(Strict):
    """Where runs are logged."""

    mlflow: str | None = "auto"
    """auto: sqlite in the sweep's folder; a tracking URI; null: no MLflow."""
    artifacts: Literal["finished", "none"] = "finished"
    """Which trials' artifacts are logged."""


class SweepConfig(Strict):
    """A whole sweep file."""

    name: SweepName
    """Results go to runs/NAME."""
    base: Text
    """A hub id, a folder, a GGUF file, or package:file for a file inside an installed package."""
    trust_remote_code: bool = False
    """Run Python files that the base brings beside its weights; read them first."""
    task: TaskConfig
    evaluation: Evaluation = "own"
    """own, or paper: as Li & Liang 2021 measured. paper scores WebNLG and DART as their scripts do, and makes
    task.tokenised (e2e) and final.length_with_prompt and final.ban_line_breaks (data-to-text) true by default. Where
    the targets stay the same, a finished sweep may change it: it is decoded and scored again."""
    train: TrainConfig
    arms: tuple[ArmConfig, ...]
    search: SearchConfig
    final: FinalConfig = FinalConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def word_form(self) -> "WordForm | None":
        """The form in which hypotheses and references are compared; None: each metric has its own."""
        return CATALOG[self.task.name].word_form if self.evaluation == "paper" else None

    def arm(self, name: str) -> ArmConfig:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)
