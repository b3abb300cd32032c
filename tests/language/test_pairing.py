"""Partners from captions or images to a folder, by one process or several."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from language import embedding_store, neighbours, pairing, partner_folder
from language.embedding_store import EmbeddingStore
from language.pairing import ImageEmbedder, Rank, Rows, find, identity, image_embedder, rows_of
from language.partner_folder import from_released_json, read
from language.search import Options
from tests.language.letters import Letters
from tests.language.test_search import N, by_brute_force, check, draw


@pytest.fixture(autouse=True)
def _alone(own_cache, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


CAPTIONS = ["a fox", "the red fox", "a fox", "", "a cat", "cats act", "dog", "12", "a god", "a fox"]


def toy(captions=CAPTIONS, scopes=None):
    return Rows("toy", len(captions), str(captions), captions, scopes)


def test_partners_of_captions(own_cache):
    made = find(toy(), Letters(), Options(k=2))
    rows = Letters().encode(CAPTIONS).numpy().astype(np.float16)
    _, sims = by_brute_force(rows, 2)
    np.testing.assert_allclose(made.similarities, sims, atol=2e-6)
    assert made.partners[0].tolist() == [2, 9] and made.partners[9].tolist() == [0, 2]
    assert made.partners[3].tolist() == [-1, -1] and made.partners[7].tolist() == [-1, -1]
    assert made.folder.parent == own_cache / "neighbours"
    about = made.about
    assert about["zero_rows"] == 2 and about["without_partner"] == 2 and about["rows"] == 10
    assert about["distinct_captions"] == 8 and about["k"] == 2 and about["recall@1"] == 1
    nearest_sims = sims[:, 0][np.isfinite(sims[:, 0])]
    assert about["mean_similarity"] == pytest.approx(nearest_sims.mean(), abs=1e-4)
    assert about["encoder"] == "some/letters" and "numpy" in about["versions"]


def test_kept_partners_are_read_and_embeddings_serve_other_options():
    first = find(toy(), Letters(), Options(k=2))
    encoder = Letters()
    check(find(toy(), encoder, Options(k=2)), first)
    other = find(toy(), encoder, Options(distinct=True))
    assert encoder.asked == []
    assert 2 not in other.partners[0] and 9 not in other.partners[0]
    encoder = Letters("letters 2")
    assert find(toy(), encoder).folder != other.folder
    assert encoder.asked  # another encoder, other embeddings
    encoder = Letters()
    find(toy([*CAPTIONS[:-1], "owl"]), encoder)
    assert "owl" in encoder.asked  # other captions, other embeddings


def test_partners_by_another_rank_are_never_reused(tmp_path):
    plain = find(toy(), Letters())
    scaled = find(toy(), Letters(), Options(csls=2))
    assert scaled.folder != plain.folder and scaled.about["csls"] == 2
    assert find(toy(), Letters(), Options(csls=3)).folder not in (plain.folder, scaled.folder)
    find(toy(), Letters(), folder=tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds other neighbours: csls 0 \(now 2\)"):
        find(toy(), Letters(), Options(csls=2), folder=tmp_path / "out")
    find(toy(), Letters(), Options(csls=2), folder=tmp_path / "scaled")
    with pytest.raises(ValueError, match=r"holds other neighbours: csls 2 \(now 0\)"):
        find(toy(), Letters(), folder=tmp_path / "scaled")


def test_partners_from_before_csls_are_found():
    """Their entry in the cache is named by the settings of that version."""
    made = find(toy(), Letters())
    settings = {
        "by": "language", "encoder": made.about["fingerprint"], "content": toy().content,
        "rows": 10, "k": 1, "threshold": -1.0, "scope": "none", "no_identical": False,
        "index": "auto", "recall": 0.95, "scopes": None,
    }  # fmt: skip
    assert made.about["options"] == pairing._mark(json.dumps(settings, sort_keys=True))


def test_damaged_partners_are_found_again(caplog):
    first = find(toy(), Letters())
    expected = first.partners.tolist()
    (first.folder / "partners.npy").write_bytes(b"\x93NUMPY")
    assert find(toy(), Letters()).partners.tolist() == expected
    assert "is damaged" in caplog.text


def test_interrupted_embedding_resumes(monkeypatch):
    monkeypatch.setattr(
        pairing, "EmbeddingStore", lambda *a, **k: EmbeddingStore(*a, **k, part_rows=4)
    )
    with pytest.raises(KeyboardInterrupt):
        find(toy(), Letters(fails_on="dog"))
    encoder = Letters()
    made = find(toy(), encoder)
    assert "the red fox" not in encoder.asked and "dog" in encoder.asked
    assert made.partners[0].tolist() == [2]


@pytest.mark.parametrize("into", ["cache", "folder"])
def test_two_processes_find_what_one_finds(monkeypatch, tmp_path, own_cache, into):
    """Rank 1 goes first and, where it would wait for rank 0, rank 0 runs. Both find the embeddings
    of the one; that ranks share these is for the test of the store."""
    one = find(toy(), Letters(), Options(k=2), folder=tmp_path / "one")
    folder = tmp_path / "two" if into == "folder" else None
    made = []

    def share(number):
        made.append(find(toy(), Letters(), Options(k=2), folder=folder, rank=Rank(number, 2)))

    def rank_0(left, what):
        if left():
            monkeypatch.setattr(pairing, "wait_for", lambda left, what: None)
            share(0)
            assert left() == 0

    monkeypatch.setattr(pairing, "wait_for", rank_0)
    monkeypatch.setattr(embedding_store, "wait_for", lambda left, what: None)
    share(1)
    assert len(made) == 2
    for result in made:
        check(result, one)
        assert result.about["processes"] == 2 and result.about["zero_rows"] == 2
    left = {path.name for path in own_cache.glob("neighbours/*") if path.is_dir()}
    assert left == ({made[0].folder.name} if into == "cache" else set())


def test_ranks_are_those_of_torchrun(monkeypatch):
    assert Rank.of_process() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert Rank.of_process() == (3, 8)


def test_scopes_limit_the_partners():
    scopes = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1, 1])
    made = find(toy(scopes=scopes), Letters(), Options(scope="year"))
    assert made.partners[2].tolist() == [9] and made.partners[9].tolist() == [2]
    assert all(scopes[i] == scopes[j] for i, (j,) in enumerate(made.partners) if j >= 0)


def test_partners_by_images():
    vectors = draw()
    embedder = ImageEmbedder(lambda start, stop: vectors[start:stop], "m", "f")
    rows = Rows("v", N, "d", [str(i // 2) for i in range(N)])
    made = find(rows, embedder, Options(k=2))
    unit = vectors.astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    check(made, by_brute_force(unit.astype(np.float16), 2))
    assert made.about["by"] == "visual" and made.about["encoder"] == "m"
    other = find(rows, embedder, Options(distinct=True))
    assert all(j < 0 or j // 2 != i // 2 for i, (j,) in enumerate(other.partners))


class Pictures:
    """Images whose features are their numbers; the third cannot be read."""

    name, captions = "pictures", ("a", "b", "c", "d")

    def __init__(self, *paths, reading=2):
        self.paths = paths
        self.reading = reading

    def __len__(self):
        return 4

    def read(self, row):
        return row


def test_an_image_embedder_reads_ranges_and_follows_weights_settings_and_files(tmp_path):
    def extract(some):
        rows = [row for row in range(len(some)) if some.read(row) != 2]
        features = torch.tensor([[float(some.read(row)), 1.0] for row in rows])
        return SimpleNamespace(features=features, rows=torch.tensor(rows))

    def embedder(weight=1.0, size=64, content="x", reading=2):
        (tmp_path / "a.jpg").write_text(content)
        backbone = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(backbone.weight, weight)
        torch.nn.init.zeros_(backbone.bias)
        pictures = Pictures(tmp_path / "a.jpg", reading=reading)
        return image_embedder(pictures, backbone, "n", settings=(size,), extract=extract)

    assert embedder().embed(1, 4).tolist() == [[1, 1], [0, 0], [3, 1]]
    others = (embedder(weight=2.0), embedder(size=32), embedder(content="xy"), embedder(reading=1))
    assert len({other.fingerprint for other in (embedder(), *others)}) == 5
    assert rows_of(Pictures("p")) == (
        "pictures",
        4,
        identity(Pictures("p")),
        Pictures.captions,
        None,
    )
    assert identity(Pictures("p")) != identity(Pictures("q"))


def no_rows(start, stop):
    return np.empty((0, 1))


@pytest.mark.parametrize(
    ("rows", "embedder", "options", "message"),
    [
        (toy([]), Letters(), {}, "toy has no images"),
        (toy()._replace(captions=()), Letters(), {}, "toy has no captions, which neighbours"),
        (toy(), Letters(), {"scope": "year"}, "scope year needs the scope of each of the 10 rows"),
        (Rows("v", 3, "d"), ImageEmbedder(no_rows, "m", "f"), {"distinct": True},
         "distinct. needs captions"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(rows, embedder, options, message):
    with pytest.raises(ValueError, match=message):
        find(rows, embedder, Options(**options))


def test_labelled_images_have_no_scopes():
    with pytest.raises(ValueError, match=r"scope. must be none for pictures, .* got year"):
        rows_of(Pictures(), "year")


# ------------------------------------------------------------------------------------- the folder
def test_a_folder_of_others_is_refused(tmp_path):
    folder = tmp_path / "out"
    made = find(toy(), Letters(), folder=folder)
    with pytest.raises(ValueError, match=r"holds other neighbours: k 1 \(now 2\)"):
        find(toy(), Letters(), Options(k=2), folder=folder)
    with pytest.raises(ValueError, match="10 rows of toy, but there are 9 now"):
        find(toy(CAPTIONS[:9]), Letters(), folder=folder)
    with pytest.raises(ValueError, match="other neighbours: content"):
        find(toy(CAPTIONS[::-1]), Letters(), folder=folder)
    with pytest.raises(ValueError, match="of other images or captions"):
        read(folder, digest="abc")
    assert read(folder, n=10, digest=made.about["content"]).partners.shape == (10, 1)


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no neighbours; make them"):
        read(tmp_path / "nothing")
    folder = tmp_path / "out"
    find(toy(), Letters(), folder=folder)
    np.save(folder / "partners.npy", np.zeros((4, 1), np.int64))
    with pytest.raises(ValueError, match=r"cannot read .* \(partners.npy has .* bytes"):
        read(folder)
    (folder / "entry.json").unlink()  # as in older folders
    with pytest.raises(ValueError, match=r"cannot read .* \(\(4, 1\) partners"):
        read(folder)
    (folder / "partners.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="cannot read the neighbours"):
        read(folder)
    (folder / "about.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99 is newer"):
        read(folder)
    (folder / "about.json").unlink()  # half of a folder is none
    assert find(toy(), Letters(), folder=folder).partners[0].tolist() == [2]


@pytest.mark.parametrize("name", ["partners.npy", "similarities.npy", "about.json", "entry.json"])
def test_a_flipped_byte_is_never_read(tmp_path, caplog, name):
    """Wherever it is: refused in a folder of one's own, found again in the cache."""
    folder = tmp_path / "out"
    made = find(toy(), Letters(), folder=folder)
    kept = find(toy(), Letters())
    for place in (folder, kept.folder):
        content = (place / name).read_bytes()
        for at in (-1, len(content) // 2):
            flipped = bytearray(content)
            flipped[at] ^= 0b100
            (place / name).write_bytes(flipped)
            if place == folder:
                with pytest.raises(ValueError, match=r"cannot read the neighbours in .*out"):
                    read(folder)
                (place / name).write_bytes(content)
            else:
                check(find(toy(), Letters()), made)
                assert "is damaged" in caplog.text
                caplog.clear()


def test_a_folder_without_checksums_is_read_with_a_warning(tmp_path, caplog):
    made = find(toy(), Letters(), folder=tmp_path / "out")
    assert not caplog.text
    (tmp_path / "out" / "entry.json").unlink()
    check(read(tmp_path / "out"), made)
    assert "has no checksums (entry.json)" in caplog.text


# ----------------------------------------------------------------------------- the released files
KEYS = [
    "cats_2017_000001/aa.jpg",
    "cats_2017_000001/bb.jpeg",
    "dogs_2018.tar/cc.png",
    "x/dogs_2018/dd",
]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])  # entries that end at no end of a piece
def test_released_neighbours(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(partner_folder, "CHUNK", chunk)
    file = tmp_path / "redcaps.json"
    file.write_text(json.dumps([
        [["cats_2017_000001", "aa"], ["dogs_2018", "cc"], 0.5],
        [["cats_2017_000001", "aa"], ["dogs_2018", "dd"], 0.75],
        [["dogs_2018", "cc"], ["cats_2017_000001", "bb"], 0.25, 0.9],
        [["gone", "zz"], ["cats_2017_000001", "bb"], 0.25],
        [["dogs_2018", "dd"], ["gone", "zz"], 0.25],
        [["dogs_2018", "dd"], ["dogs_2018", "dd"], 1.0],
    ]))  # fmt: skip
    found = from_released_json(file, KEYS)
    assert found.partners.tolist() == [[3, 2], [-1, -1], [1, -1], [-1, -1]]
    none = -np.inf
    assert found.similarities.tolist() == [[0.75, 0.5], [none, none], [0.25, none], [none, none]]
    assert found.about == {"pairs": 6, "pairs_of_unknown_images": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "must be a JSON list"),
        ('[["a", "b"]]', r"entry 0 must be .*; got \['a', 'b'\]"),
        ('[[["a", "b"], ["c", "d"], 0.5], ', "cut short"),
        ("[]", "none of its 0 pairs"),
        ("[" * 100_000, "is not JSON: "),
        ('\ufeff[[["a", "b"]]]', "entry 0 must be"),
        (
            '[[["a", "b"], ["c", "d"], 0.5]]',
            "its last is of a/b, and the set begins with cats_2017",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_released_json(file, KEYS)
    with pytest.raises(FileNotFoundError, match=r"--from_json .*nothing\.json does not exist"):
        from_released_json(tmp_path / "nothing.json", KEYS)


# -------------------------------------------------------------------------------------- the command
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--index", "hnsw"), "--index must be one of auto, flat, ivf; got hnsw"),
        (("--k", "0"), "--k must be >= 1; got 0"),
        (("--bs", "0"), "--bs must be >= 1; got 0"),
        (("--by", "visual"), "--by visual needs --checkpoint RUN"),
    ],
)
def test_the_command_names_the_flag(capsys, flags, message):
    with pytest.raises(SystemExit):
        neighbours.main(["--dataset", "nothing", *flags])
    assert message in capsys.readouterr().err
