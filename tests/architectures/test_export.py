"""Exported files give the checkpoint's embeddings, in the programs that they are meant for."""

import importlib.util
import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from architectures import export
from architectures.load import load_embedder
from tests.architectures.saved import save_run
from tests.rounding import rounding

CLOSE = rounding(96)  # the embedding layer adds up to 96 features

onnxruntime = pytest.importorskip("onnxruntime")  # of requirements.sh --dev


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture(scope="module", params=["test_resnet_normalize", "test_vit_double"])
def exported(request, tmp_path_factory):
    """A run of a convolutional or a token backbone, and the folder of all formats."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, arch=request.param)
    out = folder / "exports" / "all"
    export.main(["--checkpoint", str(folder), "--format", "all", "--out", str(out)])
    return load_embedder(folder), out


def images(n, side=32):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def embeds(trained, batch):
    return trained.embedder(batch).embeds


def test_all_formats_leave_six_files(exported):
    _, out = exported
    assert {path.name for path in out.iterdir()} == {
        "embedder.onnx", "embedder.pt2", "backbone.safetensors", "embedding.safetensors",
        "load_backbone.py", "preprocessing.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_any_batch_size_is_embedded(exported, name):
    trained, out = exported
    if name == "onnx":
        session = onnxruntime.InferenceSession(out / "embedder.onnx")

        def embed(batch):
            return torch.from_numpy(session.run(["embeds"], {"images": batch.numpy()})[0])
    else:
        embed = torch.export.load(out / "embedder.pt2").module()
    for n in (1, 2, 7):
        torch.testing.assert_close(embed(images(n)), embeds(trained, images(n)), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("arch", ["test_resnet_normalize", "test_vit", "test_vit_double_normalize"])
def test_the_written_lines_load_the_backbone_and_the_layer_follows(tmp_path, monkeypatch, arch):
    save_run(tmp_path, arch=arch)
    trained = load_embedder(tmp_path)
    export.export(trained, ["safetensors"], tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    lines, names = (tmp_path / "out" / "load_backbone.py").read_text(), {}
    exec(lines, names)
    layer = safetensors.torch.load_file("embedding.safetensors")
    with torch.no_grad():
        features = names["backbone"](images(3))
        if "double" in arch:
            patches = names["backbone"].forward_features(images(3))[:, 1:]  # no class token
            features = patches.mean(dim=1) + patches.amax(dim=1)
        found = features @ layer["weight"].T + layer["bias"]
    if "normalize" in arch:
        found = F.normalize(found, dim=1)
    torch.testing.assert_close(found, embeds(trained, images(3)), atol=CLOSE, rtol=0)
    assert ("mean + maximum" in lines) == ("double" in arch)
    assert ("scaled to length 1" in lines) == ("normalize" in arch)


def test_preprocessing_json_is_what_evaluation_does(tmp_path):
    save_run(tmp_path, image_size=28, augmentation="big")
    trained = load_embedder(tmp_path)
    about = json.loads(json.dumps(export.about(trained)))
    assert (about["image_size"], about["crop_ratio"]) == (32, 1.0)  # 28 * 8/7; emoji's recipe
    assert (about["embed_dim"], about["normalised"], about["epoch"]) == (8, True, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3)).astype(np.uint8)
    shorter = about["resize_shorter_side"]
    small = Image.fromarray(pixels).resize((shorter, shorter * 48 // 40), Image.Resampling.BILINEAR)
    side = about["image_size"]
    left, top = (round((length - side) / 2) for length in small.size)
    values = np.asarray(small.crop((left, top, left + side, top + side))) / 255
    expected = (values - about["mean"]) / about["std"]
    prepare = export.preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    found = prepare.transform()(Image.fromarray(pixels))
    np.testing.assert_allclose(
        found.permute(1, 2, 0), expected, atol=1.01 / 255 / min(about["std"])
    )


def test_the_embedder_stays_as_it_is(run, tmp_path):
    trained = load_embedder(run)
    layouts = [value.stride() for value in trained.embedder.parameters()]
    export.export(trained, ["safetensors"], tmp_path / "out")
    assert [value.stride() for value in trained.embedder.parameters()] == layouts
    assert all(value.requires_grad for value in trained.embedder.parameters())


def test_a_file_that_disagrees_is_not_written(run, tmp_path, monkeypatch):
    """Of two formats the second fails: neither it nor the first takes its place."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "backbone.safetensors").write_text("older")
    writer = export._torch_export

    def shifted(*arguments):
        path, embed = writer(*arguments)
        return path, lambda batch: embed(batch) + 0.01

    monkeypatch.setattr(export, "_torch_export", shifted)
    with pytest.raises(ValueError, match=r"--format torch_export: .* by 1.0e-02 .* 1.0e-04"):
        export.export(load_embedder(run), ["safetensors", "torch_export"], out)
    assert [path.name for path in out.iterdir()] == ["backbone.safetensors"]
    assert (out / "backbone.safetensors").read_text() == "older"


def test_an_embedding_that_is_nan_agrees_with_nothing(run):
    trained = load_embedder(run)
    nan = float("nan")
    with pytest.raises(ValueError, match="differs by nan"):
        export._difference(
            lambda batch: trained.embedder(batch).embeds * nan, trained.embedder, images(4), "onnx"
        )


def test_onnx_without_its_packages_or_too_large_is_refused(run, tmp_path, monkeypatch):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            export.export(load_embedder(run), ["onnx"], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    with monkeypatch.context() as patch:
        patch.setattr(export, "ONNX_LIMIT", 1000)
        refused(r"weights take .* GB, but an ONNX file holds 2; use")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    refused(r"needs onnxscript; pip install onnx==.* onnxscript==")


def test_command_line(run, tmp_path, capsys):
    arguments = ["--format", "safetensors", "--out", str(tmp_path / "out")]
    export.main(["--checkpoint", str(run / "last.pt"), *arguments])
    assert "differs from the checkpoint by at most 0.0e+00" in capsys.readouterr().out
    (tmp_path / "file").touch()
    for wrong, says in (
        (["--checkpoint", str(tmp_path / "nowhere"), *arguments], "nowhere does not exist"),
        (
            ["--checkpoint", str(run), "--out", str(tmp_path / "file")],
            "must be a folder; got the file",
        ),
        (["--checkpoint", str(run), "--out", "x", "--format", "torchscript"], "torch_export"),
    ):
        with pytest.raises(SystemExit):
            export.main(wrong)
        assert says in capsys.readouterr().err
