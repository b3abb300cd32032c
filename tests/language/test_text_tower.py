import pytest
import torch
import transformers

from language.text_tower import TextTower

VOCABULARY, WIDTH, LAYERS, HEADS, OUT, LENGTH, END = 11, 8, 3, 2, 6, 9, 10


def tower(seed=0):
    """With weights of order 1, so that attention is far from uniform and gates from 1/2."""
    torch.manual_seed(seed)
    made = TextTower(
        VOCABULARY, length=LENGTH, width=WIDTH, layers=LAYERS, heads=HEADS, out_dim=OUT
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.7)
    return made


def texts(*lengths, seed=0, width=None):
    """Ids that end in END, padded with 0, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), width or max(lengths), dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, : n - 1] = torch.randint(1, END, (n - 1,), generator=generator)
        ids[row, n - 1] = END
    return ids, torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("mode", [True, False])
def test_equals_the_text_model_of_transformers_with_the_same_weights(mode):
    ours = tower().train(mode)
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        projection_dim=OUT,
        hidden_act="quick_gelu",
        eos_token_id=END,
    )
    theirs = transformers.CLIPTextModelWithProjection(config).double().eval()
    state = ours.state_dict()
    renamed = {
        "embeddings.token_embedding.weight": state["tokens.weight"],
        "embeddings.position_embedding.weight": state["positions"],
    }
    for part in ("weight", "bias"):
        renamed[f"final_layer_norm.{part}"] = state[f"norm.{part}"]
        for i in range(LAYERS):
            mine, other = f"blocks.layers.{i}", f"encoder.layers.{i}"
            fused = state[f"{mine}.self_attn.in_proj_{part}"].chunk(3)
            for name, rows in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
                renamed[f"{other}.self_attn.{name}.{part}"] = rows
            for name, of in (
                ("self_attn.out_proj", "self_attn.out_proj"),
                ("layer_norm1", "norm1"),
                ("layer_norm2", "norm2"),
                ("mlp.fc1", "linear1"),
                ("mlp.fc2", "linear2"),
            ):
                renamed[f"{other}.{name}.{part}"] = state[f"{mine}.{of}.{part}"]
    loaded = theirs.text_model.load_state_dict(renamed, strict=False)
    assert not loaded.unexpected_keys
    assert all("position_ids" in key for key in loaded.missing_keys)
    theirs.text_projection.load_state_dict({"weight": state["projection.weight"]})
    ids, mask = texts(9, 2, 5, 1)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).text_embeds
    with torch.set_grad_enabled(mode):  # inference has a faster path
        torch.testing.assert_close(ours(ids, mask), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mode", [True, False])
def test_padding_changes_nothing(mode):
    made = tower().train(mode)
    ids, mask = texts(5, 2, 3)
    expected = made(ids, mask)
    wider, wider_mask = texts(5, 2, 3, width=LENGTH)
    torch.testing.assert_close(made(wider, wider_mask), expected)
    other = torch.where(mask, ids, 7)
    assert not torch.equal(other, ids)
    torch.testing.assert_close(made(other, mask), expected)
    alone = torch.cat(
        [made(ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate((5, 2, 3))]
    )
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_every_weight_gets_a_finite_gradient(dtype):
    torch.manual_seed(0)
    made = TextTower(VOCABULARY, length=6, width=WIDTH, layers=2, heads=2, out_dim=OUT)
    ids, mask = texts(6, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        out = made(ids, mask)
    out.float().square().sum().backward()
    assert out.shape == (2, OUT)
    for name, parameter in made.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_first_weights_have_the_published_deviations():
    torch.manual_seed(0)
    made = TextTower(500, length=77, width=128, layers=4, heads=4, out_dim=96)
    out_of = (128 * 8) ** -0.5
    expected = {"tokens.weight": 0.02, "positions": 0.01, "projection.weight": 128**-0.5}
    for i in range(4):
        block = f"blocks.layers.{i}."
        expected[block + "self_attn.in_proj_weight"] = 128**-0.5
        expected[block + "self_attn.out_proj.weight"] = out_of
        expected[block + "linear1.weight"] = 256**-0.5
        expected[block + "linear2.weight"] = out_of
    for name, parameter in made.named_parameters():
        if name in expected:
            assert parameter.std().item() == pytest.approx(expected[name], rel=0.05), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert "norm" in name, name
            assert (parameter == 1).all(), name


def test_blocks_start_different():
    first, second = TextTower(9, width=8, layers=2, heads=2).blocks.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match=r"heads must divide width 64, such as 4; got 5"):
        TextTower(9, width=64, heads=5)


def test_a_text_that_is_too_long():
    with pytest.raises(ValueError, match="a text must have at most 9 tokens; got 10"):
        tower()(*texts(10))
