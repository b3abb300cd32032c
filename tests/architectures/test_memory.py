"""What saves or spends memory in training: recomputed activations, chunks, averaged weights."""

import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import architectures
from utilities.gradient_cache import in_chunks


def create(name):
    """A backbone in float64 under a layer in float32, as outputs are float32."""
    torch.manual_seed(0)
    embedder = architectures.create(name, 6, pretrained=False, image_size=32).train()
    embedder.backbone.double()
    return embedder


def images(n=7):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 32, 32, generator=generator, dtype=torch.float64)


def gradients(embedder, embed):
    """Of a loss that compares all images, and reads all outputs."""
    embedder.zero_grad()
    outputs = embed(images())
    sum((out.flatten(1) @ out.flatten(1).T).cos().mean() for out in outputs).backward()
    return {name: p.grad.clone() for name, p in embedder.named_parameters() if p.grad is not None}


def assert_close(got, wanted):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        most = value.abs().max().item()
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-5 * most + 1e-9, msg=name)


def statistics(embedder):
    """Without the counters of batches, which nothing reads."""
    return {name: value for name, value in embedder.named_buffers() if "running" in name}


def of_flags(**changed):
    flags = {
        "arch": "test_resnet_frozen_normalize", "embed_dim": 6, "not_pretrained": True,
        "weights": None, "image_size": 32, "augmentation": "base", "no_zero_init_last": False,
        "bs": 8, "forward_bs": 0, "grad_checkpointing": False, "embed_init": "random",
    }  # fmt: skip
    return architectures.build(SimpleNamespace(**flags | changed))


# --------------------------------------------------------------------------------------------------
# --grad_checkpointing
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet_frozen", "test_vit_normalize"])
def test_recomputed_activations_change_neither_gradients_nor_statistics(name):
    """Of two views, whose passes come before the backward pass."""
    plain, recomputing = create(name), create(name)
    recomputing.checkpoint_gradients()
    calls = Counter()
    for module in recomputing.backbone.modules():
        module.register_forward_pre_hook(lambda called, _: calls.update([called]))

    def views(embedder):
        return lambda x: (*embedder(x), *embedder(x.flip(3)))

    assert_close(gradients(recomputing, views(recomputing)), gradients(plain, views(plain)))
    assert max(calls.values()) == 4  # each view twice
    assert_close(statistics(recomputing), statistics(plain))


def test_a_backbone_that_cannot_recompute_is_refused():
    refusal = "--arch vgg11: timm has no gradient checkpointing of vgg11; drop --grad_checkpointing"
    with pytest.raises(ValueError, match=refusal):
        of_flags(arch="vgg11", grad_checkpointing=True)
    assert of_flags(grad_checkpointing=True).momenta == []


# --------------------------------------------------------------------------------------------------
# --forward_bs
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["test_resnet_frozen", "test_vit_normalize"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_in_chunks_are_those_of_the_batch(name, recompute):
    embedder = create(name)
    wanted = gradients(embedder, embedder)
    if recompute:
        embedder.checkpoint_gradients()
    assert_close(gradients(embedder, lambda x: in_chunks(embedder, 3, x)), wanted)


def test_a_backbone_that_normalises_over_the_batch_is_refused():
    refusal = r"--forward_bs 4 .* \d+ layers .* --arch test_resnet_frozen"
    with pytest.raises(ValueError, match=refusal):
        of_flags(arch="test_resnet", forward_bs=4)
    assert of_flags(arch="test_resnet", forward_bs=8).batch_norms  # the whole batch at once
    assert of_flags(arch="test_resnet_frozen", forward_bs=4).batch_norms == []
    assert of_flags(arch="test_vit", forward_bs=4).batch_norms == []
    trained = create("test_resnet")  # as it would be without the refusal
    wanted = gradients(trained, trained)["embedding.weight"]
    got = gradients(trained, lambda x: in_chunks(trained, 4, x))["embedding.weight"]
    assert (got - wanted).abs().max() > 1e-3 * wanted.abs().max()


# --------------------------------------------------------------------------------------------------
# --ema
# --------------------------------------------------------------------------------------------------
def test_the_average_is_that_of_its_equation():
    """Weights and BatchNorm's running statistics, with a decay that grows up to its limit."""
    embedder = create("test_resnet")
    average = architectures.build_average(embedder, 0.5)
    assert architectures.build_average(embedder, 0.0) is None
    expected = copy.deepcopy(embedder.state_dict())
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 7):
        decay = min(0.5, 1 - step ** (-2 / 3))
        with torch.no_grad():
            for name, value in embedder.state_dict().items():
                if value.is_floating_point():
                    value += torch.randn(value.shape, generator=generator, dtype=value.dtype)
                    expected[name] = decay * expected[name] + (1 - decay) * value
                else:
                    expected[name] = value.add_(1).clone()
        average.update(embedder, step)
        assert_close(average.module.state_dict(), expected)
    assert decay == 0.5
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
