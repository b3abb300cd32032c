"""From images to named scores with their protocols."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metrics
from datasets.image_set import ImageSet
from evaluation import run, table
from utilities.structures import Embedding

REDS = (10, 12, 90, 95, 93, 200)
LABELS = (0, 0, 1, 1, 2, 2)


class Colour(nn.Module):
    """Features are the mean colour, embeds the mean colour without red."""

    n_calls = 0

    def forward(self, images):
        self.n_calls += 1
        colour = images.mean(dim=(2, 3))
        return Embedding(colour[:, 1:], colour, images)


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@pytest.fixture
def image_set(tmp_path):
    paths = []
    for row, red in enumerate(REDS):
        paths.append(tmp_path / f"{row}.png")
        Image.new("RGB", (4, 4), (red, 3 * row, 0)).save(paths[-1])
    names, groups = ("dog", "wolf", "car"), ("animal", "animal", "vehicle")
    return ImageSet("colours.test", tuple(paths), np.array(LABELS), names, groups)


def test_scores_each_output_under_its_own_name(image_set):
    names = ["e_recall@1", "c_recall@1", "nmi", "wrong_group_share@1"]
    embedder = Colour()
    found = run(embedder, image_set, to_tensor, metrics=names, bs=4, workers=0,
                evaltypes=("embeds", "features"), seed=2)  # fmt: skip
    assert embedder.n_calls == 2  # two batches, once
    assert list(found) == [f"{kind}/{name}" for kind in ("embeds", "features") for name in names]
    colours = torch.tensor([[red, 3 * row, 0.0] for row, red in enumerate(REDS)])
    for kind, part in (("embeds", colours[:, 1:]), ("features", colours)):
        gallery = metrics.Gallery(part, torch.tensor(LABELS), None, image_set.class_groups, 2)
        expected = metrics.compute(names, gallery)
        assert {name: found[f"{kind}/{name}"] for name in names} == expected


def test_every_score_carries_its_protocol(image_set):
    names = ["recall@2", "c_recall@1", "c_f1"]
    found = run(Colour(), image_set, to_tensor, metrics=names, bs=6, workers=0, seed=7)
    assert found.lines() == [
        f"embeds/{name} {100 * found[f'embeds/{name}']:.2f} | colours.test n=6 d=2 {rest} seed=7"
        for name, rest in zip(
            names, ("euclidean exact", "cosine exact", "cosine k-means"), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["e_recal@1"]}, "--evaluation_metrics e_recal@1 is unknown"),
        ({"metrics": ["wrong_word_similarity@1"]}, "needs embedded words of the classes"),
        ({"evaltypes": ("embed",)}, "--evaltypes embed is unknown; use one of embeds, features"),
    ],
)
def test_refused_before_anything_is_embedded(image_set, change, message):
    embedder = Colour()
    with pytest.raises(ValueError, match=message):
        run(embedder, image_set, to_tensor, **{"metrics": ["mAP"], "workers": 0, **change})
    assert embedder.n_calls == 0


def test_table_is_aligned():
    before = {"embeds/e_recall@1": 0.4181, "embeds/nmi": math.nan, "old": 1.0}
    after = {"embeds/e_recall@1": 0.5512, "embeds/nmi": 0.7, "features/mAP": 0.1}
    assert table(before, after).splitlines() == [
        "in percent         untrained  trained  change",
        "---------------------------------------------",
        "embeds/e_recall@1      41.81    55.12  +13.31",
        "embeds/nmi                 –    70.00       –",
        "features/mAP               –    10.00       –",
        "old                   100.00        –       –",
    ]
