import pytest
import torch
import torch.nn.functional as F

from language.guide import LanguageGuide
from language.words import Words, collect
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


def ragged(level="class"):
    """Items of 3, 1, 2 and 1 texts; the last has no embedding."""
    items = [["a", "b", "c"], ["b"], ["d", "a"], ["zero"]]
    chosen = collect(items, level)
    embeds = F.normalize(torch.randn(5, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    embeds[chosen.texts.index("zero")] = 0
    return embeds, chosen, [[chosen.texts.index(text) for text in item] for item in items]


def unit(row):
    length = sum(x * x for x in row) ** 0.5
    return [x / length for x in row] if length else row


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def scalar_rows(embeds, items, several, centre):
    """Lists of numbers: each item's rows as they are compared, before shorter ones are repeated."""
    rows = [[embeds[text].tolist() for text in item] for item in items]
    if several == "mean":
        rows = [[unit(mean_of(item))] for item in rows]
    if centre:
        k = max(map(len, rows))
        compared = [item[rank % len(item)] for item in rows for rank in range(k)]
        shared = mean_of([row for row in compared if any(row)])
        rows = [
            [
                unit([x - m for x, m in zip(row, shared, strict=True)]) if any(row) else row
                for row in item
            ]
            for item in rows
        ]
    return rows


MODES = [(several, centre) for several in ("ranks", "mean") for centre in (False, True)]


@pytest.mark.parametrize(("several", "centre"), MODES)
@pytest.mark.parametrize("level", ["class", "row"])
def test_every_mode_equals_scalar_loops(several, centre, level):
    embeds, chosen, items = ragged(level)
    guide = LanguageGuide(embeds, chosen, several=several, centre=centre)
    rows = scalar_rows(embeds, items, several, centre)
    k = max(map(len, rows))
    expected = [
        [
            sum(
                sum(x * y for x, y in zip(a[r % len(a)], b[r % len(b)], strict=True))
                for r in range(k)
            )
            / k
            for b in rows
        ]
        for a in rows
    ]
    batch = make_batch([0, 1, 2, 3], [0, 1, 2, 3])
    torch.testing.assert_close(guide.similarity(batch), torch.tensor(expected))
    uniform = LanguageGuide(embeds, chosen, several=several, centre=centre, control="uniform")
    others = [expected[i][j] for i in range(4) for j in range(4) if i != j]
    assert float(uniform.similarity(batch)[0, 1]) == pytest.approx(sum(others) / 12, abs=CLOSE)
    permuted = LanguageGuide(embeds, chosen, 3, several=several, centre=centre, control="permuted")
    assert sorted(permuted.similarity(batch).flatten().tolist()) == pytest.approx(
        sorted(x for row in expected for x in row), abs=CLOSE
    )
    if level == "row":
        assert guide.class_words is None
        return
    words = torch.tensor([unit(mean_of(item)) for item in rows])
    torch.testing.assert_close(guide.class_words, words)
    torch.testing.assert_close(uniform.class_words, words)
    torch.testing.assert_close(permuted.class_words, words[permuted.order])
    assert not (permuted.order == torch.arange(4)).any()


def test_centring_removes_what_all_words_share():
    own = torch.eye(4)[:3]
    shared = F.normalize(own + torch.tensor([0.0, 0, 0, 5]), dim=1)  # a prompt
    chosen = Words(("a", "b", "c"), torch.arange(3).unsqueeze(1), "class")
    batch = make_batch([0, 1, 2])
    sims = LanguageGuide(shared, chosen, centre=True).similarity(batch)
    assert LanguageGuide(shared, chosen).similarity(batch).min() > 0.9
    torch.testing.assert_close(sims, 1.5 * torch.eye(3) - 0.5)  # three corners of a triangle
    torch.testing.assert_close(
        sims, LanguageGuide(own, chosen, centre=True).similarity(batch), atol=CLOSE, rtol=0
    )


def test_centring_words_that_are_all_alike_is_refused():
    chosen = Words(("a", "b"), torch.tensor([[0], [1], [0]]), "class")
    with pytest.raises(ValueError, match="centre leaves nothing of words that all have the same"):
        LanguageGuide(F.normalize(torch.ones(2, DIM), dim=1), chosen, centre=True)


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
    with pytest.raises(ValueError, match=r"several means is unknown.*: mean"):
        LanguageGuide(embeds, words, several="means")
    with pytest.raises(ValueError, match="9 embeddings for 10 texts"):
        LanguageGuide(embeds[:9], words)


def test_moves_to_the_device_of_the_batch():
    embeds, words = make_words()
    with pretend.accelerator():
        batch = make_batch([3, 0, 6]).to(pretend.DEVICE)
        sims = LanguageGuide(embeds, words).similarity(batch)
        assert sims.device == pretend.DEVICE
        torch.testing.assert_close(sims.cpu(), oracle(embeds, words.index, [3, 0, 6]))
