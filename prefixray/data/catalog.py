"""The catalog of tasks: one entry for each, with everything that the code knows of it.

To add a task, write its loader (a function from a `DataConfig` to `Splits`) in a file of this folder, and its entry
here. Sweep files, plans, tables, reports and model cards read the entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefixray.data.data_to_text import load_dart, load_e2e, load_webnlg
from prefixray.data.documents.task import load_document
from prefixray.data.entries import DataConfig, Splits
from prefixray.data.own.custom import load_own_data
from prefixray.data.summarization import CNN_DM, DIALOGSUM, SCITLDR, XSUM, load_xsum_news, load_xsum_sport

if TYPE_CHECKING:  # metrics import sacrebleu and numpy
    from prefixray.metrics.challenge_words import WordForm


@dataclass(frozen=True)
class TaskKind:
    """What tasks of one kind have in common."""

    hub_name: str  # the hub's word for the kind: a model card's pipeline tag
    metrics: tuple[str, ...]  # always scored
    more_metrics: tuple[str, ...]  # may be named in `final.metric` and `final.more_metrics` as well


_ROUGE = ("rouge_1", "rouge_2", "rouge_l")
_OF_ANSWERS = ("exact_match", "token_f1", "accuracy")
_IN_CAPTIONS = ("bleu", "nist", "rouge_l_coco", "cider")
DATA_TO_TEXT = TaskKind("text-generation", _IN_CAPTIONS, ("chrf", "ter", "meteor_1_5", "perplexity"))
OWN_DATA_TO_TEXT = TaskKind("text-generation", _IN_CAPTIONS, (*DATA_TO_TEXT.more_metrics, *_ROUGE, *_OF_ANSWERS))
QUESTIONS = TaskKind(
    "question-answering",
    ("rouge_l", "token_f1"),
    ("exact_match", "rouge_1", "rouge_2", "bleu", "chrf", "divergence", "perplexity"),
)
SUMMARIZATION = TaskKind("summarization", _ROUGE, ("bleu", "chrf", "meteor_1_5", "perplexity"))


@dataclass(frozen=True)
class TaskFacts:
    """What the code knows of a task."""

    load: Callable[[DataConfig], Splits]
    """Reads the three splits. Raises `UserError` with all problems."""
    kind: TaskKind
    title: str
    """What tables and reports call it."""
    title_in_card: str | None = None
    """What a model card calls its data; None: the title."""
    hub: str | None = None
    """The data set on the hub that is read where `task.path` names no other."""
    licence: str = "that of its authors"
    """The licence of its data, for the model card."""
    keys: tuple[str, ...] = ("path",)
    """The keys of `task` that say where its data is; empty: the data ships with prefixray."""
    form_keys: tuple[str, ...] = ()
    """The keys of `task` about the form of its texts that no other task uses."""
    needs_path: bool = False
    """Whether `task.path` must be given."""
    reads_hub: bool = True
    """Whether `task.path` may be a hub data set; else it is on this machine, or missing."""
    is_studied: bool = False
    """Whether its examples are made by the base, from documents, before the search: they have a teacher."""
    num_test: int | None = None
    """Sources of the published test split, for a plan without the data."""
    word_form: "WordForm | None" = None
    """The form in which the task's published script compares texts, where its metrics' own forms differ from that."""
    default_for: Literal["decoder-only", "encoder-decoder"] | None = None
    """A converted checkpoint of the original on such a base is taken for this task's, unless another is named."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that `final.metric` and `final.more_metrics` may name."""
        return (*self.kind.metrics, *self.kind.more_metrics)

    @property
    def card_title(self) -> str:
        """What a model card calls its data."""
        return self.title_in_card or self.title


_OWN_FILES = ("path", "train", "dev", "test", "split", "columns")
_WITH_URLS = ("path", "urls")
_OF_DOCUMENTS = ("path", "test", "columns", "exchanges")

CATALOG: Mapping[str, TaskFacts] = {
    "e2e": TaskFacts(
        load_e2e,
        DATA_TO_TEXT,
        "E2E",
        licence="CC BY-SA 4.0",
        keys=(),
        form_keys=("tokenised",),
        default_for="decoder-only",
    ),
    "webnlg": TaskFacts(
        load_webnlg, DATA_TO_TEXT, "WebNLG", title_in_card="WebNLG 2017", needs_path=True, word_form="ascii_words"
    ),
    "dart": TaskFacts(load_dart, DATA_TO_TEXT, "DART", needs_path=True, reads_hub=False, word_form="words"),
    "custom": TaskFacts(
        load_own_data, OWN_DATA_TO_TEXT, "custom", title_in_card="data of its owner's", keys=_OWN_FILES
    ),
    "xsum": TaskFacts(XSUM.load, SUMMARIZATION, "XSum", hub=XSUM.hub, num_test=11_334, default_for="encoder-decoder"),
    "xsum_news": TaskFacts(
        load_xsum_news, SUMMARIZATION, "XSum news", title_in_card="XSum, within news", hub=XSUM.hub, keys=_WITH_URLS
    ),
    "xsum_sport": TaskFacts(
        load_xsum_sport,
        SUMMARIZATION,
        "XSum news to sport",
        title_in_card="XSum, news to sports",
        hub=XSUM.hub,
        keys=_WITH_URLS,
    ),
    "cnn_dm": TaskFacts(CNN_DM.load, SUMMARIZATION, "CNN/DailyMail", hub=CNN_DM.hub, num_test=11_490),
    "dialogsum": TaskFacts(DIALOGSUM.load, SUMMARIZATION, "DialogSum", hub=DIALOGSUM.hub, num_test=500),
    "scitldr": TaskFacts(SCITLDR.load, SUMMARIZATION, "SciTLDR", hub=SCITLDR.hub, num_test=618),
    "summarization": TaskFacts(
        load_own_data,
        SUMMARIZATION,
        "summarization",
        title_in_card="documents and summaries of its owner's",
        keys=_OWN_FILES,
    ),
    "document": TaskFacts(
        load_document,
        QUESTIONS,
        "questions about a document",
        title_in_card="a document of its owner's",
        keys=_OF_DOCUMENTS,
        form_keys=("chunk_tokens", "num_questions", "prompts"),
        needs_path=True,
        reads_hub=False,
        is_studied=True,
    ),
}
"""The tasks by the names that `task.name` takes."""

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(CATALOG)]  # pydantic's messages list the names


def task_title(name: str) -> str:
    """What tables and reports call a task; a name that is not in the catalog as it is."""
    return CATALOG[name].title if name in CATALOG else name


def default_task(*, is_encoder_decoder: bool) -> TaskName:
    """The task that a checkpoint of the original on such a base is taken for."""
    base = "encoder-decoder" if is_encoder_decoder else "decoder-only"
    return next(name for name, facts in CATALOG.items() if facts.default_for == base)


def own_task() -> TaskName:
    """The task of a user's own data."""
    return next(name for name, facts in CATALOG.items() if facts.load is load_own_data)
