"""Exported files give the checkpoint's embeddings, in the programs that they are meant for."""

import importlib.util
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image, ImageOps

from architectures import export, export_flags, onnx_file
from architectures.load import load_embedder
from evaluation import exported_preprocess as preprocess
from evaluation.preprocessing import preprocessing
from evaluation.sample_pictures import sample_pictures
from tests.architectures.saved import save_run
from tests.rounding import rounding

CLOSE = rounding(96)  # the embedding layer adds up to 96 features

PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"

onnxruntime = pytest.importorskip("onnxruntime")  # of requirements.sh --dev


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture(scope="module", params=["test_resnet_normalize", "test_vit_double_root"])
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


def test_all_formats_leave_seven_files(exported):
    _, out = exported
    assert {path.name for path in out.iterdir()} == {
        "embedder.onnx", "embedder.pt2", "backbone.safetensors", "embedding.safetensors",
        "load_backbone.py", "preprocess.py", "preprocessing.json",
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


OTHERS = (
    *("test_resnet_double", "test_convnext", "mobilenetv3_small_050_normalize", "repvgg_a0"),
    "test_resnet_normalize_root",
)


@pytest.mark.parametrize(
    "arch",
    ["test_vit_double_normalize", *(pytest.param(a, marks=pytest.mark.slow) for a in OTHERS)],
)
def test_the_written_program_embeds_pictures_as_evaluation_does(tmp_path, monkeypatch, arch):
    save_run(tmp_path, arch=arch, image_size=64)
    trained = load_embedder(tmp_path)
    written, source = export.export(trained, ["safetensors"], tmp_path / "out", [PHOTOGRAPHS])
    assert source == str(PHOTOGRAPHS)
    monkeypatch.syspath_prepend(tmp_path / "out")
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    names = runpy.run_path(str(tmp_path / "out" / "load_backbone.py"))
    assert names["prepare"].__globals__["__file__"] == str(tmp_path / "out" / "preprocess.py")
    found = names["embed"](torch.from_numpy(names["prepare"](PHOTOGRAPHS / "china.jpg"))[None])
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    wanted = embeds(trained, prepare.read(PHOTOGRAPHS / "china.jpg")[None])
    torch.testing.assert_close(found, wanted, atol=1e-4 * max(1, wanted.abs().max()), rtol=0)
    assert written[0].cosine > 0.99999


@pytest.mark.parametrize(("image_size", "augmentation"), [(28, "big"), (224, "base"), (64, "base")])
@pytest.mark.parametrize(
    "name",
    ["china.jpg", "flower.jpg", "grey.png", "tall.png", "clear.png", "thin.jpg", "turned.jpg"],
)
def test_the_written_preprocessing_is_that_of_evaluation_to_the_bit(
    tmp_path, image_size, augmentation, name
):
    save_run(tmp_path, image_size=image_size, augmentation=augmentation)
    trained = load_embedder(tmp_path)
    about = json.loads(json.dumps(export.about(trained)))
    assert (about["embed_dim"], about["normalised"], about["epoch"]) == (8, True, 4)
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    path, exif = tmp_path / name, Image.Exif()
    exif[274] = 6  # stored on its side
    with Image.open(PHOTOGRAPHS / "china.jpg") as photograph:
        {
            "china.jpg": lambda: shutil.copy(PHOTOGRAPHS / name, path),
            "flower.jpg": lambda: shutil.copy(PHOTOGRAPHS / name, path),
            "grey.png": lambda: photograph.convert("L").save(path),
            "tall.png": lambda: photograph.crop((30, 0, 91, 400)).save(path),
            "clear.png": lambda: photograph.convert("P").save(path, transparency=3),
            "thin.jpg": lambda: photograph.crop((0, 100, 640, 117)).save(path),
            "turned.jpg": lambda: photograph.crop((0, 0, 513, 512)).save(path, exif=exif),
        }[name]()
    found = preprocess.prepare(path, about)
    np.testing.assert_array_equal(found, prepare.read(path).numpy())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_written_preprocessing_turns_pictures(tmp_path, orientation):
    """As they are shown: a picture that is stored upright gives the same."""
    save_run(tmp_path)
    about = export.about(load_embedder(tmp_path))
    exif = Image.Exif()
    exif[274] = orientation
    with Image.open(PHOTOGRAPHS / "flower.jpg") as photograph:
        photograph.crop((0, 0, 300, 200)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        ImageOps.exif_transpose(turned).save(tmp_path / "upright.png")
    found, wanted = (
        preprocess.prepare(tmp_path / f"{n}.png", about) for n in ("turned", "upright")
    )
    np.testing.assert_array_equal(found, wanted)


def test_a_picture_whose_range_is_not_known_is_refused_by_the_written_preprocessing(tmp_path):
    save_run(tmp_path)
    Image.fromarray(np.ones((40, 40), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"mode F; save it with 8 bits"):
        preprocess.prepare(tmp_path / "float.tiff", export.about(load_embedder(tmp_path)))


def test_pictures_are_those_given_or_of_the_dataset_or_drawn(run, tmp_path, animals):
    trained = load_embedder(run)
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)

    def source(*places):
        chosen = sample_pictures(prepare, places, 4, tmp_path)
        assert len(chosen.paths) == len(chosen.images) == 4
        return chosen.source

    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    photograph = PHOTOGRAPHS / "china.jpg"
    assert source(photograph, tmp_path) == f"{photograph}, {tmp_path}"
    assert source(tmp_path / "broken.jpg").startswith("drawn, not real")
    flags = trained.flags | {"dataset": "animals", "source_path": str(animals)}
    assert export._own(trained._replace(flags=flags)) == [animals / "animals"]
    flags["dataset"] = "fruit"
    assert export._own(trained._replace(flags=flags)) == []
    with pytest.raises(ValueError, match=r"--pictures .*absent does not exist"):
        source(tmp_path / "absent")


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
        path, found = writer(*arguments)
        return path, found + 0.01

    monkeypatch.setattr(export, "_torch_export", shifted)
    with pytest.raises(ValueError, match=r"--format torch_export: .* by 1.0e-02 .* 1.0e-04"):
        export.export(load_embedder(run), ["safetensors", "torch_export"], out)
    assert [path.name for path in out.iterdir()] == ["backbone.safetensors"]
    assert (out / "backbone.safetensors").read_text() == "older"


def test_an_embedding_that_is_nan_agrees_with_nothing():
    with pytest.raises(ValueError, match="differs by nan"):
        export._difference(torch.full((4, 8), torch.nan), torch.ones(4, 8))


@pytest.mark.slow
def test_export_to_a_full_disk_is_one_line_and_the_old_files_stay(run, small_disk, capsys):
    def fill(left=0):
        free = shutil.disk_usage(small_disk).free
        (small_disk / f"ballast {left}").write_bytes(bytes(free - left))

    def refused(name):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            export.main([*arguments, "--format", name])
        line = capsys.readouterr().err.splitlines()[-1]
        assert str(small_disk / "out") in line and "No space left on device" in line

    arguments = ["--checkpoint", str(run), "--out", str(small_disk / "out")]
    export.main(arguments)
    before = {path.name: path.read_bytes() for path in (small_disk / "out").iterdir()}
    fill(left=100_000)
    for name in export_flags.FORMATS:
        refused(name)
    fill()
    refused("safetensors")
    assert {path.name: path.read_bytes() for path in (small_disk / "out").iterdir()} == before


def test_a_machine_whose_memory_is_full_is_explained(run, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    monkeypatch.setattr(export, "_torch_export", full)
    with pytest.raises(SystemExit):
        export.main(
            ["--checkpoint", str(run), "--out", str(tmp_path / "out"), "--format", "torch_export"]
        )
    assert "the memory of this machine is full" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_or_too_large_is_refused(run, tmp_path, monkeypatch):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            export.export(load_embedder(run), ["onnx"], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    with monkeypatch.context() as patch:
        patch.setattr(onnx_file, "LIMIT", 1000)
        refused(r"--format onnx: the weights take .* GB, but .* --format safetensors or")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    refused("ONNX needs onnxscript; run bash requirements.sh again")


def test_command_line(run, tmp_path, own_cache, capsys):
    arguments = ["--format", "safetensors", "--out", str(tmp_path / "out")]
    export.main(["--checkpoint", str(run / "last.pt"), *arguments])
    assert re.search(
        r"compared .* drawn, not real.*\n.*differs by at most \S+ .*, cosine at least 1.000000",
        capsys.readouterr().out,
    )
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
