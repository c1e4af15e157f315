"""The types that a sweep file becomes: frozen, checked, one class per section, every field explained where it stands.

`sweepfile.py` reads the YAML into them; nothing else constructs a `SweepConfig`.
"""

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from prefixray.space import AnyDimension, Scalar

Count = PositiveInt | Literal["all"]
TaskName = Literal[
    "e2e",
    "webnlg",
    "dart",
    "custom",
    "xsum",
    "xsum_news",
    "xsum_sport",
    "cnn_dm",
    "dialogsum",
    "scitldr",
    "summarization",
]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """A frozen record that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnsConfig(Strict):
    """The names of the columns of a user's own files."""

    source: str = "source"
    """The input text."""
    target: str = "target"
    """The output text; in a JSONL file it may be a list of references."""
    group: str | None = None
    """A column that says to which group of the test sources a row belongs; each is scored alone too. null: none."""


class LowDataConfig(Strict):
    """Small training sets drawn from a large one, several of them, as in Li & Liang 2021, section 6.3."""

    size: PositiveInt
    """Training examples of a subset."""
    num_subsets: PositiveInt = 5
    """How many subsets there are. Final run k trains on number (k - 1) modulo num_subsets, so that `final.num_seeds` of
    twice as many gives two seeds on each; the search has the first."""
    dev_share: float = Field(default=0.3, gt=0.0)
    """Dev examples of a subset, as a share of `size`."""
    seed: int = Field(default=1, ge=0)
    """Which subsets; the sweep's own seed has no part in it."""

    @property
    def num_dev(self) -> int:
        """Dev examples of a subset."""
        return max(1, round(self.dev_share * self.size))


TASK_PATHS = ("path", "urls", "train", "dev", "test")
"""The keys of a task that name files, or for `path` a hub data set."""


class TaskConfig(Strict):
    """The data set, and how much of it is used."""

    name: TaskName
    """e2e ships with prefixray; webnlg, dart and the summarisation sets are read from `path`; custom (data-to-text) and
    summarization read a user's own data: the files under train, dev and test, or what `path` names."""
    path: Text | None = None
    """A folder, or a hub data set. webnlg: the 2017 challenge's XML or JSON files. dart: its JSON files. Summarisation:
    train, dev and test as JSONL, CSV or the original's .source and .target files; null: the set's own place on the hub.
    """
    urls: Text | None = None
    """xsum_news, xsum_sport: the file of the articles' URLs that tells their topics, where the data does not."""
    train: Text | None = None
    """custom, summarization: a JSONL or CSV file of training examples."""
    dev: Text | None = None
    """custom, summarization: the file that trials are compared on."""
    test: Text | None = None
    """custom, summarization: the file that the final stage scores."""
    columns: ColumnsConfig = ColumnsConfig()
    """custom, summarization: the names of the columns."""
    num_train: Count = "all"
    """How many training examples, chosen by a hash of their source."""
    fraction: float | None = Field(default=None, gt=0.0, le=1.0)
    """In place of num_train: the share of the training examples, chosen in the same way."""
    low_data: LowDataConfig | None = None
    """In place of num_train and num_dev: several small subsets of train and dev, one for each final run in turn."""
    num_dev: Count = "all"
    """How many dev examples (source-reference pairs) the dev loss is computed on; different sources come first."""
    num_test: Count = "all"
    """How many test sources are decoded and scored, each against all its references."""
    template: Literal["plain", "chat"] = "plain"
    """How a source becomes a prompt. chat: as a user's message in the base's own chat format (instruction-tuned,
    decoder-only bases), the target as the answer."""
    instruction: Text | None = None
    """Text in front of every source: what a chat model is asked to do, or T5's "summarize:"."""
    separator: Text | None = None
    """plain, decoder-only: text between source and target; null: the base's end token where it also begins a sequence,
    else a line break."""
    max_source_tokens: PositiveInt = 512
    """Longer sources are cut at their end, with a count in the log."""
    max_target_tokens: PositiveInt = 128
    """Longer training targets are cut at their end."""

    @property
    def paths(self) -> dict[str, str]:
        """What it names of `TASK_PATHS`."""
        return {key: value for key in TASK_PATHS if (value := getattr(self, key)) is not None}


class TrainConfig(Strict):
    """The recipe that all arms share; an arm may override any of it but what `RECIPE_OF_ALL` names."""

    batch_size: PositiveInt = 8
    """Examples per forward of a trial."""
    grad_accumulation: PositiveInt = 1
    """Forwards per step of the optimiser; a step sees batch_size x grad_accumulation examples."""
    order: Literal["pairs", "sources"] = "pairs"
    """What is shuffled. pairs: examples, each by itself. sources: sources, whose references follow one another; those
    that meet in a step share its prompt: fewer tokens are computed, and a step sees fewer sources."""
    num_steps: PositiveInt
    """Steps of the optimiser in a whole schedule; a trial stopped early has seen a part of the same schedule."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to 0 after the warm-up, or that it does not."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's, on matrices only."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Each trial's gradient is scaled down to this norm; null: not at all."""
    objective: Literal["token_mean", "sentence_sum"] = "token_mean"
    """token_mean: mean over the batch's target tokens. sentence_sum: per example the sum over its target tokens,
    averaged over examples (the original's default)."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations on dev besides the rungs and the end; null: only there."""
    label_smoothing: Share = 0.0
    """The share of a training target's probability that is spread over the vocabulary; dev/loss is never smoothed."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each block and compute the rest again in the backward: less memory, a third more time.
    """
    precision: Literal["auto", "fp32", "bf16", "4bit"] = "auto"
    """The frozen base's; trained parts are fp32. auto: bf16 where the hardware multiplies bf16 matrices. 4bit: NF4
    weights, computed in bf16, on a GPU with the extra prefixray[4bit]."""

    @field_validator("warmup_steps")
    @classmethod
    def _warmup_ends(cls, warmup_steps: int, info: ValidationInfo) -> int:
        if warmup_steps >= info.data.get("num_steps", warmup_steps + 1):
            raise ValueError(f"must be below num_steps ({info.data['num_steps']})")
        return warmup_steps


SITES = ("encoder", "decoder", "cross")
"""Where attention can have a prefix; a decoder-only base has the second alone."""
SITE_JOIN = "+"  # a list of sites is one searchable value: "encoder+cross"


class PrefixTrial(Strict):
    """A prefix: keys and values in front of every attention layer (Li & Liang 2021)."""

    method: Literal["prefix"] = "prefix"
    preseqlen: PositiveInt | None
    """Prefix positions; null: as many as init_token has tokens."""
    mid_dim: PositiveInt | None
    """Hidden width of the reparametrisation network; null: flat, the keys and values themselves are trained."""
    init_token: Text | None
    """Words whose keys and values the prefix starts as; null: random (harmful on a real model)."""
    prefix_dropout: Share = 0.0
    """Dropout on the prefix in training."""
    sites: str | None = None
    """Where prefixes stand, a list of encoder, decoder and cross (attention from decoder to encoder); null: all that
    the base has."""
    prefix_mode: Literal["activation", "embedding"] = "activation"
    """What is trained: keys and values, or only virtual embeddings, which the base makes them from."""
    format_mode: Literal["cat", "infix"] = "cat"
    """cat: before the row. infix: between source and target, added to the keys and values of virtual embeddings there;
    decoder-only bases."""

    @field_validator("format_mode")
    @classmethod
    def _infix_is_of_activations(cls, format_mode: str, info: ValidationInfo) -> str:
        if format_mode == "infix" and info.data.get("prefix_mode") == "embedding":
            raise ValueError("must be cat where prefix_mode is embedding (an infix has embeddings of its own)")
        return format_mode

    @field_validator("sites")
    @classmethod
    def _sites_exist(cls, sites: str | None) -> str | None:
        names = [] if sites is None else sites.split(SITE_JOIN)
        if sites is not None and (set(names) - set(SITES) or len(set(names)) != len(names)):
            raise ValueError(f"must be a list of {', '.join(map(repr, SITES))}, each at most once, or null")
        return sites if sites is None else SITE_JOIN.join(site for site in SITES if site in names)

    def active_sites(self, available: Collection[str]) -> tuple[str, ...]:
        """The sites, of those that a base has, that get a prefix; in the order of `SITES`."""
        wanted = SITES if self.sites is None else self.sites.split(SITE_JOIN)
        return tuple(site for site in SITES if site in wanted and site in available)

    @field_validator("init_token")
    @classmethod
    def _length_is_known(cls, init_token: str | None, info: ValidationInfo) -> str | None:
        if init_token is None and info.data.get("preseqlen", 1) is None:
            raise ValueError("must be words where preseqlen is null, which takes their number (or give preseqlen)")
        return init_token


class AdapterTrial(Strict):
    """Bottleneck adapters inside every block."""

    method: Literal["adapter"] = "adapter"
    bottleneck: PositiveInt | None = None
    """Width of the adapters' inner layer; null: percent says how large they are."""
    percent: Annotated[float, Field(gt=0.0, le=100.0)] | None = Field(default=None, validate_default=True)
    """All adapters' parameters in percent of the base's: the bottleneck that comes nearest."""
    design: Literal[1, 2] = 1
    """1: one after each block, behind a LayerNorm (Lin et al. 2020). 2: one after each attention and each feed-forward
    layer, before its result is added to its input (Houlsby et al. 2019)."""

    @field_validator("percent")
    @classmethod
    def _size_is_given_once(cls, percent: float | None, info: ValidationInfo) -> float | None:
        if "bottleneck" in info.data and (percent is None) == (info.data["bottleneck"] is None):
            raise ValueError("must be given where bottleneck is not, and only there")
        return percent


class LoraTrial(Strict):
    """Low-rank updates beside the query and value projections (Hu et al. 2021)."""

    method: Literal["lora"] = "lora"
    rank: PositiveInt
    """Rank of the updates."""
    alpha: PositiveFloat | None = None
    """The update is scaled by alpha / rank; null: 2 * rank."""
    dropout: Share = 0.0
    """Dropout on the updates' inputs in training."""

    @property
    def numerator(self) -> float:
        """What stands over the rank in the scale of the update."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class FinetuneTrial(Strict):
    """Fine-tuning: weights of an own copy of the base, fp32 master weights, the model's own dropout."""

    method: Literal["finetune"] = "finetune"
    top_layers: Annotated[int, Field(ge=0)] | None = None
    """Train only so many of the last blocks and the norm behind them; null: all weights."""
    tune_embeddings: bool = True
    """Whether the word embeddings and the output layer, which most bases tie to them, are trained as well."""


AnyTrial = Annotated[PrefixTrial | AdapterTrial | LoraTrial | FinetuneTrial, Field(discriminator="method")]
METHODS: Mapping[str, type[PrefixTrial | AdapterTrial | LoraTrial | FinetuneTrial]] = {
    "prefix": PrefixTrial,
    "adapter": AdapterTrial,
    "lora": LoraTrial,
    "finetune": FinetuneTrial,
}
_DATA_TO_TEXT = ("bleu", "nist", "rouge_l_coco", "cider", "chrf", "ter", "meteor_1_5")
_ROUGE = ("rouge_1", "rouge_2", "rouge_l")
TASK_METRICS: Mapping[TaskName, tuple[str, ...]] = {
    "e2e": _DATA_TO_TEXT,
    "webnlg": _DATA_TO_TEXT,
    "dart": _DATA_TO_TEXT,
    "custom": (*_DATA_TO_TEXT, *_ROUGE),
    **dict.fromkeys(
        ("xsum", "xsum_news", "xsum_sport", "cnn_dm", "dialogsum", "scitldr", "summarization"),
        (*_ROUGE, "bleu", "chrf", "meteor_1_5"),
    ),
}
"""The metrics that `final.metric` and `final.more_metrics` may name, by task."""
RECIPE_OF_ALL = frozenset({"eval_every", "precision", "gradient_checkpointing"})
"""Keys of `train` that an arm may not override: they make arms comparable."""


class TrialConfig(TrainConfig):
    """One configuration: a method's values and the recipe, nothing left to search."""

    arm: str
    """The arm that the configuration comes from."""
    learning_rate: PositiveFloat
    """AdamW's peak learning rate."""
    method: AnyTrial
    """The method and its values."""


class ArmConfig(Strict):
    """One method with its search space."""

    name: str
    """The arm's name in the sweep file."""
    method: Literal["prefix", "adapter", "lora", "finetune"]
    """The method; in the file it may be left out where the arm is called like it."""
    fixed: Mapping[str, Scalar]
    """Values that are not searched."""
    dimensions: Mapping[str, AnyDimension]
    """Values that are."""
    num_trials: PositiveInt
    """Trials of the search; 1 where nothing is searched."""
    first: tuple[Mapping[str, Scalar], ...] = ()
    """Configurations that are tried first."""
    train: TrainConfig
    """The recipe that the arm overrides."""

    @property
    def num_steps(self) -> int:
        """Steps of a whole schedule of each of its trials: the same for all of them, so that rungs compare like."""
        steps = self.fixed.get("num_steps")
        return steps if isinstance(steps, int) else self.train.num_steps

    @property
    def exclusive(self) -> bool:
        """Whether a trial cannot share the base, and so has a worker to itself."""
        return self.method == "finetune"

    def trial(self, values: Mapping[str, Any]) -> TrialConfig:
        """The configuration in which the searched keys have these values; pydantic's errors where they are wrong.

        Strict as JSON is: true is not 1, 5.0 is not a whole number, and "5" is no number.
        """
        given = {**self.fixed, **values}
        own = {key: value for key, value in given.items() if key in METHODS[self.method].model_fields}
        recipe = {key: value for key, value in given.items() if key not in own}
        method = {**own, "method": self.method}
        whole = {**self.train.model_dump(), **recipe, "arm": self.name, "method": method}
        return TrialConfig.model_validate_json(json.dumps(whole), strict=True)


class SearchConfig(Strict):
    """How configurations are proposed, compared and stopped. Counts hold for each arm."""

    metric: Literal["dev/loss"] = "dev/loss"
    """What trials are compared by; lower is better."""
    num_trials: PositiveInt
    """Trials per arm that has something to search."""
    concurrency: PositiveInt | None = None
    """Trials of an arm at once; null: a quarter of num_trials, at most the slots (more would blind the sampler)."""
    rungs: tuple[PositiveInt, ...] = ()
    """Steps at which the worse trials are stopped."""
    keep: float = Field(default=0.5, gt=0.0, le=1.0)
    """The share of trials that goes on at a rung."""
    seed: int = Field(default=1, ge=0)
    """Every random draw of the sweep derives from it."""
    max_hours: PositiveFloat | None = None
    """No trial is started after this much wall time of the search, in all runs of the command; running ones end."""
    max_gpu_hours: PositiveFloat | None = None
    """The same after this many hours of all workers' devices together, GPUs or not."""
    max_failures: PositiveInt = 3
    """How often a worker may die in a row with this trial alone in its pack before the trial has failed."""


class FinalConfig(Strict):
    """The final stage: the best configurations again with fresh seeds, decoded and scored on test."""

    candidates: PositiveInt = 1
    """Configurations per arm that are retrained and compared on dev by `metric`; with 1 there is nothing to compare."""
    num_seeds: PositiveInt = 1
    """Fresh seeds of each arm's winner; only these see test."""
    metric: str = "test/bleu"
    """The primary metric."""
    more_metrics: tuple[str, ...] = ()
    """Metrics that are scored and printed besides it and the task's own: test/ter, test/meteor_1_5 (needs Java)."""
    reference: str | None = None
    """The arm that the others are compared with; null: the first."""
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
    """A source is done when as many hypotheses as beams have ended, not when no better one can come."""
    batch_size: PositiveInt = Field(default=32)
    """Sources that are decoded at once, at most."""


DECODING = (
    "num_beams",
    "min_new_tokens",
    "max_new_tokens",
    "length_penalty",
    "no_repeat_ngram_size",
    "early_stopping",
    "batch_size",
)
"""The keys of `final` that say how a hypothesis is found: recorded in artifacts and results."""


class TrackingConfig(Strict):
    """Where runs are logged."""

    mlflow: str | None = "auto"
    """auto: sqlite in the sweep's folder; a tracking URI; null: no MLflow."""
    artifacts: Literal["finished", "none"] = "finished"
    """Which trials' artifacts are logged."""


class SweepConfig(Strict):
    """A whole sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Results go to runs/NAME."""
    base: Text
    """A hub id, a folder, a GGUF file, or package:file for a file inside an installed package."""
    trust_remote_code: bool = False
    """Run Python files that the base brings beside its weights; read them first."""
    task: TaskConfig
    train: TrainConfig
    arms: tuple[ArmConfig, ...]
    search: SearchConfig
    final: FinalConfig = FinalConfig()
    tracking: TrackingConfig = TrackingConfig()

    def arm(self, name: str) -> ArmConfig:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)
