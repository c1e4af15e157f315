"""An answer's pieces make up its text, and it ends where a hypothesis ends, or where the request wants it to end."""

from hypothesis import given
from hypothesis import strategies as st
from support.tiny_bases import train_tokenizer

from prefixray.data.texts import up_to_line_break
from prefixray.serving.answer import Answer

EOS = 0
TOKENIZER = train_tokenizer("<|endoftext|>", "<|endoftext|>")
TEXTS = st.lists(st.sampled_from([" ", "\n", "\u2028", "a", "Café", " £ 20", "END", "EN", "D", "好", "é"]), max_size=12)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def spoken(ids: list[int], **options: object) -> tuple[list[str], str | None]:
    """The pieces of an answer of these tokens, and why it ended."""
    answer = Answer(decode, eos_id=EOS, max_tokens=len(ids), **options)  # type: ignore[arg-type]
    pieces = []
    for token in ids:
        pieces.append(answer.add(token))
        if answer.reason is not None:
            break
    return pieces, answer.reason


@given(TEXTS, st.booleans(), st.booleans())
def test_pieces_make_up_the_hypothesis(parts: list[str], ends: bool, by_word: bool) -> None:
    ids = TOKENIZER("".join(parts), add_special_tokens=False).input_ids + [EOS] * ends
    if not ids:
        return
    pieces, reason = spoken(ids, by_word=by_word)
    text = decode(ids).strip()
    assert "".join(pieces) == up_to_line_break(text).strip()
    assert not any("\ufffd" in piece for piece in pieces), "no part of a character is shown"
    assert reason in ("stop", "length")
    whole, _ = spoken(ids, one_line=False, by_word=by_word)
    assert "".join(whole) == text


@given(TEXTS)
def test_an_answer_ends_before_a_stop_text_and_shows_nothing_of_it(parts: list[str]) -> None:
    ids = TOKENIZER("".join(parts), add_special_tokens=False).input_ids
    if not ids:
        return
    pieces, reason = spoken(ids, stop=["END", "é"], one_line=False)
    text = decode(ids).strip()
    places = [place for place in (text.find("END"), text.find("é")) if place >= 0]
    assert "".join(pieces) == text[: min(places, default=len(text))].rstrip()
    assert reason == ("stop" if places else "length")


def test_the_reason_says_what_ended_it() -> None:
    ids = TOKENIZER("The Eagle", add_special_tokens=False).input_ids
    assert spoken([*ids, EOS])[1] == "stop"
    assert spoken(ids)[1] == "length"
    assert spoken([*ids, *TOKENIZER("\nMill", add_special_tokens=False).input_ids])[1] == "stop"
