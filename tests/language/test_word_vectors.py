import gzip

import pytest
import torch
import torch.nn.functional as F

from language.word_vectors import WordVectors

GLOVE = "the 1 0 0\nred 0 1 0\nfox 0 0 2\nfox 9 9 9\nat mail 5 5 5\nat 1 1 0\n"


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["glove.txt", "glove.vec", "glove.txt.gz"])
@pytest.mark.parametrize("header", ["", "6 3\n"])
def test_mean_of_lower_cased_words(tmp_path, name, header):
    encoder = WordVectors(write(tmp_path / name, header + GLOVE))
    rows = encoder.encode(["Red FOX!", "the", "at", "the unheard red"])
    expected = torch.tensor([[0, 0.5, 1.0], [1, 0, 0], [1, 1, 0], [0.5, 0.5, 0]])
    torch.testing.assert_close(rows, F.normalize(expected, dim=1))


def test_texts_without_known_words_are_zero_rows(tmp_path):
    rows = WordVectors(write(tmp_path / "v.txt", GLOVE)).encode(["unheard", "fox", "", "?!"])
    assert rows.norm(dim=1).tolist() == [0, 1, 0, 0]


def test_a_number_that_looks_like_the_header(tmp_path):
    rows = WordVectors(write(tmp_path / "v.vec", "6 3\n6 0 0 1\nfox 1 0 0\n")).encode(["6"])
    assert rows.tolist() == [[0, 0, 1]]


def test_no_texts(tmp_path):
    assert WordVectors(write(tmp_path / "v.txt", GLOVE)).encode([]).shape == (0, 3)


def test_the_file_is_read_for_new_words_only(tmp_path):
    path = write(tmp_path / "v.txt", GLOVE)
    encoder = WordVectors(path)
    first = encoder.encode(["red fox", "unheard"])
    path.unlink()
    assert torch.equal(encoder.encode(["red fox", "unheard"]), first)
    with pytest.raises(FileNotFoundError):
        encoder.encode(["the"])


def test_fingerprint_follows_the_file(tmp_path):
    before = WordVectors(write(tmp_path / "v.txt", GLOVE)).fingerprint
    assert WordVectors(tmp_path / "v.txt").fingerprint == before
    assert WordVectors(write(tmp_path / "v.txt", GLOVE + "cat 1 1 1\n")).fingerprint != before


def test_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.txt: no such word-vector file"):
        WordVectors(tmp_path / "absent.txt")
    for text in ("", "one\ntwo\n"):
        with pytest.raises(ValueError, match="is not a word-vector file"):
            WordVectors(write(tmp_path / "empty.txt", text))
    cut = WordVectors(write(tmp_path / "cut.txt", "the 1 0 0\nred 0 1 0\nfox 0"))
    with pytest.raises(ValueError, match="line 3: expected 3 numbers after 'fox'"):
        cut.encode(["fox"])
    words = WordVectors(write(tmp_path / "words.txt", "the 1 0 0\nred 0 1 0\nfox a b c\n"))
    with pytest.raises(ValueError, match="line 3: expected 3 numbers after 'fox'"):
        words.encode(["fox"])
    whole = gzip.compress(("\n".join(f"w{i} {i} 1 2" for i in range(5000))).encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a complete gzip file"):
        WordVectors(tmp_path / "cut.txt.gz").encode(["w4999"])
