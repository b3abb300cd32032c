"""The embedder on small random backbones: shapes, pooling, frozen norms, groups, warm-up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import timm
import torch

import architectures
from architectures import Embedder
from architectures.embedder import signed_root
from architectures.weights import backbone


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(n=2, height=64, width=64):
    return torch.randn(n, 3, height, width)


def create(name, embed_dim=4, **options):
    return architectures.create(name, embed_dim, pretrained=False, **options)


@pytest.mark.parametrize(
    ("name", "n_features", "side"),
    [
        ("resnet18", 512, 2),
        ("efficientnet_lite0", 1280, 2),
        ("vit_tiny_patch16_224", 192, 4),
        ("deit_tiny_distilled_patch16_224", 192, 4),  # two prefix tokens
        ("mixer_s32_224", 512, 2),  # tokens, none of them a class token
    ],
)
def test_shapes(name, n_features, side):
    embedder = create(name, 16, image_size=64).eval()
    out = embedder(images())
    assert out.embeds.shape == (2, 16)
    assert out.features.shape == (2, n_features)
    assert out.feature_map.shape == (2, n_features, side, side)
    assert (embedder.embed_dim, embedder.feature_dim) == (16, n_features)


def test_channels_last_maps_become_channels_first():
    out = create("swin_tiny_patch4_window7_224").eval()(images(1, 224, 224))
    assert out.feature_map.shape == (1, 768, 7, 7)
    torch.testing.assert_close(out.features, out.feature_map.mean(dim=(2, 3)))


def test_patch_tokens_keep_their_places_in_the_map():
    embedder = create("vit_tiny_patch16_224", image_size=64)
    batch = images()
    tokens = embedder.eval().backbone.forward_features(batch)  # (B, 1 + 16, F), class token first
    out = embedder(batch)
    torch.testing.assert_close(out.feature_map[:, :, 1, 2], tokens[:, 1 + 1 * 4 + 2])
    torch.testing.assert_close(out.features, tokens[:, 0])


@pytest.mark.parametrize(
    ("body", "size", "shape"),
    [
        (lambda: backbone("resnet18", pretrained=False), (64, 128), (1, 512, 2, 4)),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(32, 64)),
            (32, 64),
            (1, 192, 2, 4),
        ),
    ],
)
def test_oblong_images_give_oblong_maps(body, size, shape):
    embedder = Embedder(body(), 4, image_size=size).eval()
    assert embedder(images(1, *size)).feature_map.shape == shape


@pytest.mark.parametrize(
    ("name", "n_features", "width"),
    [
        ("convnext_atto", 320, 320),  # a norm after pooling
        ("mobilenetv3_small_050", 1024, 288),  # a convolution
        ("hgnetv2_b0", 2048, 1024),  # another, with a norm
        ("resnet18", 512, 512),  # nothing
    ],
)
def test_layers_after_pooling_are_used_and_trained(name, n_features, width):
    """They are part of the backbone that is exported: its output is what the embedder reads."""
    embedder, batch = create(name, image_size=64), images(4)
    assert (embedder.feature_dim, embedder.map_dim) == (n_features, width)
    out = embedder.eval()(batch)
    assert out.feature_map.shape == (4, width, 2, 2)
    torch.testing.assert_close(out.features, embedder.backbone(batch))
    embedder.train()(batch).embeds.square().sum().backward()
    assert all(p.grad is not None for p in embedder.parameters())


@pytest.mark.parametrize(
    ("name", "size", "n_prefix", "side"),
    [
        ("cait_xxs24_224", 64, 1, 4),
        ("convit_tiny", 64, 1, 4),
        ("coat_tiny", 64, 1, 2),  # the last of its maps
        ("pvt_v2_b0", 72, 0, 3),  # patches of 7 px that overlap
        ("efficientformer_l1", 224, 0, 7),
    ],
)
def test_backbones_of_other_families(name, size, n_prefix, side):
    embedder = create(name, image_size=size).eval()
    out = embedder(images(1, size, size))
    assert embedder.n_prefix == n_prefix
    assert out.feature_map.shape == (1, embedder.map_dim, side, side)
    assert out.features.shape == (1, embedder.feature_dim)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("halonet_h1", 64, "cannot read images of 64 x 64 px .* use --image_size 256"),
        ("efficientformer_l1", 64, "cannot read images of 64 x 64 px .* use --image_size 224"),
        ("crossvit_tiny_240", 64, "cannot read images of 64 x 64 px .* use --image_size 240"),
        ("convnext_atto_double", 64, "has layers after its pooling.* drop _double"),
        ("efficientvim_m1", 64, "its features are not a map.* choose another backbone"),
    ],
)
def test_a_backbone_that_does_not_suit_is_refused_in_a_sentence(name, size, message):
    with pytest.raises(ValueError, match=message) as caught:
        create(name, image_size=size)
    assert "\n" not in str(caught.value)


def test_a_vision_transformer_is_built_for_the_enlarged_images():
    args = SimpleNamespace(
        arch="vit_tiny_patch16_224", embed_dim=4, not_pretrained=True, weights=None,
        image_size=56, augmentation="big", no_zero_init_last=False,
        bs=2, forward_bs=0, grad_checkpointing=False, embed_init="random",
    )  # fmt: skip
    assert architectures.build(args)(images()).embeds.shape == (2, 4)  # 64 px


def test_the_state_of_an_embedder_without_the_layers_after_pooling_is_refused():
    embedder = create("convnext_atto", image_size=64)
    state = embedder.state_dict()
    embedder.load_state_dict(state)
    del state["pooled_by_head"]
    with pytest.raises(
        ValueError, match="earlier version, which left out the layers that convnext"
    ):
        embedder.load_state_dict(state)
    assert "pooled_by_head" not in create("resnet18").state_dict()


@pytest.mark.parametrize("name", ["resnet18_double", "vit_tiny_patch16_224_double"])
def test_double_is_average_plus_maximum(name):
    out = create(name, image_size=64).eval()(images())
    places = out.feature_map.flatten(2)  # (B, F, h * w)
    torch.testing.assert_close(out.features, places.mean(2) + places.max(2).values)


def test_average_pooling_embedding_layer_and_layout():
    embedder = create("resnet18").eval()
    out = embedder(images())
    torch.testing.assert_close(out.features, out.feature_map.flatten(2).mean(2))
    expected = out.features @ embedder.embedding.weight.T + embedder.embedding.bias
    torch.testing.assert_close(out.embeds, expected)
    assert embedder.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert embedder.double().embedding.weight.dtype == torch.float64  # nn.Module's own method


def test_normalize_gives_unit_rows_and_only_then():
    body = backbone("resnet18", pretrained=False)
    batch = images()
    plain, unit = Embedder(body, 4), Embedder(body, 4, normalize=True)
    unit.load_state_dict(plain.state_dict())
    long = plain.eval()(batch).embeds
    torch.testing.assert_close(
        unit.eval()(batch).embeds, long / long.norm(dim=1, keepdim=True), atol=1e-6, rtol=0
    )
    assert not torch.allclose(long.norm(dim=1), torch.ones(2))


def test_half_precision_returns_full_precision_embeds():
    embedder = create("resnet18_normalize").eval()
    with torch.autocast("cpu", torch.bfloat16):
        out = embedder(images())
    assert out.embeds.dtype == out.features.dtype == torch.float32
    torch.testing.assert_close(out.embeds.norm(dim=1), torch.ones(2))


def test_frozen_norms_keep_their_statistics_in_training():
    embedder = create("resnet18_frozen").train()
    norm = embedder.backbone.bn1
    before = norm.running_mean.clone()
    batch = images(4)
    embeds = embedder(batch).embeds
    embeds.sum().backward()
    assert embedder.training and not norm.training
    torch.testing.assert_close(norm.running_mean, before)
    assert norm.weight.grad is not None  # scale and shift are trained
    alone = embedder(batch[:1]).embeds  # do not depend on the rest of the batch
    torch.testing.assert_close(embeds[:1], alone, atol=1e-5, rtol=1e-4)


def test_unfrozen_norms_follow_the_data():
    embedder = create("resnet18").train()
    before = embedder.backbone.bn1.running_mean.clone()
    embedder(images())
    assert not torch.allclose(embedder.backbone.bn1.running_mean, before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224_frozen", {}, "vit_tiny_patch16_224 has no BatchNorm to freeze"),
        ("resnet18", {"embed_dim": -1}, "embed_dim must be >= 0; got -1"),
        ("resnet18", {"weights": "w.pth"}, "exclude each other"),
        ("vit_tiny_patch16_224", {"image_size": 70}, "image_size must .* got 70; use 64 or 80"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, **options)


@pytest.mark.parametrize("decay_norms", [True, False])
def test_param_groups_hold_every_parameter_once(decay_norms):
    embedder = create("resnet18")
    groups = embedder.param_groups(lr=1e-5, fc_lr=1e-3, decay=4e-4, decay_norms=decay_norms)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in embedder.parameters())
    settings = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    of_norms = 4e-4 if decay_norms else 0.0
    assert settings[id(embedder.backbone.conv1.weight)] == (1e-5, 4e-4)
    assert settings[id(embedder.backbone.bn1.weight)] == (1e-5, of_norms)
    assert settings[id(embedder.backbone.bn1.bias)] == (1e-5, of_norms)
    assert settings[id(embedder.embedding.weight)] == (1e-3, 4e-4)
    assert settings[id(embedder.embedding.bias)] == (1e-3, of_norms)


@pytest.mark.parametrize(("fc_lr", "expected"), [(-1, 1e-5), (0.0, 0.0)])
def test_fc_lr_minus_one_follows_and_zero_is_zero(fc_lr, expected):
    assert create("resnet18").param_groups(lr=1e-5, fc_lr=fc_lr)[1]["lr"] == expected


def test_warmup_moves_only_the_embedding_layer():
    embedder = create("resnet18_frozen")
    optimizer = torch.optim.Adam(embedder.param_groups(lr=0.1, decay=0.1))
    stem, layer = embedder.backbone.conv1.weight, embedder.embedding.weight

    def step():
        before = stem.detach().clone(), layer.detach().clone()
        optimizer.zero_grad()
        embedder(images()).embeds.pow(2).sum().backward()
        optimizer.step()
        return not torch.equal(before[0], stem), not torch.equal(before[1], layer)

    embedder.train_backbone(False)
    assert step() == (False, True)
    embedder.train_backbone(True)
    assert step() == (True, True)


@pytest.mark.parametrize("name", ["resnet18", "resnet50_frozen", "regnety_002"])
def test_residual_blocks_start_at_zero_or_at_one(name):
    torch.manual_seed(0)
    zero = create(name).backbone.state_dict()
    torch.manual_seed(0)
    one = create(name, zero_init_last=False).backbone.state_dict()
    changed = [key for key in zero if not torch.equal(zero[key], one[key])]
    assert changed and not any(zero[key].any() for key in changed)
    assert all((one[key] == 1).all() for key in changed)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_tiny_patch16_224", "vgg11_bn"])
def test_a_backbone_without_such_blocks_refuses_to_start_them_at_one(name):
    with pytest.raises(ValueError, match="--no_zero_init_last has no effect"):
        create(name, image_size=64, zero_init_last=False)


def cosines(rows):
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return unit @ unit.T


def test_an_embedding_layer_of_all_axes_keeps_the_cosines_of_the_features():
    embedder = create("test_resnet", 96).eval()
    features = torch.randn(10, 96) + 1  # fewer than dimensions: any basis of the rest will do
    embedder.start_from(features)
    seen, unseen = embedder.embedding(features), torch.randn(7, 96)
    assert torch.allclose(cosines(seen), cosines(features), atol=1e-6)
    assert torch.allclose(cosines(embedder.embedding(unseen)), cosines(unseen), atol=1e-6)


def test_no_layer_of_as_many_dimensions_keeps_more_of_the_features():
    embedder = create("test_resnet", 3).eval()
    features = torch.randn(50, 96) * torch.linspace(3, 0.1, 96)
    unit = torch.nn.functional.normalize(features, dim=1)
    embedder.start_from(1000 * features)  # their lengths do not matter
    kept = embedder.embedding(unit).square().sum().item()
    assert kept == pytest.approx(float(torch.linalg.svdvals(unit)[:3].square().sum()), rel=1e-5)
    others = torch.linalg.qr(torch.randn(20, 96, 3))[0]
    assert ((unit @ others).square().sum(dim=(1, 2)) < kept).all()


@pytest.mark.parametrize("embed_dim", [0, 5])
def test_whitening_within_classes_is_that_of_its_equation(embed_dim):
    """By scalar loops and a general matrix root, in all dimensions or the principal ones."""
    rng = np.random.default_rng(0)
    labels = np.array([7, 7, 7, 3, 3, 5, 5, 5, 5, 9] * 20)
    embedder = architectures.create("test_resnet", embed_dim, pretrained=False, image_size=32)
    x = rng.normal(size=(200, 96)) * np.linspace(0.1, 3, 96) + rng.normal(size=96)
    embedder.start_from(torch.tensor(x).float(), torch.tensor(labels))
    within = np.zeros((96, 96))
    for name in np.unique(labels):
        of_class = x[labels == name]
        for row in of_class:
            within += np.outer(row - of_class.mean(0), row - of_class.mean(0))
    within /= np.trace(within) / 96
    whiten = np.linalg.inv(scipy.linalg.sqrtm(within + 10 * np.eye(96)).real)
    z = (x - x.mean(0)) @ whiten
    if embed_dim:
        z = z @ np.linalg.svd(z, full_matrices=False)[2][:embed_dim].T
    with torch.no_grad():
        found = embedder.embedding(torch.tensor(x).float()).double().numpy()
    expected = z @ z.T * 10  # of the scale at which much shrinkage changes nothing
    assert np.allclose(found @ found.T, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_layer_may_read_square_roots_of_the_features():
    embedder = create("test_resnet_root_normalize", 5).eval()
    assert embedder.root and not create("test_resnet", 5).root
    out = embedder(torch.randn(4, 3, 64, 64))
    roots = [[math.copysign(math.sqrt(abs(v)), v) for v in row] for row in out.features.tolist()]
    expected = torch.tensor(roots) @ embedder.embedding.weight.T + embedder.embedding.bias
    expected = torch.nn.functional.normalize(expected, dim=1)
    assert torch.allclose(out.embeds, expected, atol=1e-3)  # the floor of 1e-6 moves 0 by 1e-3
    assert torch.equal(embedder.embed_features(out.features), out.embeds)


def test_roots_have_the_signs_of_the_features_and_finite_gradients():
    x = torch.tensor([-4.0, -1e-12, 0.0, 1e-12, 0.25, 9.0], requires_grad=True)
    roots = signed_root(x)
    assert torch.allclose(roots, torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 0.5, 3.0]), atol=1e-5)
    roots.sum().backward()
    assert x.grad.isfinite().all() and (x.grad >= 0).all()
    y = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(signed_root, y)


def test_the_start_of_a_layer_that_reads_roots_is_fitted_to_roots():
    x, labels = torch.rand(60, 96), torch.arange(10).repeat(6)
    rooted = create("test_resnet_root", 0).eval()
    rooted.start_from(x, labels)
    plain = create("test_resnet", 0).eval()
    plain.start_from(signed_root(x), labels)
    found, expected = rooted.embed_features(x), plain.embed_features(signed_root(x))
    assert torch.allclose(found @ found.T, expected @ expected.T, atol=1e-3)
    assert not torch.allclose(expected @ expected.T, x @ x.T, atol=1)


def test_classes_of_one_image_are_only_centred():
    x = torch.randn(6, 96)
    embedder = architectures.create("test_resnet", 0, pretrained=False, image_size=32)
    embedder.start_from(x, torch.arange(6))
    with torch.no_grad():
        found = embedder.embedding(x)
    centred = x - x.mean(0)
    assert torch.allclose(found @ found.T, centred @ centred.T, atol=1e-3)


def test_build_reads_the_flags_and_errors_name_them():
    args = SimpleNamespace(
        arch="resnet18_frozen_normalize_double",
        embed_dim=7,
        not_pretrained=True,
        no_zero_init_last=False,
        embed_init="pca",
        weights=None,
        image_size=64,
        augmentation="base",
        bs=2,
        forward_bs=0,
        grad_checkpointing=False,
        language_pseudoclass_model="resnet0",
    )
    embedder = architectures.build(args)
    assert (embedder.embed_dim, embedder.normalize, embedder.add_maximum) == (7, True, True)
    assert embedder.frozen_norms
    assert embedder.mean == (0.485, 0.456, 0.406)
    args.embed_dim = 513
    with pytest.raises(ValueError, match="--embed_dim must be at most the 512 features of --arch"):
        architectures.build(args)
    args.arch = "resnet500_normalize"
    with pytest.raises(ValueError, match=r"--arch resnet500_normalize: .*closest: resnet50,"):
        architectures.build(args)
    with pytest.raises(ValueError, match="--language_pseudoclass_model resnet0: timm has no"):
        architectures.build_classifier(args)
