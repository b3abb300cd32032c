"""Other pictures under the same names, of the same sizes and times, never get the first's results.

They may be in another folder of that name, at the same relative path of another directory, or in
the same files, overwritten, with their times set back. And a run ends the same whether a cache is
filled or read.
"""

import os
import random
import shutil
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import language
import main
import parameters
from datasets.caption_index import build, open_index
from datasets.caption_set import open_caption_set
from datasets.folders import read_class_folders
from datasets.image_cache import cached
from datasets.readable import find_faults
from evaluation.extract import extract
from evaluation.feature_cache import cached_features
from language.encoders import build as build_encoder
from language.pairing import find, image_embedder, rows_of
from language.search import Options
from tests.evaluation.conftest import Colour, to_tensor
from tests.language.letters import Letters
from tests.runs import RUN, assert_same_run, tiny_run
from utilities.files import cache_folder

FIRST, OTHER = (10, 20, 200, 210), (210, 10, 200, 20)  # grey of four pictures: nearest pairs differ


def save_as_before(path, save):
    """Overwrite a file by ``save(path)``; its size must stay, and its time does."""
    before = path.stat()
    save(path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_pictures(root, greys, write=lambda path, save: save(path)):
    """Write class folders and captioned images, as bitmaps, which all have one size."""
    for number, grey in enumerate(greys):
        image = Image.new("RGB", (12, 12), (grey, grey // 2, 255 - grey))
        for place in (f"images/{'abcd'[number]}/0.bmp", f"pairs/{number}.bmp"):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            write(root / place, image.save)
        (root / f"pairs/{number}.txt").write_text(f"caption {number}")
    content = (root / "images/a/0.bmp").read_bytes()
    broken = content if greys == FIRST else bytes(len(content))
    write(root / "loose.bmp", lambda path: path.write_bytes(broken))
    vectors = "\n".join(f"{w} {v} 1" for w, v in zip("abcd", greys, strict=True)).ljust(99) + "\n"
    write(root / "words.txt", lambda path: path.write_text(vectors))


# ------------------------------------------------------------------------------ what caches keep


def features(root):
    images = read_class_folders(root)
    found = cached_features(
        Colour(), images, to_tensor, cache=cache_folder() / "features", workers=0
    )
    return found.features.tolist()


def pseudolabels(root):
    images = read_class_folders(root)
    args = parameters.parse(["--language_distill_w", "1", "--language_pseudoclass_topk", "1"])
    args.language_words, args.language_pseudoclass_model = "pseudolabels", "a classifier"
    args.language_model, args.language_prompt = "any", ["{}"]

    def classify():  # the class whose number is the grey
        greys = torch.tensor([np.asarray(images.read(row))[0, 0, 0] for row in range(4)])
        return torch.eye(1000)[greys.long()]

    with mock.patch("language.from_flags.build_encoder", return_value=Letters()):
        guide = language.build_guide(args, images, torch.device("cpu"), classify)
    return [guide.words.texts[i] for i in guide.index.flatten().tolist()]


def decoded(root):
    images = cached(read_class_folders(root), 8, workers=0)
    return [images.read(row).getpixel((2, 2)) for row in range(4)]


def decoded_captioned(root):
    images = cached(open_caption_set(root / "pairs"), 8, workers=0)
    return [images.read(row).getpixel((2, 2)) for row in range(4)]


def unreadable(root):
    return [path.name for path in find_faults([root / "loose.bmp"], root)]


def visual_partners(images):
    embedder = image_embedder(
        images, torch.nn.Linear(1, 1), "a model",
        settings=(), extract=lambda some: extract(Colour(), some, to_tensor, workers=0),
    )  # fmt: skip
    return find(rows_of(images), embedder, Options(k=1)).partners.tolist()


def partners(root):
    torch.manual_seed(0)
    return visual_partners(read_class_folders(root))


def captioned_partners(root):
    torch.manual_seed(0)
    return visual_partners(open_caption_set(root / "pairs"))


def word_vectors(root):
    encoder = build_encoder(str(root / "words.txt"), torch.device("cpu"), cache_folder() / "text")
    return encoder.encode(["a", "b", "c", "d"]).tolist()


CACHES = (
    *(features, pseudolabels, decoded, decoded_captioned, unreadable, partners),
    *(captioned_partners, word_vectors),
)


@pytest.mark.parametrize("place", ["another folder", "the same relative path", "overwritten"])
@pytest.mark.parametrize("of", CACHES, ids=lambda of: of.__name__)
def test_other_content_is_never_taken_for_the_first(tmp_path, own_cache, monkeypatch, of, place):
    one, two = tmp_path / "one" / "data", tmp_path / "two" / "data"
    write_pictures(one, FIRST)
    root = Path("data") if place == "the same relative path" else one
    monkeypatch.chdir(one.parent)
    first = of(root)
    assert of(root) == first
    if place == "overwritten":
        write_pictures(one, OTHER, save_as_before)
    else:
        shutil.copytree(one, two)  # with their times, and the index of the captions
        write_pictures(two, OTHER, save_as_before)
        monkeypatch.chdir(two.parent)
        root = root if place == "the same relative path" else two
    found = of(root)
    shutil.rmtree(own_cache)
    assert found == of(root) != first


def test_a_caption_that_is_overwritten_is_read_again_when_all_files_are_checked(tmp_path):
    write_pictures(tmp_path, FIRST)
    root = tmp_path / "pairs"
    build(root)
    save_as_before(root / "2.txt", lambda path: path.write_text("CAPTION 2"))
    index = build(root, recheck=True)
    captions = open_index(index)[0].read_all()["caption"].to_pylist()
    assert captions == ["caption 0", "caption 1", "CAPTION 2", "caption 3"]


def test_a_shard_of_other_pictures(tmp_path, own_cache):
    """The index lies beside the shards, and the same keys hold other pictures."""

    def shard(greys, write=lambda path, save: save(path)):
        write_pictures(tmp_path / "source", greys, write)
        (tmp_path / "shards").mkdir(exist_ok=True)

        def pack(path):
            with tarfile.open(path, "w") as tar:
                for file in sorted((tmp_path / "source" / "pairs").glob("*.[bt]*")):
                    tar.add(file, arcname=file.name)

        write(tmp_path / "shards" / "0.tar", pack)
        images = cached(open_caption_set(tmp_path / "shards"), 8, workers=0)
        return [images.read(row).getpixel((2, 2))[0] for row in range(4)]

    assert shard(FIRST) == [*FIRST]
    assert shard(OTHER, save_as_before) == [*OTHER]


# ------------------------------------------------------------------------------ cold and warm


def embedded_by_a_model(_root):
    """The sentences of a transformer, whose loading may draw weights."""
    encoder = build_encoder("minilm", torch.device("cpu"), cache_folder() / "text")
    return encoder.encode(["a fox", "an owl"]).tolist()


def partners_by_a_model(root):
    encoder = build_encoder("minilm", torch.device("cpu"), None)
    return find(rows_of(open_caption_set(root / "pairs")), encoder, Options(k=1)).partners.tolist()


def drawn():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


@pytest.mark.parametrize(
    "of",
    [
        *CACHES,
        pytest.param(embedded_by_a_model, marks=pytest.mark.packages),
        pytest.param(partners_by_a_model, marks=pytest.mark.packages),
    ],
    ids=lambda of: of.__name__,
)
def test_filling_a_cache_draws_no_number_of_the_run(tmp_path, own_cache, of):
    write_pictures(tmp_path, FIRST)
    after = []
    for _ in ("cold", "warm"):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        after.append((of(tmp_path), drawn()))
    assert after[0] == after[1]


@pytest.mark.usefixtures("no_curves", "own_cache")
@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            "--loss proxynca_pp --cache_images --language_distill_w 2 --language_words pseudolabels"
            " --language_pseudoclass_model efficientnet_lite0 --evaluations retrieval knn",
            marks=pytest.mark.packages,
        ),
        pytest.param(
            "--loss simclr --data_sampler language_pairs --data_pairs_by visual"
            " --data_pairs_checkpoint efficientnet_lite0 --cache_images",
            marks=pytest.mark.packages,
        ),
        "--loss softtriplet --evaluations retrieval linear_probe",
    ],
    ids=["pixels, pseudolabels, features", "pixels, partners", "features"],
)
def test_a_second_run_reads_the_caches_and_ends_the_same(animals, tmp_path, own_cache, more):
    for name in ("cold", "warm"):
        kept = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.*") if path.is_file()}
        main.main(tiny_run(animals, tmp_path / name, *more.split()))
    there = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.*") if path.is_file()}
    assert kept and {path: there[path] for path in kept} == kept  # nothing was computed again
    assert_same_run(*(tmp_path / name / RUN for name in ("warm", "cold")))
