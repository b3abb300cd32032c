import math

import pytest
import torch

from language.pseudolabels import imagenet_names, top_classes


def oracle(logits, labels, topk, average):
    """Mean output of each class as scalar loops, then a sort."""
    ranked = []
    for label in range(max(labels) + 1):
        sums = [0.0] * len(logits[0])
        for row, own in zip(logits, labels, strict=True):
            if own != label:
                continue
            total = sum(math.exp(x) for x in row)
            for i, x in enumerate(row):
                sums[i] += math.exp(x) / total if average == "probabilities" else x
        ranked.append(sorted(range(len(sums)), key=lambda i: -sums[i])[:topk])
    return ranked


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_class_level_equals_scalar_loops(average):
    logits = 4 * torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 1, 1, 0, 2, 2, 0, 3, 3, 3]
    classes = top_classes(logits, torch.tensor(labels), topk=4, average=average)
    assert classes.tolist() == oracle(logits.tolist(), labels, 4, average)


def test_one_sure_image_outvotes_logits_but_not_probabilities():
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    labels = torch.zeros(3, dtype=torch.int64)
    assert top_classes(logits, labels, topk=1).tolist() == [[0]]
    assert top_classes(logits, labels, topk=1, average="probabilities").tolist() == [[1]]


def test_sample_level_ranks_each_image():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]])
    classes = top_classes(logits, torch.tensor([0, 0]), topk=2, level="sample")
    assert classes.tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, r"topk must be in \[1, 3\]; got 0"),
        ({"topk": 4}, r"topk must be in \[1, 3\]; got 4"),
        ({"level": "row"}, "level must be one of class, sample; got row"),
        ({"average": "votes"}, "average must be one of logits, probabilities; got votes"),
    ],
)
def test_bad_options_name_their_flag(options, message):
    with pytest.raises(ValueError, match=message):
        top_classes(torch.zeros(2, 3), torch.tensor([0, 1]), **({"topk": 1} | options))


def test_a_class_without_images_and_wrong_lengths():
    with pytest.raises(ValueError, match=r"classes \[1\] have no image"):
        top_classes(torch.zeros(2, 3), torch.tensor([0, 2]), topk=1)
    with pytest.raises(ValueError, match="2 rows of logits for 1 labels"):
        top_classes(torch.zeros(2, 3), torch.tensor([0]), topk=1)


def test_imagenet_names_are_first_synonyms():
    names = imagenet_names()
    assert len(names) == 1000
    assert (names[0], names[278]) == ("tench", "kit fox")
    assert not any("," in name for name in names)
