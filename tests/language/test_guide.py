import pytest
import torch
import torch.nn.functional as F

from language.guide import LanguageGuide
from language.words import Words
from tests import pretend
from tests.rounding import rounding
from utilities.structures import Batch

DIM, K = 5, 3
CLOSE = rounding(DIM * K)  # the mean of K cosines


def make_words(n_items=7, k=K, n_texts=10, level="class", seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(n_texts, (n_items, k), generator=generator)
    embeds = F.normalize(torch.randn(n_texts, DIM, generator=generator), dim=1)
    return embeds, Words(tuple(f"text {i}" for i in range(n_texts)), index, level)


def make_batch(labels, rows=None):
    labels = torch.tensor(labels)
    rows = torch.arange(100, 100 + len(labels)) if rows is None else torch.tensor(rows)
    return Batch(views=(torch.zeros(len(labels), 3, 2, 2),), labels=labels, rows=rows)


def oracle(embeds, index, items):
    """(1/K) Σ_r cos(word r of i, word r of j) as scalar loops."""
    k = index.shape[1]
    sims = torch.zeros(len(items), len(items))
    for i, item_i in enumerate(items):
        for j, item_j in enumerate(items):
            for rank in range(k):
                a, b = embeds[index[item_i, rank]], embeds[index[item_j, rank]]
                sims[i, j] += sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / k
    return sims


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("level", ["class", "row"])
def test_equals_scalar_loops(k, level):
    embeds, words = make_words(k=k, level=level)
    items, others = [3, 0, 3, 6, 1], [0, 0, 1, 1, 2]
    batch = make_batch(items, others) if level == "class" else make_batch(others, items)
    sims = LanguageGuide(embeds, words).similarity(batch)
    torch.testing.assert_close(sims, oracle(embeds, words.index, items), atol=CLOSE, rtol=0)
    torch.testing.assert_close(sims.diagonal(), torch.ones(5))


def test_ranks_meet_their_like_only():
    embeds = torch.eye(2)
    words = Words(("fox", "dog"), torch.tensor([[0, 1], [1, 0]]), "class")
    sims = LanguageGuide(embeds, words).similarity(make_batch([0, 1]))
    assert sims.tolist() == [[1.0, 0.0], [0.0, 1.0]]  # the same words in the other order


def test_full_precision_inside_autocast():
    embeds, words = make_words()
    guide = LanguageGuide(embeds, words)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sims = guide.similarity(make_batch([0, 1, 2]))
    assert sims.dtype == torch.float32
    torch.testing.assert_close(sims, oracle(embeds, words.index, [0, 1, 2]), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_permuted_is_a_permutation_without_fixed_points(n):
    words = Words(tuple(map(str, range(n))), torch.arange(n).unsqueeze(1), "class")
    guide = LanguageGuide(torch.eye(n), words, 1, control="permuted")
    order = guide.index.flatten()
    assert sorted(order.tolist()) == list(range(n))
    assert (order != torch.arange(n)).all()


def test_permuted_follows_the_seed():
    embeds, words = make_words(n_items=50, n_texts=60)
    first, again, other = (
        LanguageGuide(embeds, words, seed, control="permuted").index for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_permuted_similarity_is_that_of_other_items():
    embeds, words = make_words()
    guide = LanguageGuide(embeds, words, 5, control="permuted")
    expected = oracle(embeds, guide.index, [0, 1, 4])
    torch.testing.assert_close(guide.similarity(make_batch([0, 1, 4])), expected)
    assert not torch.allclose(expected, oracle(embeds, words.index, [0, 1, 4]))


@pytest.mark.parametrize("level", ["class", "row"])
def test_uniform_is_the_brute_force_mean_over_pairs(level):
    embeds, words = make_words(level=level)
    embeds[4] = 0  # a text without an embedding
    sims = LanguageGuide(embeds, words, control="uniform").similarity(make_batch([0, 1], [2, 3]))
    everything = oracle(embeds, words.index, range(7))
    brute_force = everything[~torch.eye(7, dtype=torch.bool)].mean()
    torch.testing.assert_close(sims, brute_force.expand(2, 2), atol=CLOSE, rtol=0)


def test_uniform_of_one_item():
    words = Words(("fox",), torch.tensor([[0]]), "class")
    guide = LanguageGuide(torch.ones(1, 1), words, control="uniform")
    assert guide.similarity(make_batch([0, 0])).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_class_words_are_those_of_another_class_if_permuted():
    embeds, words = make_words()
    expected = F.normalize(torch.stack([embeds[item].mean(dim=0) for item in words.index]), dim=1)
    torch.testing.assert_close(LanguageGuide(embeds, words).class_words, expected)
    permuted = LanguageGuide(embeds, words, control="permuted").class_words
    cosines = permuted @ expected.T
    assert sorted(cosines.argmax(dim=1).tolist()) == [*range(len(expected))]
    assert not (cosines.argmax(dim=1) == torch.arange(len(expected))).any()


def test_class_words_are_none_at_row_level():
    assert LanguageGuide(*make_words(level="row")).class_words is None


def test_unknown_control_and_wrong_count():
    embeds, words = make_words()
    with pytest.raises(ValueError, match=r"control permute is unknown.*: permuted"):
        LanguageGuide(embeds, words, control="permute")
    with pytest.raises(ValueError, match="9 embeddings for 10 texts"):
        LanguageGuide(embeds[:9], words)


def test_moves_to_the_device_of_the_batch():
    embeds, words = make_words()
    with pretend.accelerator():
        batch = make_batch([3, 0, 6]).to(pretend.DEVICE)
        sims = LanguageGuide(embeds, words).similarity(batch)
        assert sims.device == pretend.DEVICE
        torch.testing.assert_close(sims.cpu(), oracle(embeds, words.index, [3, 0, 6]))
