"""One configuration: a method's values and the recipe, nothing left to search."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from prefixray.system.records import Scalar, Share, Strict, Text


class TrainConfig(Strict):
    """The recipe that all arms share. An arm may override any key but those of `RECIPE_OF_ALL`."""

    batch_size: PositiveInt = 8
    """Examples per forward of a trial."""
    grad_accumulation: PositiveInt = 1
    """Forwards per step of the optimiser; a step sees batch_size x grad_accumulation examples."""
    num_steps: PositiveInt
    """Steps of the optimiser in a whole schedule; a trial stopped early has seen a part of the same schedule."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0; the first of them has the rate 0, as in transformers."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to 0 after the warm-up; constant: not at all."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's weight decay, on matrices only."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Each trial's gradient is scaled down to this norm; null: not at all."""
    objective: Literal["token_mean", "sentence_sum", "distill"] = "token_mean"
    """token_mean: cross-entropy, mean over the batch's target tokens. sentence_sum: per example the sum over its target
    tokens, averaged over examples (the original's default). distill: the Kullback-Leibler divergence from the task's
    teacher to the trial, mean over target tokens; dev/loss is this divergence then, at temperature 1."""
    temperature: PositiveFloat = 1.0
    """distill: the teacher's and the trial's likelihoods are raised to the power 1 / temperature in training, those of
    the tokens that the teacher has kept and that of all others as one."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations on dev besides the rungs and the end; null: only there."""
    label_smoothing: Share = 0.0
    """The share of a training target's probability that is spread over the vocabulary; dev/loss is never smoothed."""
    base_dropout: bool = False
    """The dropout of the base itself is on in training, with a mask for each row: for arms that share the frozen base.
    Fine-tuning always has it."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each block and compute the rest again in the backward: less memory, a third more time.
    """
    precision: Literal["auto", "fp32", "bf16", "4bit"] = "auto"
    """The frozen base's precision; trained parts are fp32. auto: bf16 where the hardware multiplies bf16 matrices;
    all of a sweep's workers take that of the first. 4bit: NF4 weights, computed in bf16, on a GPU with the extra
    prefixray[4bit]."""

    @field_validator("temperature")
    @classmethod
    def _somebody_is_distilled(cls, temperature: float, info: ValidationInfo) -> float:
        if temperature != 1.0 and info.data.get("objective", "distill") != "distill":
            raise ValueError(f"must be 1 where objective is {info.data['objective']} (distill alone has a temperature)")
        return temperature

    @field_validator("label_smoothing")
    @classmethod
    def _teachers_are_not_smoothed(cls, label_smoothing: float, info: ValidationInfo) -> float:
        if label_smoothing > 0.0 and info.data.get("objective") == "distill":
            raise ValueError("must be 0 where objective is distill (the teacher says how likely other tokens are)")
        return label_smoothing

    @field_validator("warmup_steps")
    @classmethod
    def _warmup_ends(cls, warmup_steps: int, info: ValidationInfo) -> int:
        if warmup_steps >= info.data.get("num_steps", warmup_steps + 1):
            raise ValueError(f"must be below num_steps ({info.data['num_steps']})")
        return warmup_steps


SITES = ("encoder", "decoder", "cross")
"""Where attention can have a prefix; a decoder-only base has the second alone."""

SITE_JOIN = "+"  # a list of sites is one searchable value: "encoder+cross"


class MethodConfig(Strict):
    """The values of a method, and what a sweep file's checks and a cluster's placement know of it."""

    noun: ClassVar[str]
    """The method in a message: "no such key for a prefix"."""
    spared_by: ClassVar[Mapping[str, str]] = {}
    """Required keys that may be missing where another key has a value that is not its default."""
    has_own_model: ClassVar[bool] = False
    """Whether a trial cannot share the base, and so has a copy of it and a worker to itself."""

    @property
    def kind(self) -> str:
        """What decides how fast a trial learns at first: early dev losses are compared within one kind."""
        return self.noun

    def sketch(self) -> Self:
        """The same without parts that are large and fit any base: enough to find out whether it can be built."""
        return self

    def without_start(self) -> Self:
        """The same for the tensors of an artifact, which take the place of all that the trial started as."""
        return self


class PrefixTrial(MethodConfig):
    """A prefix: keys and values in front of every attention layer (Li & Liang 2021)."""

    noun = "a prefix"
    spared_by: ClassVar = {"init_token": "init_from"}
    method: Literal["prefix"] = "prefix"
    preseqlen: PositiveInt | None
    """Prefix positions; null: as many as init_token has tokens."""
    mid_dim: PositiveInt | None
    """Hidden width of the reparametrisation network; null: flat, the keys and values themselves are trained."""
    init_token: Text | None
    """Words whose keys and values the prefix starts as; null: random; not needed beside init_from. Flat, random is the
    base's keys and values over random tokens, or their embeddings (the original's is drawn at unit scale). A network
    starts as torch draws it: the random start of the original and of the paper."""
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

    init_from: Literal["words", "document", "chunks"] = "words"
    """words: init_token says what the prefix starts as. document: the first preseqlen tokens of the task's document.
    chunks: as many tokens of chunks sampled from it, in their order. A base reads them once, and the prefix starts as
    its keys and values."""
    frozen_positions: int = Field(default=0, ge=0)
    """The first positions that stay as they start, such as 1: many bases attend to their first token from everywhere,
    and a prefix that moves it is hard to train."""

    @property
    def kind(self) -> str:
        """Flat or through a network, and where it stands."""
        return f"{'flat' if self.mid_dim is None else 'network'}, {self.prefix_mode}, {self.format_mode}"

    @model_validator(mode="before")
    @classmethod
    def _words_are_not_asked_for_beside_a_document(cls, values: Any) -> Any:  # noqa: ANN401
        if isinstance(values, dict) and values.get("init_from", "words") != "words":
            return {"init_token": None, **values}
        return values

    @field_validator("init_from")
    @classmethod
    def _starts_once(cls, init_from: str, info: ValidationInfo) -> str:
        if init_from != "words" and info.data.get("init_token") is not None:
            raise ValueError("must be words where init_token is given (remove init_token)")
        return init_from

    @field_validator("frozen_positions")
    @classmethod
    def _frozen_positions_start_as_something(cls, frozen: int, info: ValidationInfo) -> int:
        length, values = info.data.get("preseqlen"), info.data
        if frozen and length is not None and frozen >= length:
            raise ValueError(f"must be below preseqlen ({length})")
        if frozen and values.get("format_mode") == "infix":
            raise ValueError("must be 0 for an infix, which adds to keys and values that depend on the source")
        is_drawn = values.get("mid_dim") is not None and values.get("init_token") is None
        if frozen and is_drawn and values.get("init_from") == "words":
            raise ValueError("must be 0 where a network starts as it is drawn (give init_token or init_from)")
        return frozen

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
        """The sites that get a prefix, of those that a base has, in the order of `SITES`."""
        wanted = SITES if self.sites is None else self.sites.split(SITE_JOIN)
        return tuple(site for site in SITES if site in wanted and site in available)

    def sketch(self) -> "PrefixTrial":
        """Without the network."""
        return self.model_copy(update={"mid_dim": None})

    def without_start(self) -> "PrefixTrial":
        """Without a document."""
        return self.model_copy(update={"init_from": "words", "frozen_positions": 0})

    @field_validator("init_token")
    @classmethod
    def _length_is_known(cls, init_token: str | None, info: ValidationInfo) -> str | None:
        if init_token is None and info.data.get("preseqlen", 1) is None:
            raise ValueError("must be words where preseqlen is null, which takes their number (or give preseqlen)")
        return init_token


class AdapterTrial(MethodConfig):
    """Bottleneck adapters inside every block."""

    noun = "an adapter"
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


class LoraTrial(MethodConfig):
    """Low-rank updates beside the query and value projections (Hu et al. 2021)."""

    noun = "LoRA"
    method: Literal["lora"] = "lora"
    rank: PositiveInt
    """Rank of the updates."""
    alpha: PositiveFloat | None = None
    """The update is scaled by alpha / rank; null: 2 * rank."""
    dropout: Share = 0.0
    """Dropout on the updates' inputs in training."""

    @property
    def numerator(self) -> float:
        """The numerator of the update's scale, numerator / rank."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class FinetuneTrial(MethodConfig):
    """Fine-tuning: the weights of a copy of the base, with fp32 master weights and the model's own dropout."""

    noun = "fine-tuning"
    has_own_model = True
    method: Literal["finetune"] = "finetune"
    top_layers: Annotated[int, Field(ge=0)] | None = None
    """Train only so many of the last blocks and the norm behind them; null: all weights."""
    tune_embeddings: bool = True
    """Whether the word embeddings and the output layer, which most bases tie to them, are trained as well."""


AnyTrial = Annotated[PrefixTrial | AdapterTrial | LoraTrial | FinetuneTrial, Field(discriminator="method")]
MethodName = Literal["prefix", "adapter", "lora", "finetune"]

METHODS: Mapping[MethodName, type[PrefixTrial | AdapterTrial | LoraTrial | FinetuneTrial]] = {
    "prefix": PrefixTrial,
    "adapter": AdapterTrial,
    "lora": LoraTrial,
    "finetune": FinetuneTrial,
}


class TrialConfig(TrainConfig):
    """One configuration: a method's values and the recipe, nothing left to search."""

    arm: str
    """The arm that the configuration comes from."""
    learning_rate: PositiveFloat
    """AdamW's peak learning rate."""
    method: AnyTrial
    """The method and its values."""

    def by_key(self) -> dict[str, Scalar]:
        """The method's values and the recipe's, by the keys that a sweep file has for them."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return {**values.pop("method"), **values}
