import math

import pytest
import torch
import torch.nn.functional as F

from tests.criteria.caption_losses import CAPTIONS, Hashes, Letters, batch, clip, views
from tests.criteria.scalars import cross_entropy, dot, linear, unit

each_text = pytest.mark.parametrize("text", ["frozen", "transformer"])


def equation(images, texts, scale):
    """The paper's two cross-entropies, one pair at a time."""
    sims = [[scale * dot(image, text) for text in texts] for image in images]
    total = 0.0
    for i, row in enumerate(sims):
        total += cross_entropy(row, i) + cross_entropy([other[i] for other in sims], i)
    return total / (2 * len(images))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@each_text
def test_equals_the_equation(text, temperature):
    criterion, (view,) = clip(text, temperature=temperature), views()
    images = [unit(linear(criterion.projection, row)) for row in view.features.tolist()]
    texts = [unit(row) for row in criterion.reader(CAPTIONS)[0].tolist()]
    loss = criterion.compute([view], batch())
    expected = equation(images, texts, 1 / temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # the scale starts as a float32


def test_the_frozen_text_is_the_encoders_under_a_projection():
    criterion = clip("frozen")
    rows = Hashes().encode(CAPTIONS).tolist()
    expected = torch.tensor([linear(criterion.reader.projection, row) for row in rows]).double()
    assert torch.allclose(criterion.reader(CAPTIONS)[0], expected, atol=1e-6)


def test_the_trained_text_is_the_towers():
    criterion = clip("transformer", tokens=4)
    expected = criterion.reader.tower(*Letters(4)(CAPTIONS))
    assert torch.equal(criterion.reader(CAPTIONS)[0], expected)
    assert criterion.reader.tower.positions.shape == (4, 8)


@each_text
def test_every_weight_and_the_features_get_a_gradient(text):
    criterion, (view,) = clip(text), views()
    criterion.compute([view], batch()).backward()
    assert (view.features.grad.abs().sum(dim=1) > 0).all()
    for name, parameter in criterion.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_gradient():
    criterion, (view,) = clip("frozen"), views()
    names = ("projection.weight", "reader.projection.weight", "log_scale")

    def loss(features, *weights):
        chosen, given = dict(zip(names, weights, strict=True)), view._replace(features=features)
        return torch.func.functional_call(criterion, chosen, ([given],), {"batch": batch()})

    criterion.forward = criterion.compute
    weights = [criterion.get_parameter(name) for name in names]
    assert torch.autograd.gradcheck(loss, (view.features, *weights))


def test_a_frozen_encoder_is_neither_parameter_nor_state():
    criterion = clip("frozen")
    names = {"projection.weight", "reader.projection.weight", "log_scale"}
    assert {name for name, _ in criterion.named_parameters()} == names
    assert set(criterion.state_dict()) == names


def test_equal_captions_are_negatives_of_each_other():
    """As published: two images with one caption cannot reach the loss of two with their own."""
    images = F.normalize(torch.randn(2, 4, dtype=torch.float64), dim=1)
    same = clip("frozen", temperature=0.01).contrast(images[[0, 0]], images[[0, 0]])
    assert same.item() == pytest.approx(math.log(2), rel=1e-6)


@each_text
def test_a_single_pair_has_no_loss_and_a_gradient(text):
    criterion, (view,) = clip(text), views(n=1)
    loss = criterion.compute([view], batch(("fox",)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert view.features.grad.isfinite().all()


def test_captions_without_an_embedding_are_left_out():
    criterion, (view,) = clip("frozen"), views()
    captions, known = ("fox", "", *CAPTIONS[2:6], ""), [0, 2, 3, 4, 5]
    loss = criterion.compute([view], batch(captions))
    kept = view._replace(embeds=view.embeds[known], features=view.features[known])
    expected = criterion.compute([kept], batch(tuple(captions[i] for i in known)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    assert (view.features.grad.abs().sum(dim=1) > 0).tolist() == [i in known for i in range(7)]


def test_a_batch_of_captions_without_an_embedding_has_no_loss():
    criterion, (view,) = clip("frozen"), views(n=3)
    loss = criterion.compute([view], batch(("", "", "")))
    loss.backward()
    assert loss.item() == 0
    assert not view.features.grad.any()
    assert all(not p.grad.any() for p in criterion.parameters())  # and finite


def test_the_transformer_reads_a_blank_caption_as_its_end_token():
    criterion, (view,) = clip("transformer"), views(n=2)
    images, texts = criterion.project([view], batch(("", "fox")))
    assert len(images) == len(texts) == 2
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_the_temperature_starts_at_its_hyperparameter_and_stops_at_a_hundredth():
    criterion = clip("frozen", dtype=torch.float32)
    assert criterion.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    for value, expected in ((3.0, 3.0), (-1.0, -1.0), (4.7, math.log(100))):
        with torch.no_grad():
            criterion.log_scale.fill_(value)
        criterion.after_step(torch.nn.Identity())
        assert criterion.log_scale.item() == pytest.approx(expected)
    assert criterion.log_scale.requires_grad


@each_text
def test_matrices_alone_take_weight_decay(text):
    criterion = clip(text)
    groups = criterion.param_groups(lr=0.3)
    assert all(group["lr"] == 0.3 for group in groups)
    decayed = {p for group in groups if "weight_decay" not in group for p in group["params"]}
    rest = {p for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    for name, parameter in criterion.named_parameters():
        free = name == "log_scale" or name.endswith("bias") or ".norm" in name
        assert parameter in (rest if free else decayed), name


@each_text
def test_half_precision_is_close_and_compares_in_float32(text):
    criterion, (view,) = clip(text, dtype=torch.float32), views(dtype=torch.float32)
    expected = criterion.compute([view], batch())
    half = view._replace(features=view.features.to(torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion.compute([half], batch())
        own = criterion.compute([view], batch())
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in criterion.parameters())
    assert text == "transformer" or torch.equal(own, expected)


@each_text
def test_training_finds_each_images_caption(text):
    """Features are noisy linear maps of the letters, or of the frozen embedding of the word."""
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(0, 26, (64, 4), generator=generator)
    captions = tuple("".join(chr(97 + i) for i in row) for row in letters.tolist())
    of_text = F.one_hot(letters, 26).flatten(1).float()
    of_text = Hashes().encode(captions) if text == "frozen" else of_text
    features = of_text @ torch.randn(of_text.shape[1], 32, generator=generator)
    features = features / features.std() + 0.1 * torch.randn(features.shape, generator=generator)
    sizes = {"features": 32, "width": 32, "proj_dim": 32, "layers": 1, "tokens": 6}
    criterion = clip(text, dtype=torch.float32, **sizes)
    optimizer = torch.optim.AdamW(criterion.param_groups(0.01), lr=0.01, weight_decay=0.01)
    view = views(n=64)[0]._replace(features=features)
    for _ in range(60):
        optimizer.zero_grad()
        criterion.compute([view], batch(captions)).backward()
        optimizer.step()
        criterion.after_step(torch.nn.Identity())
    with torch.no_grad():
        images, texts = criterion.project([view], batch(captions))
    found = (images @ texts.T).argmax(dim=1) == torch.arange(64)
    assert found.float().mean() > 0.8  # by chance 1/64
