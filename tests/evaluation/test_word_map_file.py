"""A map on disk: what is written is read, damage is noticed, and a misfit is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from evaluation import word_map_file
from evaluation.word_map import WordMap
from evaluation.word_map_file import StoredMap, map_file, probes_of, read, write


def stored(output="embeds"):
    rng = torch.Generator().manual_seed(0)
    weight, mean = torch.randn(5, 3, generator=rng), torch.randn(5, generator=rng)
    probes = F.normalize(torch.randn(2, 5, generator=rng), dim=1)
    fitted = WordMap(weight, mean, (0.1, 3.0))
    named = dict(zip(("red fox", "épée"), probes, strict=True))
    return StoredMap(fitted, "minilm", output, 40, "abc", named)


def same(one, other):
    parts = zip(vars(one.map).values(), vars(other.map).values(), strict=True)
    return (
        all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in parts)
        and one[1:-1] == other[1:-1]
        and one.probes.keys() == other.probes.keys()
        and all(torch.equal(one.probes[name], other.probes[name]) for name in one.probes)
    )


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "a", stored())
    assert same(read(tmp_path / "a"), stored())
    with safe_open(tmp_path / "a", "pt") as content:  # by anyone
        about = json.loads(content.metadata()["words"])
    assert about["language_model"] == "minilm" and about["prompt"] == "{}"
    assert about["penalties"] == [0.1, 3.0] and about["n_classes"] == 40


def test_the_same_map_gives_the_same_bytes(tmp_path):
    for name in "abcdef":  # safetensors itself shuffles
        write(tmp_path / name, stored())
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_any_damage_is_noticed_or_harmless(tmp_path):
    write(tmp_path / "whole", stored())
    content = (tmp_path / "whole").read_bytes()
    refused = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "flipped").write_bytes(flipped)
        try:
            found = read(tmp_path / "flipped")
        except ValueError as error:
            refused += "delete it and fit it again: python -m evaluation.words" in str(error)
        else:
            assert same(found, stored()), place
    assert refused > 0.95 * len(content)
    for length in (0, 7, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut cannot be read"):
            read(tmp_path / "cut")


def test_a_newer_map_and_an_absent_one_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(word_map_file, "FORMAT", 2)
    write(tmp_path / "newer", stored())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 2 is newer than this version's 1"):
        read(tmp_path / "newer")
    with pytest.raises(FileNotFoundError, match="no map from words"):
        read(tmp_path / "absent")


def test_a_map_for_other_weights_or_features_is_refused(tmp_path):
    file = tmp_path / "last.words.safetensors"
    stored().check_embedder("abc", file, "those of last.pt", "fit it again")
    with pytest.raises(ValueError, match=r"other weights than those of last.pt; fit it again"):
        stored().check_embedder("abd", file, "those of last.pt", "fit it again")
    with pytest.raises(ValueError, match=r"leads to features, not to the embeddings"):
        stored("features").check_embedder("abc", file, "those of last.pt", "fit it again")


def test_another_encoder_of_the_same_name_is_noticed(tmp_path):
    kept = stored()
    embeds = torch.stack([*kept.probes.values()])
    kept.check_encoder(embeds + 1e-6, "minilm", tmp_path)  # rounded otherwise
    for other in (embeds.roll(1, 0), embeds[:, :4], embeds[:1], embeds * torch.nan):
        with pytest.raises(ValueError, match=r"minilm is not the one of .* 'red fox', 'épée' diff"):
            kept.check_encoder(other, "minilm", tmp_path)


def test_probes_are_names_that_the_encoder_knows():
    embeds = torch.eye(7)
    embeds[1] = 0
    found = probes_of("abacdef", embeds)
    assert [*found] == ["a", "c", "d"]  # four rows, of which two are of one name
    assert torch.equal(found["c"], embeds[3])


def test_each_checkpoint_has_a_map_of_its_own(tmp_path):
    best = tmp_path / "best_val_embeds_e_recall@1.pt"
    assert map_file(best).name == "best_val_embeds_e_recall@1.words.safetensors"
    assert map_file(tmp_path / "last.pt") == tmp_path / "last.words.safetensors"
