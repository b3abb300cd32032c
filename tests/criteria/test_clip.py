import io
import math

import pytest
import torch
import torch.nn.functional as F

from criteria.clip import CLIP
from tests.criteria.caption_losses import (
    CAPTIONS,
    FEATURES,
    Hashes,
    Letters,
    batch,
    clip,
    refuse,
    views,
)

TEXTS = ["frozen", "transformer"]


def linear(layer, row):
    return [
        sum(w * x for w, x in zip(weights, row, strict=True)) for weights in layer.weight.tolist()
    ]


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def oracle(images, texts, scale):
    """The paper's two cross-entropies, one pair at a time."""
    total = 0.0
    for i in range(len(images)):
        exp = [
            [
                math.exp(scale * sum(x * y for x, y in zip(image, text, strict=True)))
                for text in texts
            ]
            for image in images
        ]
        total -= math.log(exp[i][i] / sum(exp[i]))
        total -= math.log(exp[i][i] / sum(row[i] for row in exp))
    return total / (2 * len(images))


def of_criterion(criterion, view, captions):
    images = [unit(linear(criterion.projection, row)) for row in view.features.tolist()]
    texts = [unit(row) for row in criterion.reader(captions)[0].tolist()]
    return images, texts


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("text", TEXTS)
def test_equals_the_equation(text, temperature):
    criterion, (view,) = clip(text, temperature=temperature), views()
    expected = oracle(*of_criterion(criterion, view, CAPTIONS), 1 / temperature)
    loss = criterion.compute([view], batch())
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # the scale starts as a float32


def test_the_frozen_text_is_the_encoders_under_a_projection():
    criterion = clip("frozen")
    expected = [
        linear(criterion.reader.projection, row) for row in Hashes().encode(CAPTIONS).tolist()
    ]
    torch.testing.assert_close(
        criterion.reader(CAPTIONS)[0], torch.tensor(expected, dtype=torch.float64)
    )


def test_the_trained_text_is_the_towers():
    criterion = clip("transformer", tokens=4)
    expected = criterion.reader.tower(*Letters(4)(CAPTIONS))
    assert torch.equal(criterion.reader(CAPTIONS)[0], expected)
    assert criterion.reader.tower.positions.shape == (4, 8)


@pytest.mark.parametrize("text", TEXTS)
def test_the_order_of_the_batch_does_not_matter(text):
    criterion, (view,) = clip(text), views()
    loss = criterion.compute([view], batch())
    order = [3, 1, 6, 0, 5, 2, 4]
    shuffled = view._replace(features=view.features[order])
    other = criterion.compute([shuffled], batch(tuple(CAPTIONS[i] for i in order)))
    assert other.item() == pytest.approx(loss.item(), rel=1e-12)
    (grad,) = torch.autograd.grad(loss, view.features)
    (moved,) = torch.autograd.grad(other, view.features)
    torch.testing.assert_close(moved, grad)


@pytest.mark.parametrize("text", TEXTS)
def test_every_weight_and_the_features_get_a_gradient(text):
    criterion, (view,) = clip(text), views()
    criterion.compute([view], batch()).backward()
    assert (view.features.grad.abs().sum(dim=1) > 0).all()
    for name, parameter in criterion.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_by_finite_differences():
    criterion, (view,) = clip("frozen"), views()

    def loss(features, weight, text_weight, scale):
        chosen = {
            "projection.weight": weight,
            "reader.projection.weight": text_weight,
            "log_scale": scale,
        }
        images = view._replace(features=features)
        return torch.func.functional_call(criterion, chosen, ([images],), {"batch": batch()})

    criterion.forward = criterion.compute
    weights = (criterion.projection.weight, criterion.reader.projection.weight, criterion.log_scale)
    assert torch.autograd.gradcheck(loss, (view.features, *weights))


def test_a_frozen_encoder_is_neither_parameter_nor_state():
    criterion = clip("frozen")
    names = {"projection.weight", "reader.projection.weight", "log_scale"}
    assert {name for name, _ in criterion.named_parameters()} == names
    assert set(criterion.state_dict()) == names


def test_equal_captions_are_negatives_of_each_other():
    """As published: two images with one caption cannot reach the loss of two with their own."""
    criterion = clip("frozen", temperature=0.01)
    images = F.normalize(torch.randn(2, 4, dtype=torch.float64), dim=1)
    same = criterion.contrast(images[[0, 0]], images[[0, 0]])
    assert same.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("text", TEXTS)
def test_a_single_pair_has_no_loss_and_a_gradient(text):
    criterion, (view,) = clip(text), views(n=1)
    loss = criterion.compute([view], batch(("fox",)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert view.features.grad.isfinite().all()


def test_captions_without_an_embedding_are_left_out():
    criterion, (view,) = clip("frozen"), views()
    captions = ("fox", "", *CAPTIONS[2:6], "")
    loss = criterion.compute([view], batch(captions))
    known = [0, 2, 3, 4, 5]
    expected = criterion.compute(
        [view._replace(embeds=view.embeds[known], features=view.features[known])],
        batch(tuple(captions[i] for i in known)),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    assert (view.features.grad.abs().sum(dim=1) > 0).tolist() == [i in known for i in range(7)]


def test_nothing_but_captions_without_an_embedding():
    criterion, (view,) = clip("frozen"), views(n=3)
    loss = criterion.compute([view], batch(("", "", "")))
    loss.backward()
    assert loss.item() == 0
    assert not view.features.grad.any()
    assert all(not p.grad.any() for p in criterion.parameters())  # and finite


def test_a_blank_caption_is_a_text_of_its_end_to_the_transformer():
    criterion, (view,) = clip("transformer"), views(n=2)
    images, texts = criterion.project([view], batch(("", "fox")))
    assert len(images) == len(texts) == 2
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_the_temperature_starts_where_it_is_told_and_stops_at_a_hundredth():
    criterion = clip("frozen", dtype=torch.float32)
    assert criterion.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    for value, expected in ((3.0, 3.0), (-1.0, -1.0), (4.7, math.log(100))):
        with torch.no_grad():
            criterion.log_scale.fill_(value)
        criterion.after_step(torch.nn.Identity())
        assert criterion.log_scale.item() == pytest.approx(expected)
    assert criterion.log_scale.requires_grad


@pytest.mark.parametrize("text", TEXTS)
def test_decay_of_matrices_alone(text):
    criterion = clip(text)
    groups = criterion.param_groups(lr=0.3)
    assert all(group["lr"] == 0.3 for group in groups)
    decayed = {p for group in groups if "weight_decay" not in group for p in group["params"]}
    rest = {p for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    for name, parameter in criterion.named_parameters():
        free = name == "log_scale" or name.endswith("bias") or ".norm" in name
        assert parameter in (rest if free else decayed), name
    assert len(decayed) + len(rest) == len(list(criterion.parameters()))


@pytest.mark.parametrize("text", TEXTS)
def test_half_precision(text):
    criterion = clip(text, dtype=torch.float32)
    (view,) = views(dtype=torch.float32)
    expected = criterion.compute([view], batch())
    half = view._replace(features=view.features.to(torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion.compute([half], batch())
        own = criterion.compute([view], batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in criterion.parameters())
    assert text == "transformer" or torch.equal(own, expected)


@pytest.mark.parametrize("text", TEXTS)
def test_the_state_resumes(text):
    criterion, (view,) = clip(text), views()
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    resumed = clip(text, seed=7)
    assert resumed.compute([view], batch()) != criterion.compute([view], batch())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(resumed.compute([view], batch()), criterion.compute([view], batch()))


@pytest.mark.parametrize("captions", [(), CAPTIONS[:5]])
def test_missing_captions_are_named(captions):
    message = rf"CLIP needs a caption of each image, but a batch of 7 images has {len(captions)};"
    with pytest.raises(ValueError, match=message):
        clip().compute(views(), batch(captions, n=7))


def test_another_number_of_views():
    with pytest.raises(ValueError, match="CLIP needs 1 view"):
        clip().compute(views(2), batch())


@pytest.mark.parametrize("temperature", [0.0, 0.005, -1.0, math.inf, math.nan])
def test_a_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match=r"temperature must be finite and >= 0\.01.*got"):
        clip(temperature=temperature)


def test_an_unknown_reader():
    with pytest.raises(ValueError, match="text must be transformer or frozen; got bert"):
        CLIP(FEATURES, refuse, refuse, text="bert")


def test_the_mean_gradient_of_two_processes_is_that_of_one(monkeypatch):
    """Each has half of the pairs, and the backward pass of ``gather`` sums what both send it."""
    criterion, (view,) = clip("transformer"), views(n=6)
    captions = (*CAPTIONS[:4], "", "a")
    whole = criterion.compute([view], batch(captions))
    expected = torch.autograd.grad(whole, list(criterion.parameters()))
    halves = [slice(0, 3), slice(3, 6)]
    given = [view._replace(embeds=view.embeds[own], features=view.features[own]) for own in halves]
    shares = []
    monkeypatch.setattr("criteria.clip.gather", lambda share: shares.append(share) or share)
    for own, half in zip(halves, given, strict=True):
        criterion.compute([half], batch(captions[own]))
    gradients = []
    for rank, own in enumerate(halves):

        def gather(share, rank=rank):
            share.register_hook(lambda grad: 2 * grad)  # both ranks have the same loss
            of_all = [other.detach() for other in shares]
            of_all[rank] = share
            return torch.cat(of_all)

        monkeypatch.setattr("criteria.clip.gather", gather)
        loss = criterion.compute([given[rank]], batch(captions[own]))
        assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
        gradients.append(torch.autograd.grad(loss, list(criterion.parameters())))
    for wanted, *both in zip(expected, *gradients, strict=True):
        torch.testing.assert_close(sum(both) / 2, wanted)


@pytest.mark.parametrize("text", TEXTS)
def test_training_finds_each_images_caption(text):
    """Features are noisy linear maps of the letters, or of the frozen embedding of the word."""
    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(0, 26, (64, 4), generator=generator)
    captions = tuple("".join(chr(97 + i) for i in row) for row in letters.tolist())
    of_text = F.one_hot(letters, 26).flatten(1).float()
    of_text = Hashes().encode(captions) if text == "frozen" else of_text
    features = of_text @ torch.randn(of_text.shape[1], 32, generator=generator)
    features = features / features.std() + 0.1 * torch.randn(features.shape, generator=generator)
    criterion = clip(
        text, dtype=torch.float32, features=32, width=32, proj_dim=32, layers=1, tokens=6
    )
    optimizer = torch.optim.AdamW(criterion.param_groups(0.01), lr=0.01, weight_decay=0.01)
    (view,) = views(n=64)
    view = view._replace(features=features)
    for _ in range(60):
        optimizer.zero_grad()
        criterion.compute([view], batch(captions)).backward()
        optimizer.step()
        criterion.after_step(torch.nn.Identity())
    with torch.no_grad():
        images, texts = criterion.project([view], batch(captions))
    found = (images @ texts.T).argmax(dim=1) == torch.arange(64)
    assert found.float().mean() > 0.8  # by chance 1/64
