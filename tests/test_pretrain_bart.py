"""The recipe for a small BART: what it reads, how it noises, that it learns, and that its folder loads."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.pretrain_bart import (
    MASKED,
    MAX_TOKENS,
    Recipe,
    bucket,
    endless_batches,
    infill,
    make_batch,
    make_documents,
    make_model,
    mean_loss,
    permute,
    pretrain,
    read_rows,
    save,
    split_pieces,
    train_tokenizer,
)
from transformers import PreTrainedTokenizerFast

from prefixray.model.base import load_base

DIALOGUES = (
    "#Person1#: Good morning, is the library open today?\n#Person2#: Yes, it is. It closes at 6.\n#Person1#: Thanks!",
    "#Person1#: Where is my umbrella?\n#Person2#: It's behind the door.\n#Person1#: Oh, I see it.\n#Person2#: Good.",
    "#Person1#: Do you sell café tables?\n#Person2#: We do.\n#Person1#: How much is this one?\n#Person2#: It is £ 20.",
)
SENTENCES = (
    "#Person1# asks #Person2# about the library. It is open today, and it closes at 6 o'clock.",
    "#Person2# helps #Person1# find an umbrella. It is behind the door.",
    "We study how libraries close. We find that they close in the evening. Our data are public.",
)
TEXTS = DIALOGUES + SENTENCES
RECIPE = Recipe(batch_tokens=160, learning_rate=3e-3, warmup=0.1, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 400)


def test_every_long_text_of_every_row_is_read_whether_compressed_or_not(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    row = {"fname": "row_0", "labels": [0, 1], "dialogue": DIALOGUES[0], "summary": SENTENCES[0]}
    plain.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"source": ["We study libraries.", "They close in the evening."], "id": "x"}) + "\n")
    joined = "We study libraries. They close in the evening."
    assert read_rows([plain, packed]) == [[DIALOGUES[0], SENTENCES[0]], [joined]]
    assert read_rows([plain], ["summary"]) == [[SENTENCES[0]]]


def test_the_tokenizer_has_the_ids_and_the_frame_of_bart(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 4]
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert (ids[0], ids[-1]) == (0, 2)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_speaker_is_one_token_in_a_turn_and_in_a_sentence(tokenizer: PreTrainedTokenizerFast) -> None:
    speaker = tokenizer.convert_tokens_to_ids("#Person1#")
    assert speaker != tokenizer.unk_token_id
    for text in ("#Person1#: Good.", "Oh.\n#Person1#: Good.", "A door opens for #Person1#'s tables."):
        assert speaker in tokenizer(text).input_ids


def test_turns_and_sentences_are_permuted_and_nothing_is_lost(tokenizer: PreTrainedTokenizerFast) -> None:
    assert split_pieces(DIALOGUES[1])[1] == "\n"
    assert split_pieces(SENTENCES[1]) == (
        ("#Person2# helps #Person1# find an umbrella.", "It is behind the door."),
        " ",
    )
    rng = np.random.default_rng(1)
    for document in make_documents(TEXTS, tokenizer):
        orders = {permute(document, rng) for _ in range(20)}
        assert len(orders) > 1
        for text in orders:
            assert sorted(text.split(document.joint)) == sorted(document.text.split(document.joint))


def test_spans_hold_the_share_that_is_masked_and_the_rest_stays_in_order() -> None:
    rng = np.random.default_rng(1)
    mask = -1
    for length in (1, 2, 5, 40, 400):
        for _ in range(50):
            noised = infill(range(length), mask, rng)
            kept = [token for token in noised if token != mask]
            assert kept == sorted(set(kept))
            assert length - len(kept) == round(MASKED * length) or length < 5
            assert (mask, mask) not in pairwise(noised)
    spans = [400 / noised.count(mask) * MASKED for noised in (infill(range(400), mask, rng) for _ in range(200))]
    assert 2.7 < np.mean(spans) < 3.3


def test_a_text_that_is_too_long_becomes_several_documents_of_whole_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "\n".join(DIALOGUES * 20)
    documents = make_documents([text], tokenizer)
    assert len(documents) > 1
    assert "\n".join(document.text for document in documents) == text
    for document in documents:
        assert len(tokenizer(document.text).input_ids) == document.length <= MAX_TOKENS


def test_batches_are_of_similar_length_and_hold_every_document_once(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = make_documents(TEXTS, tokenizer)
    batches = bucket(documents, RECIPE.batch_tokens, np.random.default_rng(1))
    assert sorted(d.text for batch in batches for d in batch) == sorted(TEXTS)
    for batch in batches:
        made = make_batch(batch, tokenizer, np.random.default_rng(1))
        assert made.labels.numel() <= RECIPE.batch_tokens
        assert made.num_tokens == sum(document.length for document in batch)


def test_a_few_steps_lower_the_loss_and_the_folder_loads(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.manual_seed(1)
    documents = make_documents(TEXTS, tokenizer)
    dev = [make_batch(documents, tokenizer, np.random.default_rng(2))]
    model = make_model(len(tokenizer), width=32, layers=2)
    before = mean_loss(model, dev)
    batches = endless_batches(documents, tokenizer, RECIPE)
    outcome = pretrain(model, batches, dev, RECIPE, share_done=lambda steps: steps / 60)
    assert outcome.steps == 60 and outcome.tokens > 0
    assert before == pytest.approx(np.log(len(tokenizer)), abs=0.3)
    assert outcome.dev_loss < before - 1.0

    save(tmp_path / "base", model, tokenizer, {"texts": len(TEXTS)})
    base = load_base(str(tmp_path / "base"))
    loaded, again = base.model, base.tokenizer
    assert base.shape.is_encoder_decoder and base.shape.num_parameters == model.num_parameters()
    assert mean_loss(loaded, dev) == pytest.approx(outcome.dev_loss, abs=1e-5)
    assert loaded.config.dropout == 0.1
    assert again(list(TEXTS)).input_ids == tokenizer(list(TEXTS)).input_ids
    written = loaded.generate(**again(TEXTS[0], return_tensors="pt"), num_beams=3, max_new_tokens=8)
    assert written[0, 0] == loaded.config.decoder_start_token_id
    assert json.loads((tmp_path / "base" / "pretrained.json").read_text()) == {"texts": len(TEXTS)}
