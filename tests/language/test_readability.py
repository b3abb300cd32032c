"""Names that an encoder cannot read: warned of by name, and refused if they are most."""

import warnings

import pytest
import torch

from language import encoders, readability
from language.cache import CachedEncoder
from language.readability import check, check_captions, examine
from language.tokenizer import Tokenizer
from language.word_vectors import WordVectors
from tests.language.letters import Letters
from tests.language.test_encoders import KINDS, make_model, make_tokenizer

CPU = torch.device("cpu")
THAI = ["ขนมปัง", "กล้วย", "แมว", "สุนัข", "ปลา", "นก", "ช้าง", "ม้า", "วัว", "หมู"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Knows the words a, photo, of, fox, cat, red and old."""
    folder = tmp_path_factory.mktemp("bert")
    make_model("bert").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return encoders.build(str(folder), CPU, None)


@pytest.fixture
def vectors(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("kit 1 0 0\nfox 0 1 0\ntench 0 0 1\ncrane 1 1 1\n")
    return WordVectors(file)


def found(encoder, names):
    return examine(encoder, names, encoder.encode(names))


def test_minilm_cannot_read_thai():
    minilm = encoders.build("minilm", CPU, None)
    report = found(minilm, THAI)
    assert report.n == 10 and "กล้วย" not in report.unread and "ขนมปัง" in report.unread
    assert [len(some) for some in report.alike] == [len(report.unread)]  # all unknown are one
    with pytest.raises(ValueError, match=r"encoder minilm cannot read 6 of 10 names: .*'ขนมปัง'"):
        check(minilm, THAI, minilm.encode(THAI))
    names = ["red fox", "2.5mm jack", "naïve", "花", "C++", "Crane", "crane"]
    assert str(found(minilm, names)) == ""  # "Crane" is no other name


def test_unknown_tokens_and_alike_names_of_a_model_of_words(bert):
    names = ["fox", "red fox", "emu", "ibis", "red emu", "cat", "old cat", "old", "of fox"]
    report = found(bert, names)
    assert (report.unread, report.partly) == (["emu", "ibis"], ["red emu"])
    assert report.alike == [["emu", "ibis"]] and report.unreadable == ["emu", "ibis"]
    with pytest.warns(UserWarning) as caught:
        check(bert, names, bert.encode(names))
    (warning,) = [str(w.message) for w in caught]
    assert warning.endswith(
        "knows no word of 2 ('emu', 'ibis') and knows a part of 1 ('red emu') and "
        "cannot tell 2 apart ('emu' = 'ibis')"
    )


def test_word_vectors_tell_which_words_are_not_found(vectors):
    report = found(vectors, ["kit fox", "kit emu", "emu", "fox kit", "?!", "crane"])
    assert (report.unread, report.partly) == (["emu", "?!"], ["kit emu"])
    assert report.alike == [["kit fox", "fox kit"]]
    with pytest.raises(
        ValueError, match=r"cannot read 4 of 6 names: .* or English names in classes"
    ):
        check(vectors, ["kit fox", "kit emu", "emu", "fox kit", "?!", "crane"],
              vectors.encode(["kit fox", "kit emu", "emu", "fox kit", "?!", "crane"]))  # fmt: skip


def test_captions_may_be_alike_in_small_groups(vectors):
    """Which are paraphrases to word vectors; one group of most captions is refused."""
    captions = ["kit fox", "fox kit", "kit crane", "crane kit", "tench fox", "fox tench"]
    embeds = vectors.encode(captions)
    with pytest.warns(UserWarning, match="of 6 captions, .* cannot tell 6 apart"):
        check(vectors, captions, embeds, "captions")
    with pytest.raises(ValueError, match="cannot read 6 of 6 names"):
        check(vectors, captions, embeds)
    captions = ["kit 1", "kit 2", "kit 3", "fox"]
    with pytest.raises(ValueError, match=r"cannot read 3 of 4 captions: .* or English captions$"):
        check(vectors, captions, vectors.encode(captions), "captions")


def test_half_is_warned_of_and_more_is_refused():
    names = ["fox", "owl", "1", "2"]
    with pytest.warns(UserWarning, match=r"of 4 names, .* knows no word of 2 \('1', '2'\)$"):
        check(Letters(), names, Letters().encode(names))
    names[1] = "3"
    with pytest.raises(ValueError, match="cannot read 3 of 4"):
        check(Letters(), names, Letters().encode(names))


def test_many_names_are_sampled_and_some_are_shown(monkeypatch):
    monkeypatch.setattr(readability, "MOST", 20)
    names = [*map(str, range(400)), *(f"{a}{b * 9}" for a in "abcdefgh" for b in "ijklmnop")]
    report = found(Letters(), names)
    assert report.n == 20 and 15 <= len(report.unread) <= 18
    assert str(report).count("', '") == 4 and ", ...)" in str(report)


def test_what_is_kept_needs_no_model(tmp_path, bert, monkeypatch):
    names = ["fox", "emu", "red emu"]
    first = CachedEncoder(bert, tmp_path)
    report = found(first, names)
    again = CachedEncoder(encoders.build(bert.name, CPU, None), tmp_path)
    monkeypatch.setattr(encoders, "load", None)
    assert found(again, names) == report and report.unread == ["emu"]
    assert again.unknown([]).shape == (0,) and bert.unknown([]).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_a_tokenizer_is_refused(tmp_path, kind):
    """transformers makes one of the config, in which every word is unknown."""
    make_model(kind).save_pretrained(tmp_path)
    names = ["red fox", "crane", "tench", "emu"]
    with pytest.raises(ValueError, match=r"its tokenizer has no words|cannot read"):
        check(encoder := encoders.build(str(tmp_path), CPU, None), names, encoder.encode(names))


def test_a_tokenizer_without_words_is_refused_for_a_trained_reader(tmp_path):
    make_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its tokenizer has no words"):
        Tokenizer(str(tmp_path))


def test_captions_are_sampled_by_line(bert):
    captions = ["a red fox\nemu ibis"] * 50 + ["old cat"] * 50
    tokenizer = Tokenizer(bert.name)
    for reader in (bert, tokenizer):
        with pytest.warns(UserWarning, match=r"of 3 captions, .* knows no word of 1 \('emu i"):
            check_captions(reader, captions)
        with pytest.raises(ValueError, match="cannot read 2 of 3 captions"):
            check_captions(reader, [*captions[:50], *["ibis"] * 50])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_captions(reader, captions[50:])
