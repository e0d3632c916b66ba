"""Laws of incremental decoding: nothing is lost, nothing is shown that must be taken back."""

from hypothesis import given, settings, strategies as st

from engine.generate.text import Detokenizer, certain
from tests.support.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
texts = st.text(st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("äß€🙂👩‍🍳🇩🇪é ")), max_size=40)


def pieces_of(ids):
    words = Detokenizer(TOKENIZER)
    return [piece for piece in [*(words.push(i) for i in ids), words.finish()] if piece]


@settings(max_examples=150, deadline=None)
@given(texts)
def test_pieces_join_to_the_whole_text(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces_of(ids)) == TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(3, len(TOKENIZER) - 1), max_size=60))
def test_any_tokens_at_all_join_to_what_the_tokenizer_says(ids):
    assert "".join(pieces_of(ids)) == TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=100, deadline=None)
@given(texts)
def test_no_piece_shows_a_broken_character_of_a_sound_text(text):
    ids = TOKENIZER(text.replace("\ufffd", ""), add_special_tokens=False)["input_ids"]
    assert not any("\ufffd" in piece for piece in pieces_of(ids))


def test_a_flag_and_a_family_come_in_one_piece():
    for cluster in ("🇩🇪", "👩‍🍳", "👍🏽"):
        ids = TOKENIZER(f"a{cluster}b", add_special_tokens=False)["input_ids"]
        assert len(ids) > 6                                   # it really arrives byte by byte
        assert any(cluster in piece for piece in pieces_of(ids)), pieces_of(ids)


def test_plain_letters_are_never_held_back():
    assert certain("Guten Tag") == 9 and certain("Täglich") == 7 and certain("") == 0


def test_an_unfinished_character_is_shown_at_the_end_rather_than_lost():
    ids = TOKENIZER("a€", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(pieces_of(ids)) == TOKENIZER.decode(ids)
