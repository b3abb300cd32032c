"""Every flag of main.py: a row with its name, type, default and help.

Names and defaults are those of the published commands of Roth et al., Integrating Language Guidance
into Vision-based Deep Metric Learning, CVPR 2022, so that these still run. The flags of a component
carry its prefix: ``--loss_margin_beta`` becomes ``Margin(beta=...)``. A default of None is filled
in by the dataset's recipe (``datasets/recipes.py``). A row's type checks the range of its value;
combinations of flags are checked below the table.

Imports only the standard library and the component tables, so that ``--help`` and errors appear at
once.
"""

import argparse
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from batchminer import MINERS
from criteria import CRITERIA
from datasampler import SAMPLERS
from utilities import flag_parser, unknown_words
from utilities.flag_types import (
    Number,
    OneOf,
    cosine,
    count,
    natural,
    nonnegative,
    period,
    positive,
    real,
    share,
    switch,
    text,
)
from utilities.guidance import describe_guidance
from utilities.registry import needing

LABEL_LOSSES = needing(CRITERIA, "labels")  # compare classes
PAIR_LOSSES = needing(CRITERIA, "pairs")  # compare images with images, and so with a memory
MINED_LOSSES = needing(CRITERIA, "miner")
VIEW_LOSSES = needing(CRITERIA, "views")  # compare views of an image, or of a pair
CAPTION_LOSSES = needing(CRITERIA, "captions")
CLASS_SAMPLERS = needing(SAMPLERS, "classes")
PAIR_SAMPLERS = needing(SAMPLERS, "pairs")
EVALUATIONS = ("retrieval", "linear_probe", "fewshot", "knn")
S2SD_LOSSES = tuple(name for name in LABEL_LOSSES if name != "s2sd")


class Flag(NamedTuple):
    """A row of the table; the type ``switch`` takes no value."""

    name: str
    type: Any
    default: Any
    help: str
    nargs: str | None = None
    metavar: str | None = None
    dest: str | None = None
    also: str | None = None  # another name that it is known by


# fmt: off
FLAGS: dict[str, tuple[Flag, ...]] = {
"basic training": (
    Flag("config", text, argparse.SUPPRESS,  # not kept: the flags it reads are
         "read flags from a YAML or JSON file, or from a run's config.json (or folder) to run it "
         "again; command-line flags override it (default: none)", metavar="FILE"),
    Flag("dataset", text, "emoji",
         "emoji or openclipart (built on first use), cub200, cars196, online_products, inshop, "
         "inat, or the name of your own folder: <source_path>/NAME/images/<class>/<file>, "
         "<source_path>/NAME/manifest.csv, or images with captions"),
    Flag("recipe", OneOf(("standard", "small")), None,
         "defaults of --dataset, or those for small sets, which start from whitened features of "
         "the backbone (default: small for your own labelled images, up to 5,000)"),
    Flag("source_path", text, None, "folder of the datasets (default: the user's cache folder)"),
    Flag("save_path", text, "Training_Results", "runs go to <save_path>/<dataset>/<run name>"),
    Flag("savename", text, "group_plus_seed",
         "name of the run; group_plus_seed joins --group, --seed and --cv_fold"),
    Flag("resume", switch, False,
         "resume the run of this name and these flags, start it if there is none, and exit if it "
         "is finished, so that a script of many runs can be repeated"),
    Flag("accept_changed_data", switch, False,
         "--resume and --evaluate_only: continue although images, captions or words have changed "
         "since the run began"),
    Flag("dry_run", switch, False,
         "rehearse the whole run and keep nothing: two steps, two batches of each evaluated "
         "set; only the cache (words, pseudolabels, partners) is filled"),
    Flag("checkpoint_every", period, "15m",
         "save within an epoch after this many steps (500) or minutes (15m); 0: at its end only"),
    Flag("deterministic", switch, False, "fail on nondeterministic GPU operations"),
    Flag("seed", natural, 0, "seed of weights, batches, augmentation and splits"),
    Flag("device", text, "auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps, xpu"),
    Flag("gpu", natural, 0, "number of the GPU, if there are several"),
    Flag("kernels", natural, 6,
         "data-loading processes, at most one per core; 0 loads in the training process"),
    Flag("cache_images", switch, False,
         "decode each image once and keep it at the size of evaluation, in one memory-mapped file "
         "in the cache folder (about 0.26 MB per image at 224 px); training crops from these"),
    Flag("bs", count, None,
         "batch size, summed over all processes; unless given, no more than the images fill",
         also="batch_size"),
    Flag("forward_bs", natural, 0,
         "images per pass through the network, to save memory: the gradient is still that of --bs "
         "(gradient caching); 0: the whole batch"),
    Flag("grad_checkpointing", switch, False,
         "compute the backbone's activations twice instead of keeping them, to save memory"),
    Flag("n_epochs", natural, None, "epochs; 0 only evaluates", also="epochs"),
    Flag("patience", natural, 0,
         "stop once this many evaluations of validation images in a row have raised none of "
         "--storage_metrics above its best; 0: never"),
    Flag("max_steps", natural, None, "optimizer steps, instead of --n_epochs; 0: use --n_epochs"),
    Flag("lr", positive, None, "learning rate of the backbone", also="learning_rate"),
    Flag("lr_base_bs", natural, None,
         "reference batch size: the rate is scaled by bs / lr_base_bs; 0: no scaling"),
    Flag("fc_lr", real, None, "learning rate of the embedding layer; -1: same as --lr"),
    Flag("decay", nonnegative, None, "weight decay"),
    Flag("no_norm_decay", switch, False,
         "no weight decay on norms and biases (always so in the heads of simclr and the like)"),
    Flag("clip_grad", nonnegative, 0.0, "largest norm of the gradient; 0: unlimited"),
    Flag("ema", Number(low=0, high=0.99999), 0.0, "decay of an averaged copy of the weights, such "
         "as 0.999; the copy is evaluated as well and saved as ema.pt; 0: off"),
    Flag("optim", OneOf(("adam", "adamw", "sgd")), None, "optimizer"),
    Flag("scheduler", OneOf(("step", "cosine", "none", "warmup_cosine")), None,
         "step (times --gamma at --tau), cosine (to zero), none, all by the epoch; warmup_cosine "
         "by the step: up to --lr in --warmup_steps, then down to --final_lr"),
    Flag("warmup_steps", natural, None, "steps in which warmup_cosine rises to --lr"),
    Flag("warmup_lr", nonnegative, 1e-5, "first learning rate of warmup_cosine"),
    Flag("final_lr", nonnegative, 1e-6, "last learning rate of warmup_cosine"),
    Flag("tau", natural, [10000], "epochs at which the step scheduler acts", nargs="+"),
    Flag("gamma", positive, 0.3, "factor of the step scheduler"),
    Flag("warmup", natural, 0, "number of first epochs with a frozen backbone"),
    Flag("augmentation", OneOf(("base", "adv", "big", "global_crop", "simclr", "slip")), None,
         "base (random resized crop, flip), adv (and colour jitter, grey), big (base at 8/7 the "
         "image size, in evaluation too), global_crop (half of the image or more), simclr (crop, "
         "colour, grey, blur, flip), slip (global_crop for captions, simclr for views) (default: "
         "simclr for augmented_pairs, global_crop for other pairs and captions, slip for --loss "
         "slip, else base)"),
    Flag("precision", OneOf(("fp32", "bf16", "fp16", "half")), "fp32",
         "forward-pass precision; fp16 uses loss scaling; half: fp16 on a GPU, bf16 on a CPU"),
    Flag("compile", switch, False,
         "compile the embedder with torch.compile: minutes at the start, faster steps"),
),
"architecture": (
    Flag("arch", text, None,
         "<timm backbone>[_frozen][_double][_normalize][_root], such as resnet50_frozen_normalize: "
         "frozen BatchNorm, average + max pooling, unit embeddings, roots of features",
         also="model"),
    Flag("embed_dim", natural, None, "D, dimension of the embedding; 0: as wide as the features"),
    Flag("embed_init", OneOf(("random", "pca", "whiten")), None,
         "start of the embedding layer: random; pca, the principal axes of the features or roots "
         "that it reads; whiten, those of these whitened within training classes"),
    Flag("image_size", count, None, "side of the square input, pixels"),
    Flag("not_pretrained", switch, False, "start from random weights"),
    Flag("no_zero_init_last", switch, False,
         "start the last BatchNorm of a random residual block at 1, as published for pairs, not 0"),
    Flag("weights", text, None,
         "load the backbone from a .pth or .safetensors file (default: from a package, else timm's "
         "hub)", metavar="FILE"),
),
"batch creation": (
    Flag("data_sampler", OneOf(tuple(SAMPLERS)), None,
         "how batches are drawn; see docs/objectives.md (default: class_random, or augmented_pairs "
         "for an objective without labels)"),
    Flag("samples_per_class", count, None, "images of each class in a batch"),
    Flag("data_class_replacement", switch, False,
         "class_random: draw classes and images with replacement, as released"),
    Flag("data_pairs_by", OneOf(("language", "visual")), "language",
         "language_pairs: partners are nearest by their captions, or (an ablation) by the features "
         "of --data_pairs_checkpoint"),
    Flag("data_pairs_checkpoint", text, None,
         "run folder, .pt file or --arch whose features choose visual partners (default: --arch "
         "with ImageNet weights)", metavar="RUN"),
    Flag("data_pairs_from", text, None,
         "read partners from a folder written by python -m language.neighbours (default: from the "
         "cache, computed if missing)", metavar="DIR"),
    Flag("data_pairs_k", count, 1, "number of nearest partners to draw one from"),
    Flag("data_pairs_threshold", cosine, -1.0,
         "lowest cosine of a partner; an image without one is skipped"),
    Flag("data_pairs_mutual", switch, False,
         "keep a partner only if the image is as near to it as its own k partners"),
    Flag("data_pairs_csls", natural, 0,
         "rank partners by cosine minus half the partner's mean cosine with its N nearest captions "
         "(CSLS), such as 10, so that hub captions are chosen less often; 0: by cosine"),
    Flag("data_pairs_self", share, 0.0, "probability of pairing an image with itself"),
    Flag("data_pairs_scope", OneOf(("none", "subreddit", "year", "subreddit_year")), "none",
         "draw partners from the same subreddit, year or both, as RedCaps' directories name them"),
    Flag("data_pairs_distinct", switch, False, "skip partners with the same caption"),
    Flag("data_related_classes", count, 4, "class_related: classes per group of nearest words"),
    Flag("data_store_every", natural, 1,
         "coreset, batchmatch: epochs between embedding the training set again; 0: only before the "
         "first"),
    Flag("data_mb_mom", real, -1.0,
         "coreset, batchmatch: momentum of stored embeddings, in [0, 1); -1: replace them"),
    Flag("data_sampler_lowproj_dim", Number(int, -1), -1,
         "coreset, batchmatch: dimension of a random projection of stored embeddings; -1: none"),
    Flag("data_sim_measure", OneOf(("euclidean", "cosine")), "euclidean",
         "coreset, batchmatch: distance between embeddings"),
    Flag("data_batchmatch_bigbs", count, 512, "coreset, batchmatch: images to choose a batch from"),
    Flag("data_batchmatch_ncomps", count, 10, "batchmatch: candidates compared for each batch"),
    Flag("data_d2_coreset_lambda", nonnegative, 1.0,
         "d2_coreset: exponent of the squared distances; 0: density alone"),
    Flag("data_gc_coreset_lim", nonnegative, 1e-9,
         "greedy_coreset: squared distance up to which an image counts as covered"),
    Flag("data_gc_softened", switch, False,
         "greedy_coreset: draw from the farthest 3 %% instead of taking the farthest"),
),
"batch mining": (
    Flag("batch_mining", OneOf(tuple(MINERS)), "distance",
         "miner of the tuples for " + ", ".join(MINED_LOSSES)),
    Flag("miner_distance_lower_cutoff", nonnegative, 0.5,
         "Euclidean distance below which all negatives weigh the same"),
    Flag("miner_distance_upper_cutoff", nonnegative, 1.4,
         "Euclidean distance above which no negative is drawn"),
    Flag("miner_rho_distance_lower_cutoff", nonnegative, 0.5, "as --miner_distance_lower_cutoff"),
    Flag("miner_rho_distance_upper_cutoff", nonnegative, 1.4, "as --miner_distance_upper_cutoff"),
    Flag("miner_rho_distance_cp", share, 0.2,
         "probability that an image of the anchor's class replaces the negative"),
    Flag("miner_random_distance_lower_cutoff", nonnegative, 0.5,
         "as --miner_distance_lower_cutoff"),
    Flag("miner_random_distance_upper_cutoff", nonnegative, 1.4,
         "as --miner_distance_upper_cutoff"),
    Flag("miner_semihard_margin", nonnegative, 0.2,
         "a semihard negative is farther than the positive by less than this"),
    Flag("miner_multisimilarity_margin", real, 0.1,
         "cosine by which a pair may miss its hardest counterpart and still count"),
    Flag("miner_parametric_every", count, 30, "iterations between adaptations of the policy"),
    Flag("feedback_images", count, 1000, "parametric: most validation images to reward it with"),
    Flag("miner_parametric_bins", count, 30, "number of bins of distance to draw negatives from"),
    Flag("miner_parametric_lower", nonnegative, 0.1, "distance at which the first bin starts"),
    Flag("miner_parametric_upper", positive, 1.4, "distance at which the last bin ends"),
    Flag("miner_parametric_lr", nonnegative, 1e-3, "learning rate of the policy; 0: stay random"),
    Flag("miner_parametric_init", OneOf(("low", "uniform")), "low",
         "first distribution: low (distances 0.3 to 0.7) or uniform over the bins"),
),
"loss": (
    Flag("loss", OneOf(tuple(CRITERIA)), "margin", "objective; see docs/objectives.md"),
    Flag("xbm_size", natural, 0,
         "cross-batch memory of a pair loss: earlier embeddings to compare with; 0: none"),
    Flag("xbm_start", natural, 1000, "iterations before the memory is used"),
    Flag("xbm_weight", nonnegative, 1.0, "weight of the loss over the memory"),
    Flag("loss_margin_margin", nonnegative, 0.2, "alpha of Wu et al. 2017"),
    Flag("loss_margin_beta", real, 1.2, "initial class boundary beta"),
    Flag("loss_margin_beta_lr", nonnegative, 5e-4, "learning rate of beta"),
    Flag("loss_margin_nu", nonnegative, 0.0, "weight of the regulariser on beta"),
    Flag("loss_margin_beta_constant", switch, False, "keep beta constant"),
    Flag("loss_triplet_margin", nonnegative, 0.2, "margin on squared Euclidean distances"),
    Flag("loss_multisimilarity_pos_weight", positive, 2.0, "alpha of Wang et al. 2019"),
    Flag("loss_multisimilarity_neg_weight", positive, 40.0, "beta of Wang et al. 2019"),
    Flag("loss_multisimilarity_margin", real, 0.1, "epsilon, margin of the mining, cosine"),
    Flag("loss_multisimilarity_pos_thresh", real, 0.5, "lambda of positive pairs, cosine"),
    Flag("loss_multisimilarity_neg_thresh", real, 0.5, "lambda of negative pairs, cosine"),
    Flag("loss_multisimilarity_dim", Number(int, 0, 1), 0,
         "axis of an anchor's pairs; the matrix is symmetric, so 0 and 1 give the same loss"),
    Flag("loss_multisimilarity_released", switch, False,
         "use the released code's form, which the published guidance weights were tuned with"),
    Flag("loss_contrastive_pos_margin", nonnegative, 0.0, "positives nearer than this do not pull"),
    Flag("loss_contrastive_neg_margin", nonnegative, 1.0, "negatives beyond this do not push"),
    Flag("loss_quadruplet_margin_alpha_1", nonnegative, 0.2,
         "margin of the triplet term, squared distance"),
    Flag("loss_quadruplet_margin_alpha_2", nonnegative, 0.2,
         "margin of the term between two negatives, squared distance"),
    Flag("loss_snr_margin", nonnegative, 0.2, "margin on the noise-to-signal ratio"),
    Flag("loss_snr_reg_lambda", nonnegative, 0.005, "weight that keeps embeddings centred on zero"),
    Flag("loss_npair_l2", nonnegative, 0.005, "weight of the mean squared length of embeddings"),
    Flag("loss_angular_alpha", Number(low=0, high=70, above=True), 45.0,
         "bound on the angle at the negative, degrees"),
    Flag("loss_angular_npair_ang_weight", nonnegative, 2.0,
         "weight of the angular term beside the N-pair term"),
    Flag("loss_angular_npair_l2", nonnegative, 0.005, "as --loss_npair_l2"),
    Flag("loss_lifted_neg_margin", nonnegative, 1.0, "margin on Euclidean distances"),
    Flag("loss_lifted_l2", nonnegative, 0.005, "as --loss_npair_l2"),
    Flag("loss_supcon_temperature", positive, 0.1, "temperature of the softmax over cosines"),
    Flag("loss_circle_margin", real, 0.25, "relaxation m, cosine"),
    Flag("loss_circle_gamma", positive, 80.0, "scale, an inverse temperature"),
    Flag("loss_histogram_nbins", Number(int, 3), 65, "nodes of the histograms over cosine"),
    Flag("loss_smooth_ap_temperature", positive, 0.01,
         "temperature of the sigmoid that replaces a comparison of cosines"),
),
"losses with class vectors": (
    Flag("loss_softmax_lr", nonnegative, 1e-5, "learning rate of the class vectors"),
    Flag("loss_softmax_temperature", positive, 0.05, "temperature of the softmax over cosines"),
    Flag("loss_arcface_lr", nonnegative, 5e-4, "learning rate of the class vectors"),
    Flag("loss_arcface_angular_margin", Number(low=0, high=math.pi / 2), 0.5,
         "added to the angle of the image's own class, radians"),
    Flag("loss_arcface_feature_scale", positive, 16.0, "scale of the cosines"),
    Flag("loss_cosface_lr", nonnegative, 5e-4, "learning rate of the class vectors"),
    Flag("loss_cosface_margin", nonnegative, 0.35,
         "subtracted from the cosine of the image's own class"),
    Flag("loss_cosface_feature_scale", positive, 16.0, "scale of the cosines"),
    Flag("loss_subcenter_arcface_lr", nonnegative, 5e-4, "learning rate of the class vectors"),
    Flag("loss_subcenter_arcface_angular_margin", Number(low=0, high=math.pi / 2), 0.5,
         "added to the angle of the image's own class, radians"),
    Flag("loss_subcenter_arcface_feature_scale", positive, 16.0, "scale of the cosines"),
    Flag("loss_subcenter_arcface_n_subcenters", count, 3, "vectors per class"),
    Flag("loss_oproxy_mode", OneOf(("anchor", "nca")), "anchor",
         "anchor: over the images of each proxy (Kim et al. 2020); nca: over the proxies of each "
         "image, as released"),
    Flag("loss_oproxy_lrmulti", nonnegative, 2000.0, "proxy learning rate, as a multiple of --lr"),
    Flag("loss_oproxy_pos_alpha", positive, 32.0, "scale of the positives"),
    Flag("loss_oproxy_neg_alpha", positive, 32.0, "scale of the negatives"),
    Flag("loss_oproxy_pos_delta", real, 0.1, "margin of the positives, cosine"),
    Flag("loss_oproxy_neg_delta", real, -0.1, "margin of the negatives, cosine"),
    Flag("loss_proxynca_lrmulti", nonnegative, 50.0, "proxy learning rate, as a multiple of --lr"),
    Flag("loss_proxynca_pp_lrmulti", nonnegative, 50.0,
         "proxy learning rate, as a multiple of --lr"),
    Flag("loss_proxynca_pp_temperature", positive, 0.11,
         "temperature of the softmax over squared distances"),
    Flag("loss_softtriplet_n_centroids", count, 2, "centres per class"),
    Flag("loss_softtriplet_margin_delta", real, 0.01, "margin of the image's own class, cosine"),
    Flag("loss_softtriplet_gamma", positive, 0.1,
         "temperature of the softmax over the centres of a class"),
    Flag("loss_softtriplet_lambda", positive, 8.0, "scale of the similarities",
         dest="loss_softtriplet_lambda_"),
    Flag("loss_softtriplet_reg_weight", nonnegative, 0.2,
         "weight that pulls the centres of a class together"),
    Flag("loss_softtriplet_lrmulti", nonnegative, 1.0,
         "learning rate of the centres, as a multiple of --lr"),
),
"s2sd": (  # Roth et al., Simultaneous Similarity-based Self-Distillation, ICML 2021
    Flag("loss_s2sd_source", OneOf(S2SD_LOSSES), "multisimilarity",
         "objective of the embeddings, with its own flags"),
    Flag("loss_s2sd_target", OneOf(S2SD_LOSSES), "multisimilarity",
         "objective of each target branch, with its own flags"),
    Flag("loss_s2sd_T", positive, 1.0, "temperature of the distillation"),
    Flag("loss_s2sd_w", nonnegative, 0.0, "weight of the distillation from the target branches"),
    Flag("loss_s2sd_pool_aggr", switch, False,
         "feed average + max pooled features to the target branches"),
    Flag("loss_s2sd_target_dims", count, (1024, 1536, 2048), "dimensions of the target branches",
         nargs="+"),
    Flag("loss_s2sd_feat_distill", switch, False, "distil from the pooled features, too"),
    Flag("loss_s2sd_feat_w", nonnegative, 50.0, "weight of the distillation from the features"),
    Flag("loss_s2sd_feat_distill_delay", natural, 1000, "iterations before it starts"),
),
"objectives on views": (
    Flag("loss_simclr_temperature", positive, 0.1, "temperature of the softmax over cosines"),
    Flag("loss_simclr_hidden_dim", count, 2048, "width of the projector"),
    Flag("loss_simclr_layers", count, 3, "linear layers of the projector; 2 in Chen et al. 2020"),
    Flag("loss_simclr_proj_dim", count, 128, "dimension of the projections"),
    Flag("loss_simsiam_hidden_dim", count, 2048, "width of the projector's two hidden layers"),
    Flag("loss_simsiam_proj_dim", count, 2048, "dimension of the projections"),
    Flag("loss_simsiam_pred_dim", count, 512, "width of the predictor's hidden layer"),
    Flag("loss_nnclr_temperature", positive, 0.1, "temperature of the softmax over cosines"),
    Flag("loss_nnclr_queue_size", count, 16384,
         "earlier images to find neighbours among (98304 in Dwibedi et al. 2021)"),
    Flag("loss_nnclr_hidden_dim", count, 2048, "width of the projector's two hidden layers"),
    Flag("loss_nnclr_proj_dim", count, 256, "dimension of the projections"),
    Flag("loss_nnclr_pred_dim", count, 4096, "width of the predictor's hidden layer"),
    Flag("loss_swav_temperature", positive, 0.1, "temperature of the softmax over prototypes"),
    Flag("loss_swav_epsilon", positive, 0.05,
         "smoothness of the Sinkhorn assignment; lower is closer to one prototype per image"),
    Flag("loss_swav_sinkhorn_iterations", count, 3, "iterations of the Sinkhorn assignment"),
    Flag("loss_swav_hidden_dim", count, 2048, "width of the projector"),
    Flag("loss_swav_proj_dim", count, 128, "dimension of the projections"),
    Flag("loss_swav_n_prototypes", count, 3000, "number of prototypes"),
    Flag("loss_swav_freeze_steps", natural, 2503, "first steps in which prototypes are frozen"),
    Flag("loss_swav_queue_size", natural, 7680,
         "earlier images assigned along with a batch, over all processes; 0: none"),
    Flag("loss_swav_queue_start", natural, 37500, "steps before the queue is filled"),
    Flag("loss_byol_momentum", share, 0.996,
         "initial momentum of the target network; rises to 1 along a cosine"),
    Flag("loss_byol_hidden_dim", count, 4096, "width of projector and predictor"),
    Flag("loss_byol_proj_dim", count, 256, "dimension of the projections"),
    Flag("loss_barlowtwins_redundancy_weight", nonnegative, 0.0051,
         "lambda of Zbontar et al., ICML 2021"),
    Flag("loss_barlowtwins_hidden_dim", count, 8192, "width of the projector's two hidden layers"),
    Flag("loss_barlowtwins_proj_dim", count, 8192, "dimension of the projections"),
    Flag("loss_vicreg_invariance_weight", nonnegative, 25.0, "lambda of Bardes et al., ICLR 2022"),
    Flag("loss_vicreg_variance_weight", nonnegative, 25.0, "mu of Bardes et al."),
    Flag("loss_vicreg_covariance_weight", nonnegative, 1.0, "nu of Bardes et al."),
    Flag("loss_vicreg_hidden_dim", count, 8192, "width of the projector's two hidden layers"),
    Flag("loss_vicreg_proj_dim", count, 8192, "dimension of the projections"),
),
"objectives with captions": (  # slip, lgslip and declip_nns contain clip
    Flag("loss_clip_text", OneOf(("transformer", "frozen")), "transformer",
         "text encoder: transformer (trained along, with the tokenizer of --language_model) or "
         "frozen (--language_model itself under a trained projection)"),
    Flag("loss_clip_proj_dim", count, 512, "dimension shared by images and captions"),
    Flag("loss_clip_width", count, 512, "transformer: width of a token"),
    Flag("loss_clip_layers", count, 12, "transformer: number of blocks"),
    Flag("loss_clip_heads", count, 8, "transformer: attention heads; must divide the width"),
    Flag("loss_clip_tokens", count, 77, "transformer: longest caption in tokens; the rest is cut"),
    Flag("loss_clip_temperature", Number(low=0.01), 0.07,
         "initial temperature; it is learned, down to 0.01"),
    Flag("loss_slip_ssl_weight", nonnegative, 1.0,
         "weight of SimCLR beside CLIP, each with its own flags"),
    Flag("loss_lgslip_ssl_weight", nonnegative, 1.0,
         "weight of SimCLR beside CLIP, both through simclr's projector to --loss_clip_proj_dim"),
    Flag("loss_declip_nns_weight", share, 0.2,
         "weight of CLIP against the nearest text in the queue; 1 - weight is plain CLIP's"),
    Flag("loss_declip_nns_queue_size", count, 16384,
         "texts in the queue; keep it well below the number of images, or a caption finds itself"),
),
"language guidance": (  # L = L_DML + w L_match + lambda L_proxy
    Flag("language_distill_w", nonnegative, 0.0,
         "w, weight of L_match, the distillation of word similarities; 0: off"),
    Flag("language_model", text, None,
         "minilm (offline), clip, bert, roberta_l, mpnet, a Hugging Face id, a local folder, or a "
         "file of word vectors (.txt, .vec)"),
    Flag("language_words", OneOf(("classnames", "names+tags", "descriptions", "names+descriptions",
                                  "pseudolabels", "captions"), ".json"), None,
         "classnames, names+tags, descriptions, names+descriptions (all of classes.json), "
         "pseudolabels, captions, or a JSON file {class: word or words}"),
    Flag("language_prompt", text, None,
         "prompt around each word {}; of several the mean embedding counts; descriptions and "
         "captions take none (default: by dataset; 'a photo of a {}' in the benchmarks)",
         nargs="+"),
    Flag("language_several", OneOf(("ranks", "mean")), "ranks",
         "several words of a class: ranks compares the first with the first and so on, mean their "
         "mean embeddings"),
    Flag("language_centre", switch, False,
         "subtract the mean embedding of the training words, what all of them share"),
    Flag("language_pseudoclass_topk", Number(int, 1, 1000), 5, "ImageNet names per class or image"),
    Flag("language_pseudoclass_level", OneOf(("class", "sample")), "class",
         "pseudolabels per class or per image"),
    Flag("language_pseudoclass_average", OneOf(("logits", "probabilities")), "logits",
         "quantity averaged over the images of a class; logits as released"),
    Flag("language_pseudoclass_model", text, None, "timm ImageNet classifier for pseudolabels"),
    Flag("language_shift", real, None,
         "gamma, added to the word similarities (default: by dataset; 1 in the benchmarks)"),
    Flag("language_temp", positive, 1.0, "T, temperature of both distributions"),
    Flag("language_distill_dir", OneOf(("backward", "forward")), "backward",
         "backward: KL(images || words), as published; forward: the reverse"),
    Flag("language_proxy_w", nonnegative, None,
         "lambda, weight of L_proxy, a softmax over class vectors read from words; 0: off "
         "(default: by dataset, if --language_distill_w is set)"),
    Flag("language_proxy_vectors", OneOf(("words", "free")), "words",
         "class vectors: read from words, or free of them, as a control"),
    Flag("language_proxy_scale", positive, 16.0, "scale of the cosines, an inverse temperature"),
    Flag("language_proxy_lr", nonnegative, 1e-3, "learning rate of the map or the free vectors"),
    Flag("language_delay", natural, 0, "iterations before guidance starts"),
    Flag("language_control", OneOf(("none", "permuted", "uniform")), "none",
         "control that removes the effect of words: permuted (words of another class) or uniform "
         "(one constant similarity)"),
),
"evaluation": (
    Flag("evaluate_only", switch, False,
         "only evaluate --checkpoint, with its run's flags unless overridden"),
    Flag("checkpoint", text, None,
         "run folder (its last.pt) or .pt file to evaluate (default: none)", metavar="RUN"),
    Flag("evaluation_metrics", text, None,
         "recall@k precision@k R_precision mAP mAP@R mAP_1000 mAP_c mAP_lim MRR nmi ami f1 "
         "group_recall@k wrong_word_similarity@k wrong_group_share@k intra_distance inter_distance "
         "intra_over_inter alignment uniformity rho_spectrum@m; word_recall@k word_mAP named@k "
         "(search by words); prefix e_ for Euclidean distance (default), c_ for cosine (default: "
         "by dataset; runs guided by class names also search by words)", nargs="+"),
    Flag("eval_memory", positive, 1.0, "memory limit of the neighbour search, GiB"),
    Flag("evaluations", OneOf(EVALUATIONS), ["retrieval"],
         "retrieval (at each evaluation); linear_probe, fewshot, knn (of frozen features, at the "
         "end)", nargs="+"),
    Flag("evaluation_datasets", text, None,
         "labelled datasets to evaluate frozen features on: as --dataset, NAME:groups for its "
         "groups as classes, NAME:groups_apart to test these on other classes, or a downstream "
         "dataset such as cifar10 or dtd (default: by dataset; for a labelled one, itself)",
         nargs="+"),
    Flag("no_report", switch, False, "write no pictures and no report.html"),
    Flag("evaltypes", OneOf(("embeds", "features")), None,
         "embeds (output of the embedding layer), features (its pooled input) (default: what the "
         "objective reads)", nargs="+"),
    Flag("evaluate_every", count, None, "epochs between evaluations; the last is always evaluated"),
    Flag("evaluation_language_model", text, None,
         "text encoder of the semantic scores and of search by words; use the same one for runs to "
         "be compared"),
    Flag("no_train_metrics", switch, False,
         "do not evaluate the training images (search by words still embeds them)"),
    Flag("no_test_metrics", switch, False, "do not evaluate the test images"),
    Flag("evaluate_on_cpu", switch, False, "search neighbours on the CPU"),
    Flag("storage_metrics", text, ["e_recall@1"],
         "metrics whose best checkpoint is kept, by validation images if there are any", nargs="+"),
    Flag("store_improvements", switch, False, "keep every checkpoint that was the best so far"),
    Flag("test_classes", natural, None,
         "number of classes to test on; 0 trains on all, for deployment, without test scores "
         "(default: half of the classes)"),
    Flag("test_fraction", share, None,
         "share of the classes to test on (default: half of the classes)"),
    Flag("use_tv_split", switch, False, "hold out part of the training data for validation"),
    Flag("tv_split_by_samples", switch, False, "hold out images of each class, not whole classes"),
    Flag("tv_split_perc", Number(low=0, high=1, above=True), 0.8,
         "share of the training data to train on"),
    Flag("cv_folds", natural, 0,
         "K of a class-disjoint cross-validation (Musgrave et al., A Metric Learning Reality "
         "Check, ECCV 2020): one of K parts is held out for validation; 0: none"),
    Flag("cv_fold", natural, 0, "number of the part to hold out, from 0 to K - 1"),
    Flag("train_classes", natural, 0,
         "train on this many training classes, drawn by --seed, for a learning curve; 0: all"),
),
"Weights & Biases, TensorBoard": (  # W&B's key comes from the environment or `wandb login`
    Flag("wandb_mode", OneOf(("online", "offline", "disabled")), "disabled",
         "online, offline (files in the run folder, for wandb sync), disabled"),
    Flag("project", text, "language_guided_similarity", "W&B project"),
    Flag("group", text, "default", "group of the run; runs that differ only in --seed share one"),
    Flag("tensorboard", switch, False, "also log to <run folder>/tensorboard"),
),
}
# fmt: on

# Published or older names, and what they stand for.
OTHER_NAMES = {
    "use_float16": ("precision", "half"),
    "language_pseudoclass": ("language_words", "pseudolabels"),
    "log_online": ("wandb_mode", "online"),
    "skip_finished": ("resume",),
    "data_pairs_no_identical": ("data_pairs_distinct",),
}

# Flags of language guidance that samplers and objectives on captions read, too.
READ_ELSEWHERE = ("language_model", "language_prompt")
READ_BY_RELATED = ("language_words", "language_several", "language_centre")  # class_related

# --language_words of one text for each class or image; None is the dataset's recipe.
SINGLE = (None, "classnames", "names+tags", "captions")

# Mutually exclusive flags: one on the command line overrides the other in a --config file.
EXCLUSIVE = (
    ("n_epochs", "max_steps"), ("weights", "not_pretrained"), ("use_tv_split", "cv_folds"),
    ("test_classes", "test_fraction"),
)  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check the flags.

    Args:
        argv: the words of the command line; None reads ``sys.argv``.

    Raises:
        SystemExit: a flag is wrong or two do not go together; the message names the flag, the value
            and the remedy.
    """
    parser = build_parser()
    args, unknown = parser.parse_known_args(words(argv))
    if unknown:
        known = [*parser._option_string_actions, *(f"--{other}" for other in OTHER_NAMES)]
        parser.error(unknown_words.explained(unknown, known, args.source_path))
    fill_by_objective(args)
    check(parser, args)
    return args


def given(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return only the flags that a command line or its ``--config`` names.

    Args:
        argv: words that ``parse`` has accepted; None reads ``sys.argv``.
    """
    return vars(build_parser(defaults=False).parse_args(words(argv)))


def words(argv: Sequence[str] | None) -> list[str]:
    """Return the command line with ``--config`` and other names expanded."""
    parser, named = build_parser(), build_parser(defaults=False)
    return flag_parser.expanded(argv, parser, named, OTHER_NAMES, EXCLUSIVE)


def build_parser(*, defaults: bool = True) -> flag_parser.Parser:
    """Return the parser of all flags; without ``defaults``, of only the flags given."""
    parser = flag_parser.Parser(
        prog="main.py",
        description="Train an image embedder with language guidance and evaluate its retrieval of "
        "unseen classes.",
        epilog="Other names: "
        + "; ".join(f"--{name} is --{' '.join(flag)}" for name, flag in OTHER_NAMES.items()),
        formatter_class=flag_parser.DefaultsShown,
        allow_abbrev=False,
        usage="main.py [--flag value ...]",  # the whole list would push an error off the screen
    )
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            default = flag.default if defaults else argparse.SUPPRESS
            options: dict[str, Any] = {"default": default, "help": flag.help}
            if flag.dest or flag.also:
                options["dest"] = flag.dest or flag.name
            if flag.type is switch:
                options["action"] = "store_true"
            else:
                options |= {"type": flag.type, "nargs": flag.nargs, "metavar": flag.metavar}
            names = [f"--{name}" for name in (flag.name, flag.also) if name]
            group.add_argument(*names, **options)
    return parser


def run_name(args: argparse.Namespace, usual: str | None = None) -> str:
    """Return ``--savename``; by default ``usual``, or the group, the seed and the fold."""
    if args.savename != "group_plus_seed":
        return args.savename
    return usual or f"{args.group}_s{args.seed}" + (f"_f{args.cv_fold}" if args.cv_folds else "")


def changed(args: argparse.Namespace, filled: Collection[str]) -> set[str]:
    """Return the flags that neither their defaults, the objective nor ``filled`` have set."""
    usual = build_parser().parse_args([])
    names = flag_parser.differing(args, usual) - {*filled, *flag_parser.OF_THE_MACHINE}
    usual.loss = args.loss
    fill_by_objective(usual)
    return names & flag_parser.differing(args, usual) | names & {"loss"}


def summary(
    args: argparse.Namespace,
    chosen: tuple[Mapping[str, Any], str],
    notes: Mapping[str, str],
    sizes: Mapping[str, str],
    device: Any,
    folder: Any,
    length: tuple[int, int],
) -> str:
    """Describe a run in a few lines.

    Args:
        chosen: flags that the dataset's recipe filled in, and its reason.
        notes: lines on those that have changed since, by label.
        sizes: size of each image set, by name.
        length: optimizer steps and epochs.
    """
    guidance = describe_guidance(vars(args))
    flags, why = chosen
    read = READ_ELSEWHERE + READ_BY_RELATED * (args.data_sampler == "class_related")
    rows = [row for row in FLAGS["language guidance"] if row.name not in read]
    if not guidance and (idle := flag_parser.changed(args, rows, flags)):
        guidance = f"none, ignored without it: {' '.join(idle)}"
    zeros = ("language_shift", "embed_dim")  # of which 0 is a choice
    given = {k: v for k, v in flags.items() if v or k in zeros}
    lists = {k: shlex.join(map(str, v)) for k, v in given.items() if isinstance(v, tuple | list)}
    given = {k: v for k, v in given.items() if k in lists or v == getattr(args, k)}
    lines = {
        **sizes,
        "embedder": f"{args.arch}, {args.embed_dim or 'all'} dimensions, {args.image_size} px",
        "objective": f"{args.loss}; guidance: {guidance or 'none'}",
        "batches": f"{args.bs} by {args.data_sampler}, {args.augmentation} views",
        "length": f"{length[1]:,} epoch{'s' * (length[1] != 1)}, {length[0]:,} steps in total, lr "
        f"{args.lr:g}",
        "device": device,
        **notes,
        "from recipe": " ".join(f"--{k} {v}" for k, v in (given | lists).items()) + f" ({why})",
        "run folder": "none, a dry run" if args.dry_run else folder,
    }
    return "\n".join(f"{label:>14}: {line}" for label, line in lines.items())


def fill_by_objective(args: argparse.Namespace) -> None:
    """Choose sampler, augmentation and evaluated output for the objective if no flag does."""
    views = args.loss in VIEW_LOSSES
    if args.loss not in LABEL_LOSSES or args.not_pretrained:
        args.recipe = args.recipe or "standard"  # the small one keeps what the features know
    if args.evaltypes is None:
        args.evaltypes = ["embeds" if args.loss in LABEL_LOSSES else "features"]
    if args.data_sampler is None:
        args.data_sampler = "class_random" if args.loss in LABEL_LOSSES else "augmented_pairs"
    if args.augmentation is None:
        if args.loss == "slip":
            args.augmentation = "slip"
        elif views and args.data_sampler == "augmented_pairs":
            args.augmentation = "simclr"
        else:
            args.augmentation = "global_crop" if views or args.loss in CAPTION_LOSSES else "base"


# --------------------------------------------------------------------------------------------------
# Flags that do not go together
# --------------------------------------------------------------------------------------------------
def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse, through ``parser.error``, flags that cannot work together."""
    check_run(parser, args)
    check_batches(parser, args)
    check_objective(parser, args)


def check_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse contradictory flags of the run itself."""
    if args.savename == "":
        parser.error("--savename must not be empty; leave it out or name the run")
    if args.gpu and (args.device == "cpu" or ":" in args.device):
        parser.error(f"--gpu {args.gpu} has no effect on --device {args.device}; drop one of them")
    if args.weights and args.not_pretrained:
        parser.error("--weights and --not_pretrained exclude each other; drop one of them")
    unfit = "" if args.loss in LABEL_LOSSES else f"--loss {args.loss}"
    unfit = "--not_pretrained" if args.not_pretrained else unfit
    for flag, value in (("recipe", "small"), ("embed_init", "whiten")):
        if getattr(args, flag) == value and unfit:
            parser.error(
                f"--{flag} {value} is for pretrained features and losses that compare labels; drop "
                f"it or {unfit}"
            )
    if args.no_zero_init_last and not args.not_pretrained:
        parser.error("--no_zero_init_last is for random weights; add --not_pretrained or drop it")
    if args.max_steps and args.n_epochs is not None:
        parser.error(
            f"--max_steps {args.max_steps} and --n_epochs {args.n_epochs} both set the length of "
            "the run; drop one of them"
        )
    if args.n_epochs is not None and args.warmup > args.n_epochs:
        parser.error(
            f"--warmup {args.warmup} exceeds --n_epochs {args.n_epochs}, so the backbone would "
            f"never train; use at most --warmup {args.n_epochs}"
        )
    if args.patience and not args.evaluate_only and "retrieval" not in args.evaluations:
        parser.error(
            f"--patience {args.patience} counts evaluations of retrieval; leave it out, or add "
            f"retrieval to --evaluations {' '.join(args.evaluations)}"
        )
    if args.evaluate_only != (args.checkpoint is not None):
        parser.error(
            "--evaluate_only and --checkpoint go together: --evaluate_only --checkpoint RUN "
            "evaluates the embedder of a run folder or a .pt file"
        )
    if args.accept_changed_data and not (args.resume or args.evaluate_only):
        parser.error("--accept_changed_data has an effect only with --resume or --evaluate_only")
    untested = "--no_test_metrics" if args.no_test_metrics else ""
    for flag in ("test_classes", "test_fraction"):
        untested = untested or (f"--{flag} 0" if getattr(args, flag) == 0 else "")
    if untested and args.no_train_metrics and not (args.use_tv_split or args.cv_folds):
        parser.error(
            f"{untested} --no_train_metrics leave nothing to evaluate; drop one of them, or hold "
            "out validation classes with --use_tv_split or --cv_folds"
        )
    if args.test_classes is not None and args.test_fraction is not None:
        parser.error(
            f"--test_classes {args.test_classes} and --test_fraction {args.test_fraction:g} both "
            "choose the test classes; drop one of them"
        )
    if args.train_classes and args.tv_split_by_samples:
        parser.error(
            f"--train_classes {args.train_classes} draws classes, of which --tv_split_by_samples "
            "holds out images; drop one of them"
        )
    if args.cv_folds == 1:
        parser.error("--cv_folds must be 0 or at least 2; got 1, which leaves no training data")
    if args.cv_folds and args.use_tv_split:
        parser.error(
            f"--cv_folds {args.cv_folds} and --use_tv_split both hold out training classes; drop "
            "one of them"
        )
    if args.cv_fold and args.cv_fold >= args.cv_folds:
        parser.error(
            f"--cv_fold must be below --cv_folds; got --cv_fold {args.cv_fold} --cv_folds "
            f"{args.cv_folds}"
        )


def check_batches(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse batches that cannot be drawn, or that the objective cannot work with."""
    by_class, pairs = args.data_sampler in CLASS_SAMPLERS, args.data_sampler in PAIR_SAMPLERS
    if by_class and args.bs and args.samples_per_class and args.bs % args.samples_per_class:
        low = args.bs // args.samples_per_class * args.samples_per_class
        fitting = [str(bs) for bs in (low, low + args.samples_per_class) if bs]
        parser.error(
            f"--samples_per_class {args.samples_per_class} does not divide --bs {args.bs}; "
            f"use --bs {' or '.join(fitting)}"
        )
    if args.data_class_replacement and args.data_sampler != "class_random":
        parser.error(
            "--data_class_replacement is for --data_sampler class_random; got --data_sampler "
            f"{args.data_sampler}; drop one of them"
        )
    paired = args.samples_per_class != 1 or args.data_class_replacement or args.xbm_size
    if by_class and args.loss in PAIR_LOSSES and not paired:
        parser.error(
            f"--loss {args.loss} compares images of one class, but --samples_per_class 1 puts "
            "only one image of each class in a batch; use 2 or more"
        )
    if args.loss in VIEW_LOSSES and not pairs:
        parser.error(
            f"--loss {args.loss} compares two views, but --data_sampler {args.data_sampler} yields "
            f"one of each image; use one of {', '.join(PAIR_SAMPLERS)}"
        )
    if args.loss in LABEL_LOSSES and pairs:
        parser.error(
            f"--data_sampler {args.data_sampler} yields views without labels, but --loss "
            f"{args.loss} compares labels; use one of {', '.join(CLASS_SAMPLERS)}, or --loss simclr"
        )
    one_view = args.loss not in LABEL_LOSSES + VIEW_LOSSES
    if one_view and pairs and args.data_sampler != "augmented_pairs":
        parser.error(
            f"--loss {args.loss} reads one view of each image, but --data_sampler "
            f"{args.data_sampler} yields two; use augmented_pairs, or --loss lgslip"
        )
    if args.augmentation == "slip" and args.loss != "slip":
        parser.error(
            f"--augmentation slip makes the three views of --loss slip, not those of --loss "
            f"{args.loss}; use global_crop or simclr"
        )
    if args.data_pairs_csls and args.data_pairs_from:
        parser.error(
            f"--data_pairs_csls {args.data_pairs_csls} finds partners, which --data_pairs_from "
            "reads; give --csls to python -m language.neighbours instead, or drop one of them"
        )
    stored = args.data_sampler in needing(SAMPLERS, "embeddings")
    if stored and args.bs and args.data_batchmatch_bigbs < args.bs:
        parser.error(
            f"--data_batchmatch_bigbs must be at least --bs {args.bs}; got "
            f"{args.data_batchmatch_bigbs}"
        )
    if args.data_mb_mom != -1 and not 0 <= args.data_mb_mom < 1:
        parser.error(f"--data_mb_mom must be in [0, 1), or -1 to disable; got {args.data_mb_mom:g}")
    if args.data_sampler_lowproj_dim == 0:
        parser.error("--data_sampler_lowproj_dim must be at least 1, or -1 to disable; got 0")


def check_objective(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse objective flags that have no effect or cannot be combined."""
    free = args.language_proxy_vectors == "free"
    if free and not args.language_proxy_w:
        parser.error("--language_proxy_vectors free needs --language_proxy_w; set it, such as 0.03")
    reads_words = args.language_distill_w or (args.language_proxy_w and not free)
    if args.language_control != "none" and not reads_words:
        parser.error(
            f"--language_control {args.language_control} replaces words, but no term reads any; "
            "set --language_distill_w, such as 7.5, or --language_proxy_w, such as 0.03"
        )
    prompts = args.language_prompt or []
    for prompt in prompts:
        if prompt.count("{}") != 1:
            parser.error(
                f"--language_prompt must contain {{}}, the place of the word, once; got {prompt!r}"
            )
    unprompted = args.language_words in ("descriptions", "names+descriptions", "captions")
    if len(prompts) > 1 and unprompted:
        parser.error(
            f"--language_prompt has {len(prompts)} prompts, but --language_words "
            f"{args.language_words} takes none; leave it out"
        )
    if args.language_several == "mean" and args.language_words in SINGLE:
        parser.error(
            "--language_several mean needs several words of a class, by --language_words "
            "descriptions, names+descriptions, pseudolabels or a JSON file; got --language_words "
            f"{args.language_words or 'classnames'}"
        )
    if args.loss_margin_beta_constant and args.loss_margin_nu:
        parser.error(
            f"--loss_margin_nu {args.loss_margin_nu:g} regularises a boundary that "
            "--loss_margin_beta_constant keeps constant; drop one of them"
        )
    if args.xbm_size and args.loss not in PAIR_LOSSES:
        parser.error(
            f"--xbm_size {args.xbm_size} needs a loss over pairs of images, which --loss "
            f"{args.loss} is not; use one of {', '.join(PAIR_LOSSES)}"
        )
    if args.batch_mining in needing(MINERS, "feedback"):
        losses = {args.loss}
        if args.loss == "s2sd":
            losses = {args.loss_s2sd_source, args.loss_s2sd_target}
        if losses.isdisjoint(MINED_LOSSES):
            parser.error(
                f"--batch_mining {args.batch_mining} has no effect on --loss {args.loss}; use one "
                f"of {', '.join(MINED_LOSSES)}"
            )
        if not args.use_tv_split and not args.cv_folds:
            parser.error(
                f"--batch_mining {args.batch_mining} is rewarded by validation images; hold some "
                "out with --use_tv_split"
            )
