"""Decoding in any company equals decoding alone."""

from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from prefixray.batching.template import Template, make_template
from prefixray.config.schema import DecodingSettings
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.decoding.sampling import SampledSettings
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert

SOURCES = (
    "name : The Eagle | Type : coffee shop | food : Chinese | price : cheap | area : riverside",
    "name : The Mill",
    "name : The Golden Palace | Type : pub | food : French",
    "The Vaults",
    "name : Aromi | Type : restaurant | customer rating : 5 out of 5 | area : city centre | family friendly : yes",
    "food : Italian | near : Café Rouge",
)
BEAMS = DecodingSettings(num_beams=5, max_new_tokens=12, batch_size=64)


def _template(base: Base) -> Template:
    return make_template(base, TaskConfig(name="e2e"))


def _prefixes(base: Base, lengths: Sequence[int]) -> list[Insert]:
    site, draw = base.shape.sites["decoder"], torch.Generator().manual_seed(3)
    sizes = [(2, site.num_layers, site.num_kv_heads, length, site.head_dim) for length in lengths]
    return [
        Insert({"decoder": torch.randn(size, generator=draw, dtype=base.model.dtype).to(base.device)}) for size in sizes
    ]


def _plain(base: Base, sources: Sequence[str], decoding: DecodingSettings) -> list[str]:
    """Hypotheses of the base as it is."""
    return generate(base, _template(base), sources, [Insert()] * len(sources), decoding)


def _alone(base: Base, sources: Sequence[str], inserts: Sequence[Insert]) -> list[str]:
    template, one = _template(base), BEAMS.model_copy(update={"batch_size": 1})
    pairs = zip(sources, inserts, strict=True)
    return [generate(base, template, [source], [insert], one)[0] for source, insert in pairs]


def test_beam_search_in_a_mixed_batch_equals_beam_search_alone(exact_base: Base) -> None:
    three = _prefixes(exact_base, [1, 4, 9])
    sources = [source for source in SOURCES for _ in range(4)]
    inserts = [*three, Insert()] * len(SOURCES)
    together = generate(exact_base, _template(exact_base), sources, inserts, BEAMS)
    assert together == _alone(exact_base, sources, inserts)
    assert len(set(together)) > len(SOURCES)  # prefixes and sources make a difference


def test_the_batch_size_does_not_change_hypotheses(exact_base: Base) -> None:
    template, inserts = _template(exact_base), _prefixes(exact_base, [3, 5]) * 3
    by_size = [
        generate(exact_base, template, SOURCES, inserts, BEAMS.model_copy(update={"batch_size": size}))
        for size in (1, 2, 4)
    ]
    assert by_size[0] == by_size[1] == by_size[2]


def test_without_an_insert_the_stock_model_decodes(tiny_base: Base) -> None:
    template = _template(tiny_base)
    settings = GenerationConfig(
        num_beams=5, max_new_tokens=12, eos_token_id=template.eos_id, pad_token_id=template.pad_id
    )
    stock = []
    for source in SOURCES:
        prompt = torch.tensor([template.encode_source(source)], device=tiny_base.device)
        output = tiny_base.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        text = tiny_base.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        stock.append(text.splitlines()[0].strip() if text else "")
    assert generate(tiny_base, template, SOURCES, [Insert()] * len(SOURCES), BEAMS) == stock


def test_a_prompt_that_beams_share_decodes_as_one_that_each_beam_has_for_itself(exact_base: Base) -> None:
    binder, template = Binder.of(exact_base.model), _template(exact_base)
    inserts = _prefixes(exact_base, [1, 4, 9]) * 2
    settings = GenerationConfig(
        num_beams=5, max_new_tokens=12, eos_token_id=template.eos_id, pad_token_id=template.pad_id
    )
    expected = []
    for source, insert in zip(SOURCES, inserts, strict=True):
        prompt = torch.tensor([template.encode_source(source)], device=exact_base.device)
        with binder.bind([insert], [0]):
            output = exact_base.model.generate(prompt, generation_config=settings)
        text = exact_base.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        expected.append(text.splitlines()[0].strip() if text else "")
    assert generate(exact_base, template, SOURCES, inserts, BEAMS) == expected


def test_batches_are_of_like_size(tiny_gpt2: Base) -> None:
    rows = []
    tiny_gpt2.model.register_forward_pre_hook(
        lambda module, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    _plain(tiny_gpt2, SOURCES, DecodingSettings(num_beams=1, max_new_tokens=1, batch_size=5))
    assert rows == [3, 3]


def test_functions_on_modules_follow_their_rows_through_the_beams(exact_base: Base) -> None:
    block = exact_base.blocks()[0][0]
    inserts = [Insert(functions={block: lambda inputs, output, by=by: output * by}) for by in (0.5, 2.0)]
    sources = [source for source in SOURCES for _ in inserts]
    together = generate(exact_base, _template(exact_base), sources, inserts * len(SOURCES), BEAMS)
    assert together == _alone(exact_base, sources, inserts * len(SOURCES))


def test_a_repeated_source_is_decoded_once(tiny_gpt2: Base) -> None:
    rows = []
    tiny_gpt2.model.register_forward_pre_hook(
        lambda module, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    greedy = DecodingSettings(num_beams=1, max_new_tokens=3)
    hypotheses = _plain(tiny_gpt2, ["a", "b", "a", "a", "b"], greedy)
    assert max(rows) == 2
    assert hypotheses[0] == hypotheses[2] == hypotheses[3] and hypotheses[1] == hypotheses[4]


def test_a_repeated_source_is_drawn_each_time(tiny_gpt2: Base) -> None:
    drawn = _plain(tiny_gpt2, ["a"] * 5, SampledSettings(num_beams=1, max_new_tokens=8, temperature=2.0))
    assert len(set(drawn)) == 5


def test_a_base_does_not_bring_its_own_decoding_habits(tiny_llama: Base) -> None:
    plain = _plain(tiny_llama, SOURCES, BEAMS)
    habits = GenerationConfig(no_repeat_ngram_size=1, min_length=40, suppress_tokens=list(range(100)))
    tiny_llama.model.generation_config = habits
    assert _plain(tiny_llama, SOURCES, BEAMS) == plain
    assert tiny_llama.model.generation_config is habits


def test_a_model_in_training_is_decoded_without_dropout_and_goes_on_training(tiny_gpt2: Base) -> None:
    plain = _plain(tiny_gpt2, SOURCES, BEAMS)
    tiny_gpt2.model.train()
    assert _plain(tiny_gpt2, SOURCES, BEAMS) == plain
    assert tiny_gpt2.model.training


@pytest.mark.parametrize("words", ["", "\n", " and \n more", " and \u2028 more", "\x85more"])
def test_a_hypothesis_ends_at_the_end_token_and_at_a_line_break(tiny_llama: Base, words: str) -> None:
    template = _template(tiny_llama)
    text = "The Mill" + words
    wanted = tiny_llama.tokenizer(f" {text} ", add_special_tokens=False).input_ids
    _speak(tiny_llama, [*wanted, template.eos_id, *wanted])
    decoding = DecodingSettings(num_beams=2, max_new_tokens=len(wanted) + 8)
    (hypothesis,) = _plain(tiny_llama, ["The Eagle"], decoding)
    assert hypothesis == text.splitlines()[0].strip()


def test_no_hypothesis_ends_before_min_new_tokens(tiny_llama: Base) -> None:
    template = _template(tiny_llama)
    _speak(tiny_llama, [template.eos_id] * 20)
    decoding = DecodingSettings(num_beams=2, min_new_tokens=4, max_new_tokens=8)
    lengths = []
    for at_least in (0, 4):
        settings = decoding.model_copy(update={"min_new_tokens": at_least})
        lengths.append(len(_plain(tiny_llama, ["The Eagle"], settings)[0]))
    assert lengths[0] == 0 < lengths[1]


def test_the_originals_least_length_of_11_is_9_new_tokens(tiny_bart: Base) -> None:
    """It counts the start token and <s>, which are given here: the sweeps of XSum say 9."""
    template = _template(tiny_bart)
    stock = AutoModelForSeq2SeqLM.from_pretrained(tiny_bart.name).eval().to(tiny_bart.device)
    stock.generation_config = GenerationConfig(
        decoder_start_token_id=template.target_before[0],
        forced_bos_token_id=template.target_before[1],
        eos_token_id=template.eos_id,
        pad_token_id=template.pad_id,
    )
    for model in (stock, tiny_bart.model):
        model.final_logits_bias[0, template.eos_id] = 1e3  # nothing goes on longer than it must
    prompt = torch.tensor([template.encode_source("Eagle")], device=tiny_bart.device)
    output = stock.generate(prompt, num_beams=2, min_length=11, max_length=62)
    assert output.shape[1] == 12, "eleven and the end"
    wanted = tiny_bart.tokenizer.decode(output[0], skip_special_tokens=True).strip()
    least = [DecodingSettings(num_beams=2, min_new_tokens=count, max_new_tokens=60) for count in (9, 10)]
    assert [_plain(tiny_bart, ["Eagle"], decoding)[0] == wanted for decoding in least] == [True, False]


def test_a_source_that_leaves_no_room_is_refused(tiny_gpt2: Base) -> None:
    (prefix,) = _prefixes(tiny_gpt2, [200])
    with pytest.raises(UserError, match=r"max_new_tokens: 100: prefix and longest source take .* of the 256 positions"):
        generate(tiny_gpt2, _template(tiny_gpt2), SOURCES, [prefix] * 6, DecodingSettings())


def test_low_precision_decodes_in_low_precision(tiny_base: Base) -> None:
    tiny_base.model.to(torch.bfloat16)
    inserts = [Insert({"decoder": one.prefixes["decoder"].float()}) for one in _prefixes(tiny_base, [2, 7])] * 3
    first = generate(tiny_base, _template(tiny_base), SOURCES, inserts, BEAMS)
    assert first == generate(tiny_base, _template(tiny_base), SOURCES, inserts, BEAMS)
    assert any(first)


def _speak(base: Base, tokens: Sequence[int]) -> None:
    """Let the model say `tokens` one after the other, whatever it is asked."""
    said = -1

    def hook(module: object, args: object, output: object) -> object:
        nonlocal said
        said += 1
        output.logits[:] = -30.0  # type: ignore[attr-defined]
        output.logits[..., tokens[min(said, len(tokens) - 1)]] = 30.0  # type: ignore[attr-defined]
        return output

    base.model.register_forward_hook(hook)
