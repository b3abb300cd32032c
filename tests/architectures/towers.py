"""CLIP and SigLIP with random weights, as transformers saves them and as timm has their images."""

import timm.models._registry as registry
import torch
import transformers

from tests.language.letters import word_tokenizer

ARCHS = {
    "clip": "vit_base_patch32_clip_quickgelu_224.openai",
    "siglip": "vit_base_patch16_siglip_224.webli",
}
MARKS = ["<pad>", "<s>", "<unk>", "</s>"]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def shrink(monkeypatch, arch):
    """Let timm build ``arch`` with layers of 16 numbers; its images stay of 224 px."""
    name = arch.partition(".")[0]
    build = registry._model_entrypoints[name]
    small = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}

    def entrypoint(pretrained=False, **options):
        return build(pretrained, **small | options)

    monkeypatch.setitem(registry._model_entrypoints, name, entrypoint)


def make(kind, words, seed=0):
    """Return a whole model and its tokenizer of whole words."""
    torch.manual_seed(seed)
    vocabulary = [*MARKS, *words]
    text = SIZES | {"vocab_size": len(vocabulary), "hidden_size": 12, "pad_token_id": 0}
    text |= {"bos_token_id": 1, "eos_token_id": 3, "max_position_embeddings": 16}
    vision = SIZES | {"hidden_size": 16, "image_size": 224}
    if kind == "clip":
        vision |= {"patch_size": 32}
        options = {"text_config": text, "vision_config": vision, "projection_dim": 512}
        model = transformers.CLIPModel(transformers.CLIPConfig(**options))
    else:
        text |= {"projection_size": 16}
        vision |= {"patch_size": 16, "hidden_act": "gelu"}  # as timm has it; real ones: tanh
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at 0, and would hide a wrong one
            parameter.add_(0.1 * torch.randn_like(parameter))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return model.eval(), word_tokenizer(vocabulary, **marks)


def save(kind, words, folder, seed=0):
    """Save a model and tokenizer into ``folder``, and its images' weights beside; return it."""
    model, tokenizer = make(kind, words, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(as_timm(kind, model), folder.with_suffix(".pth"))
    return model


def as_timm(kind, model):
    """The weights of the image tower under timm's names."""
    theirs = {
        key.removeprefix("vision_model."): value
        for key, value in model.state_dict().items()
        if key.startswith("vision_model.")
    }
    ours = {
        "patch_embed.proj.weight": theirs["embeddings.patch_embedding.weight"],
        "pos_embed": theirs["embeddings.position_embedding.weight"][None],
    }
    renamed = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
    renamed |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for part in ("weight", "bias"):
        ours[f"norm.{part}"] = theirs[f"post_layernorm.{part}"]
        for layer in range(SIZES["num_hidden_layers"]):
            block, name = f"blocks.{layer}", f"encoder.layers.{layer}"
            for old, new in renamed.items():
                ours[f"{block}.{new}.{part}"] = theirs[f"{name}.{old}.{part}"]
            qkv = [theirs[f"{name}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
            ours[f"{block}.attn.qkv.{part}"] = torch.cat(qkv)
        if kind == "clip":
            ours[f"norm_pre.{part}"] = theirs[f"pre_layrnorm.{part}"]
            continue
        for old, new in {
            "attention.out_proj": "proj", "layernorm": "norm", "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():  # fmt: skip
            ours[f"attn_pool.{new}.{part}"] = theirs[f"head.{old}.{part}"]
        q, kv = theirs[f"head.attention.in_proj_{part}"].tensor_split([16])
        ours |= {f"attn_pool.q.{part}": q, f"attn_pool.kv.{part}": kv}
    if kind == "clip":
        ours["cls_token"] = theirs["embeddings.class_embedding"][None, None]
        ours["head.weight"] = model.visual_projection.weight.detach()
        ours["head.bias"] = torch.zeros(512)
    else:
        ours["patch_embed.proj.bias"] = theirs["embeddings.patch_embedding.bias"]
        ours["attn_pool.latent"] = theirs["head.probe"]
    return ours
