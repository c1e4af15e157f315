"""Methods of tuning behind one small contract.

A method is a module that holds one trial's trainable tensors in fp32 and says what they put into the base:
`insert(step)` gives an `Insert` for the forwards of one step, `push_gradients()` carries the gradients that arrived at
the insert back to the trainable tensors, once per step however many forwards there were.
A new method is one file here, one line in `build_method`, one line in the contract test.
"""

from typing import TYPE_CHECKING, assert_never

from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial

if TYPE_CHECKING:
    from prefixray.methods.contract import Method, Recorder
    from prefixray.model.base import Base

# The methods themselves, and torch with them, are imported where one is built: `parameter_counts` needs neither.


def build_method(config: AnyTrial, base: "Base", record: "Recorder", *, init_seed: int, dropout_seed: int) -> "Method":
    """Make a trial's trainable tensors, drawn from `init_seed`.

    `record` runs the base over token ids or embeddings and returns every site's keys and values.
    """
    import torch

    from prefixray.methods.adapter import Adapter
    from prefixray.methods.finetune import Finetune
    from prefixray.methods.lora import Lora
    from prefixray.methods.prefix import ActivationPrefix
    from prefixray.methods.virtual_prefix import EmbeddingPrefix, Infix

    draw = torch.Generator().manual_seed(init_seed)
    match config:
        case PrefixTrial(format_mode="infix"):
            return Infix(config, base, record, draw, dropout_seed)
        case PrefixTrial(prefix_mode="embedding"):
            return EmbeddingPrefix(config, base, record, draw, dropout_seed)
        case PrefixTrial():
            return ActivationPrefix(config, base, record, draw, dropout_seed)
        case AdapterTrial():
            return Adapter(config, base, draw)
        case LoraTrial():
            return Lora(config, base, draw, dropout_seed)
        case FinetuneTrial():
            return Finetune(config, base, dropout_seed)
        case _:
            assert_never(config)
