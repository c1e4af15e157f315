"""Methods of tuning behind one small contract.

A method is a module that holds one trial's trainable tensors in fp32 and says what they put into the base:
`insert(step)` gives an `Insert` for the forwards of one step, `push_gradients()` carries the gradients that arrived at
the insert back to the trainable tensors, once per step however many forwards there were.
A new method is one file here, its schema in `config/trials.py` and one entry in `catalog.py`; the contract's test runs
it when it is listed there. Read first: `contract.py`, then `catalog.py`, then `prefix.py`.
"""

from typing import TYPE_CHECKING

from prefixray.config.trials import AnyTrial
from prefixray.methods.catalog import facts_of

if TYPE_CHECKING:
    from prefixray.data.documents import Document
    from prefixray.methods.contract import Method, Recorder
    from prefixray.model.base import Base


def build_method(
    config: AnyTrial,
    base: "Base",
    record: "Recorder",
    *,
    init_seed: int,
    dropout_seed: int,
    document: "Document | None" = None,
) -> "Method":
    """Make a trial's trainable tensors, drawn from `init_seed`.

    `record` runs the base over token ids or embeddings and returns every site's keys and values. `document` is that
    which the trial is about, where the task has one. Raises `UserError` where the base cannot have this method with
    these values, or the document does not suffice for them.
    """
    import torch

    from prefixray.methods.contract import Start

    start = Start(torch.Generator().manual_seed(init_seed), dropout_seed, document)
    return facts_of(config).build(config, base, record, start)
