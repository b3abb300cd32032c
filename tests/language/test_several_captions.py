"""Images with several captions, in guidance and among neighbours."""

import numpy as np
import torch
import torch.nn.functional as F

from language.embedding_store import EmbeddingStore
from language.pairing import Rows, find
from language.text_encoder import embed_captions
from tests.language.letters import Letters


def test_several_captions_are_the_mean_of_their_unit_rows():
    embeds = embed_captions(Letters(), ["fox\nowl\naaaa", "cat", "fox\n", ""])
    fox, owl, a, cat = Letters().encode(["fox", "owl", "aaaa", "cat"])
    expected = torch.stack([F.normalize((fox + owl + a) / 3, dim=0), cat, fox, cat * 0])
    torch.testing.assert_close(embeds, expected)


def test_one_caption_each_gives_the_encoder_s_own_rows():
    texts = ["fox", "an owl", ""]
    assert torch.equal(embed_captions(Letters(), texts), Letters().encode(texts))
    assert embed_captions(Letters(), []).shape == (0, 26)


def test_the_store_holds_one_row_for_each_image(tmp_path):
    captions = ["fox\nowl", "cat", "fox\nowl", "dog"]
    store = EmbeddingStore(tmp_path, 4, part_rows=3)
    encoder = Letters()
    store.fill_with_texts(captions, encoder)
    expected = embed_captions(Letters(), captions).numpy().astype(np.float16)
    np.testing.assert_array_equal(store[:], expected)
    assert encoder.asked[:3] == ["fox", "owl", "cat"]  # each line, equal rows once


def test_neighbours_are_those_of_all_captions(own_cache):
    captions = ["fox\nowl", "fox", "owl", "fox\nowl\nfox", "zzz"]
    found = find(Rows("toy", 5, "content", captions), Letters())
    assert found.partners[:, 0].tolist()[0] == 3 and found.partners[3, 0] == 0
    assert found.about["distinct_captions"] == 5
