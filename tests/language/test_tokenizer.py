import pytest
import torch
from transformers import AutoTokenizer, BertConfig

from language import encoders
from language.tokenizer import Tokenizer
from tests.language.letters import word_tokenizer

WORDS = ["<pad>", "<s>", "<unk>", "</s>", "a", "red", "fox"]


def save(folder, **options):
    """A folder with a tokenizer of words and a config.json, and no weights."""
    word_tokenizer(WORDS, **options).save_pretrained(folder)
    BertConfig(vocab_size=len(WORDS)).save_pretrained(folder)
    return str(folder)


ALL = {"pad_token": "<pad>", "eos_token": "</s>"}


def test_ids_and_mask_without_any_weights(tmp_path):
    tokenizer = Tokenizer(save(tmp_path, **ALL), length=5)
    ids, mask = tokenizer(["red fox", "", "a red fox a red fox", "zebra"])
    assert ids.tolist() == [
        [1, 5, 6, 3, 0],
        [1, 3, 0, 0, 0],
        [1, 4, 5, 6, 3],  # cut, and still with its end
        [1, 2, 3, 0, 0],
    ]
    assert mask.tolist() == (ids != 0).tolist()
    assert ids.dtype == torch.int64
    assert tokenizer.vocabulary == len(WORDS)


def test_a_batch_is_as_wide_as_its_longest_text(tmp_path):
    tokenizer = Tokenizer(save(tmp_path, **ALL), length=50)
    assert tokenizer(["fox", "a"])[0].shape == (2, 3)


def test_a_tokenizer_without_marks_gets_an_end(tmp_path):
    tokenizer = Tokenizer(save(tmp_path, marks=False, eos_token="</s>"), length=3)
    ids, mask = tokenizer(["fox", "", "a red fox"])
    assert ids[mask].tolist() == [6, 3, 3, 4, 5, 3]
    assert mask.sum(dim=1).tolist() == [2, 1, 3]


def test_a_tokenizer_without_an_end(tmp_path):
    with pytest.raises(ValueError, match="has no token to end or to pad a text with"):
        Tokenizer(save(tmp_path, marks=False, pad_token="<pad>"))


@pytest.mark.parametrize("marks", [True, False])
def test_a_length_without_room(tmp_path, marks):
    folder = save(tmp_path, marks=marks, **ALL)
    least = 3 if marks else 2
    with pytest.raises(ValueError, match=rf"--loss_clip_tokens must be >= {least} .* got"):
        Tokenizer(folder, length=least - 1)
    assert Tokenizer(folder, length=least)(["a red fox"])[0].shape == (1, least)


def test_word_vectors_have_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"glove\.txt has vectors of words and no tokenizer"):
        Tokenizer(str(tmp_path / "glove.txt"))


def test_a_broken_folder_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot read the model and tokenizer in"):
        Tokenizer(str(tmp_path))


@pytest.mark.packages
def test_the_packaged_model():
    tokenizer = Tokenizer("minilm", length=8)
    texts = ["A photo of a red fox.", "fox", "one two three four five six seven eight nine"]
    folder = encoders.resolve("minilm")
    expected = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=8, return_tensors="pt"
    )
    ids, mask = tokenizer(texts)
    assert torch.equal(ids, expected.input_ids)
    assert torch.equal(mask, expected.attention_mask.bool())
    assert tokenizer.vocabulary == 30522
