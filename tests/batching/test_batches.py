"""Texts become token ids as the original's template has them, and rows become batches that lose and add nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from prefixray.batching.batches import collate, encode
from prefixray.batching.lengths import cut_by_length
from prefixray.batching.lessons import teach
from prefixray.batching.rows import Row, Tree, sampled
from prefixray.batching.shared_prompts import trees
from prefixray.batching.template import Template, make_template
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.model.uploads import Uploads

EAGLE = Example("name : The Eagle | food : Chinese", "The Eagle serves Chinese food.")
GPT2 = Path(__file__).resolve().parents[3] / "shared" / "tokenizers" / "gpt2"


def _template(base: Base, **task: object) -> Template:
    return make_template(base, TaskConfig.model_validate({"name": "e2e", **task}))


def _adds_its_start_token(base: Base) -> int:
    """Let the tokenizer put its start token in front of every text; the token."""
    tokenizer = base.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    start = str(tokenizer.bos_token)
    number = tokenizer.convert_tokens_to_ids(start)
    assert isinstance(number, int)
    processor = TemplateProcessing(single=[start, "$A"], special_tokens=[(start, number)])
    tokenizer.backend_tokenizer.post_processor = processor
    return number


def _text(base: Base, row: Row) -> str:
    text = base.tokenizer.decode(list(row.ids))
    assert isinstance(text, str)
    return text


def test_where_one_token_begins_and_ends_a_sequence_it_separates(tiny_gpt2: Base) -> None:
    (row,) = encode([EAGLE], _template(tiny_gpt2))
    text = _text(tiny_gpt2, row)
    assert text == f" {EAGLE.source} <|endoftext|> {EAGLE.target} <|endoftext|>"


def test_where_they_differ_a_line_break_separates(tiny_llama: Base) -> None:
    (row,) = encode([EAGLE], _template(tiny_llama))
    assert _text(tiny_llama, row) == f" {EAGLE.source} \n {EAGLE.target} <|im_end|>"


def test_a_tokenizer_without_a_first_token_separates_by_its_last(tiny_llama: Base) -> None:
    tiny_llama.tokenizer.bos_token = None
    assert _template(tiny_llama).after == (tiny_llama.tokenizer.eos_token_id,)


def test_a_task_may_name_its_separator(tiny_base: Base) -> None:
    (row,) = encode([EAGLE], _template(tiny_base, separator="=>"))
    assert f"{EAGLE.source} => {EAGLE.target} " in _text(tiny_base, row)


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_chat_has_the_source_as_a_question_and_the_target_as_the_answer(tiny_llama: Base) -> None:
    tokenizer = tiny_llama.tokenizer
    tokenizer.chat_template = CHAT
    (row,) = encode([EAGLE], _template(tiny_llama, template="chat", instruction="Say it:"))
    messages = [
        {"role": "user", "content": f"Say it:\n{EAGLE.source}"},
        {"role": "assistant", "content": EAGLE.target},
    ]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(row.ids[: row.num_prompt]) == prompt
    assert _text(tiny_llama, row) + "\n" == tokenizer.apply_chat_template(messages, tokenize=False)
    short = _template(tiny_llama, template="chat", instruction="Say it:", max_source_tokens=2)
    (cut,) = encode([EAGLE], short)
    assert tokenizer.decode(cut.ids[: cut.num_prompt]).startswith("<|im_start|>user\nSay it:\nname")
    assert cut.ids[: cut.num_prompt][-len(short.after) :] == short.after
    assert Template.from_record(tiny_llama, short.record()) == short


def test_a_start_token_that_the_tokenizer_adds_stands_in_front_of_the_row(tiny_llama: Base) -> None:
    plain = _template(tiny_llama)
    tiny_llama.tokenizer.chat_template = CHAT
    chat = _template(tiny_llama, template="chat")
    start = _adds_its_start_token(tiny_llama)
    template = _template(tiny_llama)
    assert template.before == (start,) == tuple(template.record()["before"])
    (row,), (without,) = encode([EAGLE], template), encode([EAGLE], plain)
    assert row.ids == (start, *without.ids) and row.num_prompt == without.num_prompt + 1
    older = Template.from_record(tiny_llama, plain.record())
    assert older.encode_source(EAGLE.source) == list(without.ids[: without.num_prompt]), "an artifact of before"
    assert _template(tiny_llama, template="chat") == chat, "a chat format writes its own"


def test_a_chat_format_that_writes_the_day_gives_the_same_rows_every_day(tiny_llama: Base) -> None:
    tiny_llama.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + CHAT  # as Llama 3 does
    template = _template(tiny_llama, template="chat")
    assert tiny_llama.tokenizer.decode(template.before) == "26 Jul 2024\n<|im_start|>user\n"


def test_a_chats_end_is_its_special_token_not_the_space_before_it(tiny_llama: Base) -> None:
    tiny_llama.tokenizer.chat_template = CHAT.replace("<|im_end|>", " <|im_end|>")  # as Llama 2 writes it
    template = _template(tiny_llama, template="chat")
    assert template.eos_id == tiny_llama.tokenizer.eos_token_id


def test_a_chat_that_cannot_be_is_refused(tiny_gpt2: Base, tiny_llama: Base) -> None:
    with pytest.raises(UserError, match=r"task\.template: chat: the tokenizer of .* has no chat format; take plain"):
        _template(tiny_gpt2, template="chat")
    tiny_llama.tokenizer.chat_template = "{{ raise_exception('a system message comes first') }}"
    with pytest.raises(UserError, match=r"the chat format of .* refuses: a system message comes first; take plain"):
        _template(tiny_llama, template="chat")
    tiny_llama.tokenizer.chat_template = CHAT
    with pytest.raises(UserError, match=r"task\.separator: must be null where task\.template is chat"):
        _template(tiny_llama, template="chat", separator="=>")


def test_a_token_that_the_base_does_not_know_is_told(tiny_llama: Base) -> None:
    template = _template(tiny_llama)
    tiny_llama.tokenizer.add_tokens(["<tool>"], special_tokens=True)
    size = tiny_llama.shape.vocab_size
    told = rf"^text '.*<tool>.*': '<tool>' is token {size} of the tokenizer, and the base has {size} tokens; take it"
    with pytest.raises(UserError, match=told):
        encode([Example("The Mill", "tea"), Example("The Eagle has a <tool> here", "tea")], template)
    with pytest.raises(UserError, match=told):
        encode([Example("The Mill", "<tool>")], template)
    assert encode([EAGLE], template)
    tiny_llama.tokenizer.pad_token = "<tool>"
    assert _template(tiny_llama).pad_id == template.eos_id, "nothing looks at it"
    tiny_llama.tokenizer.chat_template = CHAT.replace("<|im_end|>", "<tool>")
    with pytest.raises(UserError, match=rf"^base: .*: its rows need '<tool>', token {size} of the tokenizer, and the"):
        _template(tiny_llama, template="chat")


def test_a_tokenizer_that_cannot_end_or_separate_is_refused(tiny_llama: Base) -> None:
    deaf = tiny_llama.tokenizer
    assert isinstance(deaf, PreTrainedTokenizerFast)
    deaf.backend_tokenizer.normalizer = Replace("~", "")
    with pytest.raises(UserError, match=r"task\.separator: '~': has no tokens in the base's vocabulary"):
        _template(tiny_llama, separator="~")
    deaf.eos_token = None
    with pytest.raises(UserError, match="base: its tokenizer has no end-of-sequence token"):
        _template(tiny_llama)


def test_half_a_surrogate_pair_is_no_source(tiny_gpt2: Base) -> None:
    with pytest.raises(UserError, match=r"^source: 'a .ud83d': has half a surrogate pair, which is no text"):
        make_template(tiny_gpt2, TaskConfig(name="e2e")).encode_sources(["a \N{GRINNING FACE}", "a \ud83d"])


def test_the_prompt_of_training_is_the_prompt_of_decoding(tiny_base: Base) -> None:
    template = _template(tiny_base)
    (row,) = encode([EAGLE], template)
    assert list(row.ids[: row.num_prompt]) == template.encode_source(EAGLE.source)


def test_long_texts_are_cut_at_their_end_and_sources_are_counted(
    tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _template(tiny_base)
    short = _template(tiny_base, max_source_tokens=6, max_target_tokens=4)
    with caplog.at_level("INFO"):
        cut, other = encode([EAGLE, Example("a", "b")], short)
    (full,) = encode([EAGLE], whole)
    num_separator = len(whole.after)
    assert cut.ids[:6] == full.ids[:6] and cut.num_prompt == 6 + num_separator
    assert cut.ids[cut.num_prompt :] == (*full.ids[full.num_prompt :][:4], whole.eos_id)
    assert other.num_prompt < 6
    assert "1 of 2 sources fill the 6 source tokens" in caplog.text
    assert "1 of 2 targets fill the 4 target tokens" in caplog.text


def test_a_source_with_several_references_has_the_same_prompt_in_each_row(tiny_base: Base) -> None:
    other = Example(EAGLE.source, "Chinese food: The Eagle.")
    first, second = encode([EAGLE, other], _template(tiny_base))
    assert first.ids[: first.num_prompt] == second.ids[: second.num_prompt]
    assert first.ids[first.num_prompt :] != second.ids[second.num_prompt :]


def test_nothing_becomes_nothing(tiny_base: Base) -> None:
    assert encode([], _template(tiny_base)) == []


def test_a_template_comes_back_from_its_record(tiny_base: Base) -> None:
    template = _template(tiny_base, separator="=>", max_source_tokens=9)
    assert Template.from_record(tiny_base, template.record()) == template


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
def test_gpt2s_own_tokenizer_gives_the_originals_ids(tiny_gpt2: Base) -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(GPT2)
    shape = replace(tiny_gpt2.shape, vocab_size=len(tokenizer))
    template = make_template(replace(tiny_gpt2, tokenizer=tokenizer, shape=shape), TaskConfig(name="e2e"))
    (row,) = encode([Example("name : Aromi", "Aromi is open.")], template)
    words = [" name", " :", " A", "rom", "i", " ", "<|endoftext|>", " A", "rom", "i", " is", " open", ".", " "]
    assert [template.tokenizer.decode([token]) for token in row.ids] == [*words, "<|endoftext|>"]
    assert (row.num_prompt, row.num_inputs, row.num_targets) == (7, 14, 8)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), max_size=30), st.integers(1, 200), st.integers(0, 60)
)
def test_pieces_hold_every_row_once_within_the_budget_and_little_padding(
    lengths: list[tuple[int, int]], token_budget: int, piece_cost: int
) -> None:
    pieces = cut_by_length(lengths, token_budget, piece_cost)
    assert sorted(index for piece in pieces for index in piece) == list(range(len(lengths)))
    for piece in pieces:
        sides = [[lengths[index][side] for index in piece] for side in (0, 1)]
        padded = len(piece) * sum(map(max, sides))
        assert len(piece) == 1 or padded <= token_budget
        assert padded - sum(map(sum, sides)) <= piece_cost
    in_order = [lengths[index] for piece in pieces for index in piece]
    assert in_order == sorted(lengths, reverse=True)


def test_a_batch_lists_the_targets_and_what_predicts_them() -> None:
    batch = collate([Row((1, 2, 3, 4, 5), 3), Row((6, 7, 8), 1)], pad_id=0, to=Uploads(torch.device("cpu")))
    assert set(batch.inputs) == {"input_ids", "position_ids", "attention_mask"} and batch.inputs["attention_mask"].all()
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, 4], [6, 7, 0, 0]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3]] * 2
    assert batch.target_ids.tolist() == [4, 5, 7, 8]
    assert batch.target_rows.tolist() == [0, 0, 1, 1]
    assert batch.targets[1].tolist() == [2, 3, 0, 1]


def test_room_for_an_infix_lies_where_the_infix_starts() -> None:
    row = Row((5, 6, 7, 2, 8, 2), 4)  # a source, a separator, a target
    roomy = row.with_room(2, 0)
    assert roomy.ids == (5, 6, 7, 0, 0, 2, 8, 2)
    assert (roomy.infix_start, roomy.num_targets) == (row.infix_start, row.num_targets) == (3, 2)


@pytest.mark.parametrize(("limit", "widths"), [(None, (32, 16)), (20, (20, 16)), (4, (17, 4))])
def test_both_sides_of_pairs_have_few_widths_within_the_bases_positions(
    limit: int | None, widths: tuple[int, int]
) -> None:
    rows = [Row((2, 5, 6, 7, 3), 1, encoder_ids=tuple(range(5, 22))), Row((2, 5, 3), 1, encoder_ids=(5, 6))]
    batch = collate(rows, pad_id=1, to=Uploads(torch.device("cpu")), max_positions=limit)
    assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (2, widths[0])
    assert batch.inputs["decoder_input_ids"].shape == (2, widths[1])
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [17, 2]
    assert batch.inputs["decoder_input_ids"][1].tolist() == [2, 5, *[1] * (widths[1] - 2)]


def test_a_teacher_goes_with_its_row_through_rooms_trees_and_cuts(tiny_llama: Base) -> None:
    teachers = [teach(torch.randn(length, 50), 4) for length in (3, 2, 4)]
    rows = [Row((7, 8, *range(10, 10 + len(own))), 2, teacher=own) for own in teachers]
    (tree,) = trees(rows, 512, 512)
    assert isinstance(tree, Tree) and list(tree.teachers) == teachers
    alone = trees(rows, 5, 5)  # rows that shared a prompt, and do not fit together
    assert [list(row.teachers) for row in alone] == [[own] for own in teachers]
    assert alone == rows and rows[0].with_room(2, 0).teacher is teachers[0]
    whole = encode([EAGLE], _template(tiny_llama))[0].num_targets
    taught = replace(EAGLE, teacher=teach(torch.randn(whole, 50), 4))
    (cut,) = encode([taught], _template(tiny_llama, max_target_tokens=3))
    assert cut.teacher is not None and taught.teacher is not None and whole > 4 == cut.num_targets
    assert np.array_equal(cut.teacher.ids, taught.teacher.ids[:4])
    short = replace(EAGLE, teacher=taught.teacher.cut(3))
    with pytest.raises(UserError, match=r"'The Eagle .* has seen 3 of its \d+ tokens: .*; make it again"):
        encode([short], _template(tiny_llama))


def test_a_sample_is_evenly_spaced_and_not_too_small() -> None:
    assert sampled(range(40), 0.25) == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert sampled(range(12), 0.25) == [0, 1, 3, 4, 6, 7, 9, 10], "eight at least"
    assert sampled(range(5), 0.25) == [0, 1, 2, 3, 4] and sampled(range(9), 1.0) == list(range(9))
