"""Search by text towers, against transformers' whole models and scalar loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from architectures.image_tower import image_tower
from datasets.image_set import ImageSet
from evaluation.tower_search import TowerSearch, text_side, zero_shot
from language.from_flags import NamesReader
from tests.architectures import towers
from tests.evaluation.test_word_search import brute_force

WORDS = ("fox", "owl", "cat", "red", "old", "a", "photo", "of")
NAMES = ("fox", "old owl", "red cat", "cat")
METRICS = ["word_recall@1", "word_recall@5", "word_mAP", "named@1", "named@3"]
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("kind", towers.ARCHS)
def test_zero_shot_scores_are_those_of_the_whole_model(kind, tmp_path, monkeypatch):
    arch, folder = towers.ARCHS[kind], tmp_path / kind
    towers.shrink(monkeypatch, arch)
    model = towers.save(kind, WORDS, folder)
    tower = image_tower(arch, folder.with_suffix(".pth"))

    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(4).repeat_interleave(3)
    pooled = torch.randn(12, 16, generator=rng)
    images = ImageSet("made.test", tuple(map(str, range(12))), labels.numpy(), NAMES)
    models = {"evaluation_language_model": str(folder)}
    search = zero_shot(tower, models, [NAMES], METRICS, NamesReader(CPU))

    _, tokenizer = towers.make(kind, WORDS)
    texts = []
    for name in NAMES:
        ids = tokenizer(f"a photo of a {name}").input_ids
        if kind == "siglip":
            ids += [0] * (16 - len(ids))
        with torch.no_grad():
            texts.append(model.get_text_features(torch.tensor([ids])).pooler_output[0])
    projected = model.visual_projection(pooled) if kind == "clip" else pooled
    units = F.normalize(torch.stack(texts), dim=1), F.normalize(projected.detach(), dim=1)
    expected = brute_force(*units, labels)
    found = search.scores(images, pooled, torch.arange(12))
    assert dict(found) == pytest.approx(
        {f"zero_shot/{name}": value for name, value in expected.items()}, abs=1e-9
    )


def test_only_the_models_own_text_tower_will_do(tmp_path, monkeypatch, caplog):
    """One of other weights, or without a tower of images, is refused by what it embeds."""
    arch = towers.ARCHS["clip"]
    towers.shrink(monkeypatch, arch)
    for seed in range(2):
        towers.save("clip", WORDS, tmp_path / f"seed{seed}", seed)
    towers.save("siglip", WORDS, tmp_path / "siglip")
    tower = image_tower(arch, tmp_path / "seed0.pth")
    reader = NamesReader(CPU)
    models = {"evaluation_language_model": str(tmp_path / "seed1"), "language_model": "minilm"}
    assert zero_shot(tower, models, [NAMES], METRICS, reader) is None
    message = caplog.messages[-1]
    assert f"--evaluation_language_model {tmp_path}/seed1 has another image tower" in message
    assert "--language_model minilm has no image tower" in message
    assert "use --evaluation_language_model openai/clip-vit-base-patch32" in message
    models = {"language_model": str(tmp_path / "siglip"), "other": str(tmp_path / "nowhere")}
    assert zero_shot(tower, models, [NAMES], METRICS, reader) is None
    assert "has 16 dimensions, not 512" in caplog.messages[-1]
    assert "nowhere cannot be read" in caplog.messages[-1]
    models = {"evaluation_language_model": "minilm", "language_model": str(tmp_path / "seed0")}
    assert zero_shot(tower, models, [NAMES], METRICS, reader) is not None


def test_a_text_side_that_puts_names_on_their_images_is_perfect():
    class Perfect:
        """Features are one number for each letter of the alphabet."""

        def to(self, device):
            self.device = device

        def embed_images(self, features):
            return features

        def embed_texts(self, names):
            return torch.eye(26)[["abcdef".index(name) for name in names]]

    labels = np.array([0, 0, 1, 2, 2])
    images = ImageSet("made.test", tuple("vwxyz"), labels, ("c", "a", "f"))
    features = torch.eye(26)[[2, 2, 0, 5, 5]]
    search = text_side(Perfect(), METRICS, CPU)
    assert isinstance(search, TowerSearch)
    scores = search.scores(images, features, torch.arange(5))
    assert dict(scores) == {f"text_side/{name}": 1.0 for name in METRICS}
    assert scores.protocols["text_side/named@1"].startswith("made.test q=5 n=3 d=26 cosine")


def test_an_objective_without_texts_has_no_text_side():
    assert text_side(torch.nn.Linear(2, 2), METRICS, CPU) is None
