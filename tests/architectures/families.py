"""Trains, saves, loads and exports the model of a timm family; ``python -m`` it with its name."""

import json
import sys
from pathlib import Path

import timm
import torch

import architectures
from architectures import export
from architectures.load import load_embedder
from criteria import MultiSimilarity
from utilities import checkpoint

SIZES = (64, 128, 256)  # tried before that of the weights
MOST_PARAMETERS = 40e6

# The smallest of each module of timm 1.0.31; of a module that is not here, it is searched.
SMALLEST = """
beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms
cpubone_nano crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m
deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 gmlp_ti16_224
halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18
legacy_xception levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 mobilenetv2_035
mobilenetv5_base mobileone_s1 mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap
nasnetalarge nest_tiny nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large poolformerv2_s12
pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d
resnet10t resnetv2_18 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s
shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
swinv2_tiny_window8_256 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11
visformer_tiny vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_patch16_dinov3_qkvb
vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905


def families() -> dict[str, str]:
    """Return a small model of each module of timm."""
    found = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        known = [name for name in names if name in SMALLEST]
        found[module] = known[0] if known else min(names, key=n_parameters)
    return found


def n_parameters(name: str) -> int:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return sum(parameter.numel() for parameter in model.parameters())


def main(name: str, folder: Path) -> str:
    """Return what came of it: trained, or the sentence that refuses it."""
    if n_parameters(name) > MOST_PARAMETERS:
        return "skipped: too large"
    torch.manual_seed(0)
    for size in (*SIZES, None):
        try:
            embedder = architectures.create(name, 8, pretrained=False, image_size=size)
            break
        except ValueError as error:
            sentence = str(error)
    else:
        assert "\n" not in sentence and name.partition(".")[0] in sentence, sentence
        return f"refused: {sentence}"
    size = size or embedder.image_size
    optimizer = torch.optim.SGD(embedder.parameters(), lr=1e-3)
    criterion = MultiSimilarity()
    embedder.train()
    for step in range(2):
        images = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
        loss = criterion(embedder(images).embeds, torch.tensor([0, 0, 1, 1]))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            dead = [n for n, p in embedder.named_parameters() if p.grad is None]
        optimizer.step()
        assert loss.isfinite()
    flags = {
        "arch": name, "embed_dim": 8, "image_size": size, "augmentation": "base",
        "dataset": "emoji", "use_float16": False,
    }  # fmt: skip
    embedder.eval()
    checkpoint.save(
        folder / "last.pt", {"embedder": embedder.state_dict(), "flags": flags, "epoch": 1}
    )
    trained = load_embedder(folder)
    with torch.no_grad():
        wanted, out = embedder(images), trained.embedder(images)
    assert torch.equal(wanted.embeds, out.embeds)
    assert out.features.shape == (4, embedder.feature_dim)
    assert out.feature_map.shape[:2] == (4, embedder.map_dim)
    written, _ = export.export(trained, ["safetensors"], folder / "out")
    _, difference, cosine = written[0]
    return f"trained at {size} px: {difference:.0e}, cosine {cosine:.6f}, no gradient: {dead}"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
