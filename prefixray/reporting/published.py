"""What Li & Liang 2021 report, table by table: the numbers that ours are printed beside, and nothing else.

The paper has two versions whose numbers differ in places: arXiv 2101.00190v1, which most later papers quote, and ACL
2021. Its tables give no seeds, deviations or intervals. METEOR and TER are fractions in its WebNLG and DART tables and
percentages here. Of figures only what the text and the axes say is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prefixray.data.catalog import TaskName

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Column:
    """What a column of a table measures: one of our metrics on a group of the sources; or a name, if we lack it."""

    metric: str
    digits: int  # of the paper's numbers, behind the point
    group: str | None = None
    is_ours: bool = True


@dataclass(frozen=True)
class Row:
    """A system's numbers in both versions; `acl` is None where it has the same."""

    arxiv: Numbers
    acl: Numbers | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper; a row's name is that of the arm of `sweep` that makes it."""

    title: str
    sweep: str  # a file of sweeps/paper
    task: TaskName
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, Row]]  # by base, then by arm
    quoted: Mapping[str, Row]  # systems of others
    split: Literal["test", "dev"] = "test"


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: what can be read off its text and axes."""

    title: str
    sweep: str
    says: str


def _columns(*metrics: str, digits: int, groups: tuple[str | None, ...] = (None,)) -> tuple[Column, ...]:
    return tuple(Column(metric, digits, group) for metric in metrics for group in groups)


_E2E = (
    *_columns("bleu", digits=1),
    *_columns("nist", digits=2),
    *_columns("meteor_1_5", "rouge_l_coco", digits=1),
    *_columns("cider", digits=2),
)
_WEBNLG = (
    *_columns("bleu", digits=1, groups=("seen", "unseen", None)),
    *_columns("meteor_1_5", "ter", digits=0, groups=("seen", "unseen", None)),
)
_DART = (
    *_columns("bleu", digits=1),
    *_columns("meteor_1_5", "ter", digits=0),
    *(Column(name, digits=2, is_ours=False) for name in ("MoverScore", "BERTScore", "BLEURT")),
)
_ROUGE = _columns("rouge_1", "rouge_2", "rouge_l", digits=2)
_DEV = (*_columns("bleu", digits=2), *_columns("meteor_1_5", "ter", digits=0))


def _acl_only(*numbers: float | None) -> Row:
    """A row of a table that arXiv v1 does not have."""
    return Row((None,) * len(numbers), numbers)


TABLES: Mapping[str, PaperTable] = {
    "table1": PaperTable(
        "Table 1, E2E",
        "e2e",
        "e2e",
        _E2E,
        {
            "gpt2-medium": {
                "finetune": Row((68.2, 8.62, 46.2, 71.0, 2.47), (68.8, 8.71, 46.1, 71.1, 2.43)),
                "finetune_top2": Row((68.1, 8.59, 46.0, 70.8, 2.41)),
                "adapter_3": Row((68.9, 8.71, 46.1, 71.3, 2.47)),
                "adapter_01": Row((66.3, 8.41, 45.0, 69.8, 2.40)),
                "prefix": Row((69.7, 8.81, 46.1, 71.4, 2.49), (70.3, 8.82, 46.3, 72.1, 2.46)),
            },
            "gpt2-large": {
                "finetune": Row((68.5, 8.78, 46.0, 69.9, 2.45)),
                "prefix": Row((70.3, 8.85, 46.2, 71.7, 2.47)),
            },
        },
        {"Shen et al. 2019": Row((68.6, 8.70, 45.3, 70.8, 2.37))},
    ),
    "table1-webnlg": PaperTable(
        "Table 1 (ACL: 2), WebNLG",
        "webnlg",
        "webnlg",
        _WEBNLG,
        {
            "gpt2-medium": {
                "finetune": Row((64.2, 27.7, 46.5, 45, 30, 38, 33, 76, 53), (64.7, 26.7, 45.7, 46, 30, 38, 33, 78, 54)),
                "finetune_top2": Row((53.6, 18.9, 36.0, 38, 23, 31, 49, 99, 72)),
                "adapter_3": Row(
                    (60.4, 48.3, 54.9, 43, 38, 41, 35, 45, 39), (60.5, 47.9, 54.8, 43, 38, 41, 35, 46, 39)
                ),
                "adapter_01": Row((54.5, 45.1, 50.2, 39, 36, 38, 40, 46, 43)),
                "prefix": Row((62.9, 45.6, 55.1, 44, 38, 41, 35, 49, 41), (62.9, 45.3, 55.0, 44, 37, 41, 35, 51, 42)),
            },
            "gpt2-large": {
                "finetune": Row((65.3, 43.1, 55.5, 46, 38, 42, 33, 53, 42)),
                "prefix": Row((63.4, 47.7, 56.3, 45, 39, 42, 34, 48, 40)),
            },
        },
        {"Kale 2020 (T5-large)": Row((63.9, 52.8, 57.1, 46, 41, 44, None, None, None))},
    ),
    "table1-dart": PaperTable(
        "Table 1 (ACL: 2), DART",
        "dart",
        "dart",
        _DART,
        {
            "gpt2-medium": {
                "finetune": Row((46.2, 39, 46, 0.50, 0.94, 0.39)),
                "finetune_top2": Row((41.0, 34, 56, 0.43, 0.93, 0.21)),
                "adapter_3": Row((45.2, 38, 46, 0.50, 0.94, 0.39)),
                "adapter_01": Row((42.4, 36, 48, 0.47, 0.94, 0.33)),
                "prefix": Row((46.4, 38, 46, 0.50, 0.94, 0.39)),
            },
            "gpt2-large": {
                "finetune": Row((47.0, 39, 46, 0.51, 0.94, 0.40)),
                "prefix": Row((46.7, 39, 45, 0.51, 0.94, 0.40)),
            },
        },
        {},
    ),
    "table2": PaperTable(
        "Table 2 (ACL: 3), XSum; fine-tuning as quoted there from Lewis et al. 2020",
        "xsum_table",
        "xsum",
        _ROUGE,
        {
            "facebook/bart-large": {
                "finetune": Row((45.14, 22.27, 37.25)),
                "prefix_2": Row((43.80, 20.93, 36.05)),
                "prefix_01": Row((42.92, 20.03, 35.05)),
            }
        },
        {},
    ),
    "table3-sport": PaperTable(
        "Table 3 (ACL: 4), extrapolation from news to sports",
        "xsum_sport",
        "xsum_sport",
        _ROUGE,
        {
            "facebook/bart-large": {
                "finetune": Row((38.15, 15.51, 30.26)),
                "prefix": Row((39.23, 16.74, 31.51)),
            }
        },
        {},
    ),
    "table3-news": PaperTable(
        "Table 3 (ACL: 4), extrapolation within news",
        "xsum_news",
        "xsum_news",
        _ROUGE,
        {
            "facebook/bart-large": {
                "finetune": Row((39.20, 16.35, 31.15)),
                "prefix": Row((39.41, 16.87, 31.47)),
            }
        },
        {},
    ),
    "table4": PaperTable(
        "Table 4 (ACL: 5), embeddings alone and infixes, E2E",
        "ablation",
        "e2e",
        _E2E,
        {
            "gpt2-medium": {
                "prefix": Row((69.7, 8.81, 46.1, 71.4, 2.49), (70.3, 8.82, 46.3, 72.1, 2.46)),
                "embedding_1": Row((48.1, 3.33, 32.1, 60.2, 1.10)),
                "embedding_10": Row((62.2, 6.70, 38.6, 66.4, 1.75)),
                "embedding_20": Row((61.9, 7.11, 39.3, 65.6, 1.85)),
                "infix_1": Row((67.9, 8.63, 45.8, 69.4, 2.42)),
                "infix_10": Row((67.2, 8.48, 45.8, 69.9, 2.40)),
                "infix_20": Row((66.7, 8.47, 45.8, 70.0, 2.42)),
            }
        },
        {},
    ),
    "acl7": PaperTable(
        "Table 7 of ACL, XSum, validation",
        "xsum_table",
        "xsum",
        _ROUGE,
        {
            "facebook/bart-large": {
                "prefix_2": _acl_only(43.30, 20.35, 35.21),
                "prefix_01": _acl_only(41.54, 18.56, 33.13),
            }
        },
        {},
        split="dev",
    ),
    "acl9-e2e": PaperTable(
        "Table 9 of ACL, E2E, dev",
        "e2e",
        "e2e",
        _E2E,
        {
            "gpt2-medium": {
                "finetune": _acl_only(74.2, 8.76, 49.3, 76.9, 2.66),
                "finetune_top2": _acl_only(72.7, 8.51, 48.2, 75.3, 2.60),
                "adapter_3": _acl_only(71.7, 8.53, 48.4, 74.6, 2.60),
                "adapter_01": _acl_only(68.1, 8.30, 45.9, 71.4, 2.41),
                "prefix": _acl_only(74.8, 8.80, 49.4, 76.8, 2.69),
            },
            "gpt2-large": {
                "finetune": _acl_only(72.1, 8.62, 48.5, 75.1, 2.56),
                "prefix": _acl_only(74.8, 8.81, 49.5, 77.0, 2.72),
            },
        },
        {},
        split="dev",
    ),
    "acl9-webnlg": PaperTable(
        "Table 9 of ACL, WebNLG, dev",
        "webnlg",
        "webnlg",
        _DEV,
        {
            "gpt2-medium": {
                "finetune": _acl_only(66.03, 47, 30),
                "finetune_top2": _acl_only(54.61, 39, 47),
                "adapter_3": _acl_only(60.63, 43, 33),
                "adapter_01": _acl_only(53.24, 40, 39),
                "prefix": _acl_only(64.52, 46, 32),
            },
            "gpt2-large": {
                "finetune": _acl_only(64.69, 46, 31),
                "prefix": _acl_only(64.11, 46, 33),
            },
        },
        {},
        split="dev",
    ),
    "acl9-dart": PaperTable(
        "Table 9 of ACL, DART, dev",
        "dart",
        "dart",
        _DEV,
        {
            "gpt2-medium": {
                "finetune": _acl_only(50.46, 41, 44),
                "finetune_top2": _acl_only(48.41, 39, 48),
                "adapter_3": _acl_only(48.56, 40, 44),
                "adapter_01": _acl_only(44.72, 38, 47),
                "prefix": _acl_only(51.11, 41, 43),
            },
            "gpt2-large": {
                "finetune": _acl_only(51.00, None, None),
                "prefix": _acl_only(50.84, None, None),
            },
        },
        {},
        split="dev",
    ),
}

FIGURES: Mapping[str, Figure] = {
    "figure3-e2e": Figure(
        "Figure 3, low data, E2E",
        "lowdata_e2e",
        "For 50, 100, 200 and 500 examples prefix-tuning is ahead of fine-tuning by 2.9 BLEU on average. Axis: BLEU "
        "50 to 60.",
    ),
    "figure3-xsum": Figure(
        "Figure 3, low data, XSum",
        "lowdata_xsum",
        "A plot alone: the number that is given for low data, 2.9 ahead of fine-tuning on average, is in BLEU. "
        "Axes: ROUGE-1 32 to 37, ROUGE-2 10 to 15.",
    ),
    "figure4-xsum": Figure(
        "Figure 4, prefix length, XSum",
        "prefix_length_xsum",
        "Quality rises with the length to a threshold, 200, and then falls a little; longer prefixes have a lower "
        "training loss and a slightly worse test score. Axes: lengths to 300, ROUGE-2 18.5 to 21, ROUGE-L 33.5 to 36.",
    ),
    "figure4-dart": Figure(
        "Figure 4, prefix length, DART",
        "prefix_length_dart",
        "Quality rises with the length to a threshold, 10, and then falls a little; longer prefixes have a lower "
        "training loss and a slightly worse test score. Axes: lengths to 40, BLEU 44 to 46.",
    ),
    "figure5": Figure(
        "Figure 5, initialisation, E2E in low data",
        "init_words",
        "Random initialisation is low and varies much; real words are far above it, and those of the task are "
        "slightly best. ACL: no effect in full data. Axis: BLEU 45 to 60.",
    ),
    "figure6": Figure(
        "Figure 6 (ACL only), data efficiency, E2E",
        "data_efficiency",
        "Prefix-tuning, randomly initialised, is ahead of fine-tuning above 20 % of the training data. Axis: 10 to "
        "80 %.",
    ),
}
