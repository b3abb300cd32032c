"""Every flag of main.py, in groups, with its default, its unit and where it comes from.

Names and defaults are those of the published commands of Roth et al., Integrating Language Guidance
into Vision-based Deep Metric Learning, CVPR 2022, so that these still run. A component's flags
carry its prefix: ``--loss_margin_beta`` becomes ``Margin(beta=...)``. A default of None is filled
in by the dataset's recipe (``datasets/recipes.py``).

Only the standard library is imported here, so that ``--help`` and a wrong flag are answered at
once; and yaml where ``--config`` names such a file.
"""

import argparse
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from batchminer import MINERS
from criteria import CRITERIA
from utilities.registry import needing

LABEL_LOSSES = needing(CRITERIA, "labels")
VIEW_LOSSES = needing(CRITERIA, "views")
CAPTION_LOSSES = needing(CRITERIA, "captions")
LOSSES = tuple(sorted(CRITERIA))
PAIR_LOSSES = needing(CRITERIA, "pairs")
MINED_LOSSES = needing(CRITERIA, "miner")
CLASS_SAMPLERS = (
    "class_random", "class_related", "d2_coreset", "disthist_batchmatch", "fid_batchmatch",
    "greedy_coreset",
)  # fmt: skip
PAIR_SAMPLERS = ("augmented_pairs", "language_pairs", "random_pairs")
SAMPLERS = (*CLASS_SAMPLERS, *PAIR_SAMPLERS, "random")
AUGMENTATIONS = ("base", "adv", "big", "global_crop", "simclr", "slip")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULERS = ("step", "cosine", "none", "warmup_cosine")
EVALUATIONS = ("retrieval", "linear_probe", "fewshot", "knn")
SCOPES = ("none", "subreddit", "year", "subreddit_year")
PRECISIONS = ("fp32", "bf16", "fp16")
CONTROLS = ("none", "permuted", "uniform")

# Flags that say one thing in two ways: the command line's goes before a file's of either name.
ALTERNATIVES = (
    ("n_epochs", "max_steps"), ("precision", "use_float16"), ("wandb_mode", "log_online"),
    ("language_words", "language_pseudoclass"), ("weights", "not_pretrained"),
    ("use_tv_split", "cv_folds"),
)  # fmt: skip
# Of a run's config.json: what was worked out from another flag, and what was asked of that machine.
WORKED_OUT = {"n_epochs": "max_steps", "precision": "use_float16"}
OF_ITS_DAY = ("device", "gpu", "kernels", "skip_finished", "resume", "dry_run")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check the flags.

    Args:
        argv: the words of the command line; None reads ``sys.argv``.

    Raises:
        SystemExit: a flag is wrong or two do not go together; the message names the flag, the value
            and the remedy.
    """
    parser = build_parser()
    args, unknown = parser.parse_known_args(with_config(argv))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        parser.error(f"{unknown[0]} is not a flag{meant(unknown[0].split('=')[0], flags)}")
    check(parser, args)
    return args


def meant(name: str, known: Sequence[str]) -> str:
    """What an error adds to a name that is unknown."""
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else "; see --help"


def given(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Only the flags that a command line or its ``--config`` names, by their names in ``parse``.

    Args:
        argv: words that ``parse`` has accepted; None reads ``sys.argv``.
    """
    return vars(without_defaults().parse_args(with_config(argv)))


def run_name(args: argparse.Namespace) -> str:
    """``--savename``, or the group, the seed and the fold."""
    if args.savename != "group_plus_seed":
        return args.savename
    return f"{args.group}_s{args.seed}" + (f"_f{args.cv_fold}" if args.cv_folds else "")


# --------------------------------------------------------------------------------------------------
# Flags from a file
# --------------------------------------------------------------------------------------------------
def with_config(argv: Sequence[str] | None = None) -> list[str]:
    """The words of a command line, those of its ``--config`` put before them instead of it.

    The file's go through the parser on their own first, so that an error names the file.
    """
    finder = argparse.ArgumentParser(
        prog="main.py", usage=USAGE, add_help=False, allow_abbrev=False
    )
    finder.add_argument("--config")
    found, typed = finder.parse_known_args(argv)
    if found.config is None:
        return typed
    parser = build_parser()
    parser.file = found.config
    flags = read_config(parser, Path(found.config).expanduser())
    named = vars(without_defaults().parse_known_args(typed)[0])
    for alike in ALTERNATIVES:
        if set(alike) & set(named):
            flags = {name: value for name, value in flags.items() if name not in alike}
    words = [word for name, value in flags.items() for word in as_typed(parser, name, value)]
    parser.parse_args(words)
    return words + typed


def read_config(parser: "Parser", file: Path) -> dict[str, Any]:
    """The flags of a YAML or JSON file, or those that a run's config.json has under "flags".

    Of a run's, what its machine decided is left out, so that it is the same run elsewhere.

    Args:
        file: or the run's folder.
    """
    if file.is_dir():
        file = file / "config.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--config cannot be read ({error}); give a YAML or JSON file or a run folder")
    content: Any = None
    if file.suffix in (".yaml", ".yml"):
        try:
            import yaml  # type: ignore[import-untyped]
        except ImportError:
            parser.error("--config needs pyyaml to read this; pip install pyyaml, or write JSON")
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            parser.error(f"--config is no YAML: {' '.join(str(error).split())}")
    else:
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            parser.error(f"--config is no JSON: {error}; YAML ends in .yaml")
    of_a_run = isinstance(content, Mapping) and isinstance(content.get("flags"), Mapping)
    flags = content["flags"] if of_a_run else {} if content is None else content
    if not isinstance(flags, Mapping):
        parser.error("--config holds no flags; write lines such as 'loss: multisimilarity'")
    if not of_a_run:
        return {str(name): value for name, value in flags.items()}
    left_out = {name for name, source in WORKED_OUT.items() if flags.get(source)}
    return {name: flags[name] for name in flags if name not in left_out.union(OF_ITS_DAY)}


def as_typed(parser: "Parser", name: str, value: Any) -> list[str]:
    """A file's ``name: value`` as words of a command line; none for null, false and []."""
    actions = {
        key: action
        for action in parser._actions
        for key in (action.dest, *(flag.lstrip("-") for flag in action.option_strings))
        if action.dest not in ("help", "config")
    }
    if name not in actions:
        parser.error(f"{name} is not a flag{meant(name, list(actions))}")
    action = actions[name]
    flag = action.option_strings[0]
    if action.nargs == 0 and not isinstance(value, bool | None):
        parser.error(f"{flag} is a switch, {value!r} no setting of it; write true or false")
    if value is None or (value is False and action.nargs == 0) or value == []:
        return []
    if action.nargs == 0:
        return [flag]
    several = isinstance(value, list)
    if isinstance(value, bool | Mapping) or (several and action.nargs is None):
        parser.error(f"{flag} takes a value, {value!r} is none; write one number or text")
    if several and len(value) > 1:
        return [flag, *map(str, value)]
    return [f"{flag}={value[0] if several else value}"]  # in one word: it may begin with a minus


def without_defaults() -> "Parser":
    """A parser that answers only what is named."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return parser


class Parser(argparse.ArgumentParser):
    """Says in which file a wrong flag is.

    Attributes:
        file: that flags are from; empty for the command line.
    """

    file = ""

    def error(self, message: str) -> NoReturn:
        super().error(f"{self.file}: {message}" if self.file else message)


USAGE = "main.py [--flag value ...]"  # the whole list would push an error off the screen


def build_parser() -> Parser:
    """The parser with all groups of flags."""
    parser = Parser(
        prog="main.py",
        description="Train an image embedder under language guidance and report retrieval of "
        "unseen classes.",
        formatter_class=DefaultsShown,
        allow_abbrev=False,
        usage=USAGE,
    )
    basic_training_parameters(parser)
    architecture_parameters(parser)
    batch_creation_parameters(parser)
    batchmining_parameters(parser)
    loss_parameters(parser)
    class_vector_loss_parameters(parser)
    s2sd_parameters(parser)
    view_loss_parameters(parser)
    caption_loss_parameters(parser)
    language_guidance_parameters(parser)
    evaluation_parameters(parser)
    logging_parameters(parser)
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse, through ``parser.error``, flags that cannot work together."""
    if args.data_sampler is None:
        unlabelled = args.loss not in LABEL_LOSSES
        args.data_sampler = "augmented_pairs" if unlabelled else "class_random"
    if args.augmentation is None:
        args.augmentation = usual_augmentation(args.loss, args.data_sampler)
    check_views(parser, args)
    if args.data_sampler in CLASS_SAMPLERS and args.bs % args.samples_per_class:
        low = args.bs // args.samples_per_class * args.samples_per_class
        fitting = [str(bs) for bs in (low, low + args.samples_per_class) if bs]
        parser.error(
            f"--samples_per_class {args.samples_per_class} does not divide --bs {args.bs}; "
            f"use --bs {' or '.join(fitting)}"
        )
    guided = args.language_distill_w != 0
    if args.language_control != "none" and not guided:
        parser.error(
            f"--language_control {args.language_control} replaces the words of the guidance, but "
            "--language_distill_w 0 leaves the guidance out; give a weight, such as 7.5"
        )
    if args.language_pseudoclass:
        if args.language_words not in (None, "pseudolabels"):
            parser.error(
                f"--language_pseudoclass takes pseudolabels as words, --language_words "
                f"{args.language_words} others; give one of the two"
            )
        args.language_words = "pseudolabels"
    if args.language_prompt.count("{}") != 1:
        parser.error(
            f"--language_prompt {args.language_prompt!r} must hold the word's place, {{}}, once"
        )
    check_folds(parser, args)
    held_out = args.use_tv_split or args.cv_folds
    if args.no_test_metrics and not held_out and args.no_train_metrics:
        parser.error(
            "--no_test_metrics --no_train_metrics leave nothing to evaluate; drop one of them, or "
            "hold out validation classes with --use_tv_split or --cv_folds"
        )
    if args.use_float16 and args.precision is not None:
        parser.error(
            f"--use_float16 and --precision {args.precision} both say how precise; drop the first"
        )
    if args.gpu and (args.device == "cpu" or ":" in args.device):
        parser.error(f"--gpu {args.gpu} has no effect on --device {args.device}; drop one of them")
    if args.weights and args.not_pretrained:
        parser.error("--weights and --not_pretrained exclude each other; give one of the two")
    if args.max_steps and args.n_epochs is not None:
        parser.error(
            f"--max_steps {args.max_steps} and --n_epochs {args.n_epochs} both say how long; give "
            "one of them"
        )
    if args.warmup and args.n_epochs is not None and args.warmup > args.n_epochs:
        parser.error(
            f"--warmup {args.warmup} epochs exceed --n_epochs {args.n_epochs}; the backbone would "
            f"never train; use at most --warmup {args.n_epochs}"
        )
    if args.loss_margin_beta_constant and args.loss_margin_nu:
        parser.error(
            f"--loss_margin_nu {args.loss_margin_nu:g} regularises a boundary that "
            "--loss_margin_beta_constant keeps; drop one of them"
        )
    if args.xbm_size and args.loss not in PAIR_LOSSES:
        parser.error(
            f"--xbm_size {args.xbm_size} keeps images to compare with, --loss {args.loss} compares "
            f"with none; use one of {', '.join(PAIR_LOSSES)}"
        )
    by_class = args.data_sampler in CLASS_SAMPLERS
    if args.loss in PAIR_LOSSES and by_class and args.samples_per_class < 2 and not args.xbm_size:
        parser.error(
            f"--loss {args.loss} compares images of one class, --samples_per_class "
            f"{args.samples_per_class} puts one of each in a batch; use 2 or more"
        )
    stored = args.data_sampler.endswith(("_coreset", "_batchmatch"))
    if stored and args.data_batchmatch_bigbs < args.bs:
        parser.error(
            f"--data_batchmatch_bigbs {args.data_batchmatch_bigbs} images hold no batch of --bs "
            f"{args.bs}; use --data_batchmatch_bigbs {args.bs} or more"
        )
    if args.data_mb_mom != -1 and not 0 <= args.data_mb_mom < 1:
        parser.error(
            f"--data_mb_mom {args.data_mb_mom:g} is no share of the old embedding; use one from 0 "
            "to below 1, or -1 for none"
        )
    if args.data_sampler_lowproj_dim == 0:
        parser.error("--data_sampler_lowproj_dim 0 leaves no dimension; use -1 for no projection")
    if args.batch_mining == "parametric":
        losses = {args.loss}
        if args.loss == "s2sd":
            losses = {args.loss_s2sd_source, args.loss_s2sd_target}
        if not losses & set(MINED_LOSSES):
            parser.error(
                f"--batch_mining parametric learns to mine, --loss {args.loss} mines nothing; use "
                f"one of {', '.join(MINED_LOSSES)}"
            )
        if not held_out:
            parser.error(
                "--batch_mining parametric is rewarded by validation images; hold some out with "
                "--use_tv_split"
            )
    if args.log_online and args.wandb_mode == "disabled":
        args.wandb_mode = "online"
    if args.evaluate_only != (args.checkpoint is not None):
        parser.error(
            "--evaluate_only and --checkpoint go together: --evaluate_only --checkpoint RUN scores "
            "the embedder of a run folder or a .pt file"
        )
    if args.savename == "":
        parser.error("--savename is empty; leave it out or give the run a name")


def check_folds(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse folds that are none."""
    if args.cv_folds == 1:
        parser.error("--cv_folds 1 leaves nothing to train on; use 2 or more, or 0 for no folds")
    if args.cv_folds and args.use_tv_split:
        parser.error(
            f"--cv_folds {args.cv_folds} and --use_tv_split both hold out training classes; give "
            "one of the two"
        )
    if args.cv_fold and not args.cv_folds:
        parser.error(f"--cv_fold {args.cv_fold} is one of several; say of how many with --cv_folds")
    if args.cv_folds and args.cv_fold >= args.cv_folds:
        parser.error(
            f"--cv_fold {args.cv_fold} is none of --cv_folds {args.cv_folds}; use 0 to "
            f"{args.cv_folds - 1}"
        )


def usual_augmentation(loss: str, sampler: str) -> str:
    """What an objective's views go through where --augmentation is not given, as published."""
    if loss == "slip":
        return "slip"
    if loss in VIEW_LOSSES and sampler == "augmented_pairs":
        return "simclr"
    if loss in VIEW_LOSSES or loss in CAPTION_LOSSES:
        return "global_crop"
    return "base"


def check_views(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse an objective whose views the sampler does not give."""
    pairs = args.data_sampler in PAIR_SAMPLERS
    if args.loss in VIEW_LOSSES and not pairs:
        parser.error(
            f"--loss {args.loss} compares views, --data_sampler {args.data_sampler} gives one of "
            f"each image; use one of {', '.join(PAIR_SAMPLERS)}"
        )
    if args.loss in LABEL_LOSSES and pairs:
        parser.error(
            f"--data_sampler {args.data_sampler} gives views without labels, --loss {args.loss} "
            f"compares labels; use one of {', '.join(sorted(CLASS_SAMPLERS))}, or --loss simclr"
        )
    one_view = args.loss in CAPTION_LOSSES and args.loss not in VIEW_LOSSES
    if one_view and args.data_sampler in ("language_pairs", "random_pairs"):
        parser.error(
            f"--loss {args.loss} reads one view of each image, --data_sampler {args.data_sampler} "
            "gives two; use augmented_pairs, or --loss lgslip"
        )
    if args.augmentation == "slip" and args.loss != "slip":
        parser.error(
            f"--augmentation slip is for the three views of --loss slip, --loss {args.loss} has "
            "others; use global_crop or simclr"
        )


class DefaultsShown(argparse.ArgumentDefaultsHelpFormatter):
    """Says each default, and for None that the dataset's recipe decides."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None and "default" not in (action.help or ""):
            return f"{action.help} (default: by dataset)"
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


# --------------------------------------------------------------------------------------------------
# Types: each raises with the value and what would fit
# --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class OneOf:
    """A flag's type that accepts ``names``; the error lists them, the closest first."""

    names: tuple[str, ...]

    def __call__(self, value: str) -> str:
        if value in self.names:
            return value
        near = difflib.get_close_matches(value, self.names, n=len(self.names), cutoff=0.5)
        rest = [other for other in self.names if other not in near]
        raise argparse.ArgumentTypeError(
            f"{value} is unknown; known, closest first: {', '.join(near + rest)}"
        )


def one_of(*names: str) -> OneOf:
    """A flag's type that accepts ``names``."""
    return OneOf(names)


@dataclass(frozen=True)
class Number:
    """A flag's type: a finite ``kind`` in [low, high], or in (low, high] when ``above``."""

    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    @property
    def bound(self) -> str:
        """Such as "at least 0 and at most 1"; empty where every number will do."""
        bound = f"{'above' if self.above else 'at least'} {self.low:g}" * (self.low > -math.inf)
        return bound + f"{' and ' if bound else ''}at most {self.high:g}" * (self.high < math.inf)

    def __call__(self, value: str) -> float:
        try:
            parsed = self.kind(value)
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{value!r} is not {what}") from None
        if not math.isfinite(parsed):
            raise argparse.ArgumentTypeError(f"{value} is not finite")
        if parsed < self.low or parsed > self.high or (self.above and parsed == self.low):
            raise argparse.ArgumentTypeError(f"{value} is out of range; it must be {self.bound}")
        return parsed


def number(
    kind: type = float, *, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> Number:
    """A flag's type: numbers in a range."""
    return Number(kind, low, high, above)


def period(value: str) -> str:
    """A flag's type: so many steps, or with an m so many minutes."""
    try:
        amount = float(value[:-1]) if value.endswith("m") else int(value)
    except ValueError:
        amount = -1
    if not 0 <= amount < math.inf:
        raise argparse.ArgumentTypeError(
            f"{value!r} is no number of steps, such as 500, or of minutes, such as 15m"
        )
    return value


count = number(int, low=1)
natural = number(int, low=0)
positive = number(low=0, above=True)
nonnegative = number(low=0)


# --------------------------------------------------------------------------------------------------
# Groups
# --------------------------------------------------------------------------------------------------
def basic_training_parameters(parser: argparse.ArgumentParser) -> None:
    """Data, seeds, optimisation."""
    add = parser.add_argument_group("basic training").add_argument
    add(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,  # what it says is in the other flags
        help="take flags from a YAML or JSON file, or from a run's config.json (or folder), which "
        "runs it again; flags of the command line go before it (default: none)",
    )
    add(
        "--dataset",
        default="emoji",
        help="emoji or openclipart (built on first use), cub200, cars196, online_products, inshop, "
        "inat, or the name of your own folder: <source_path>/NAME/images/<class>/<file>, "
        "<source_path>/NAME/manifest.csv, or pairs of images and captions",
    )
    add(
        "--source_path",
        default=None,
        help="folder that holds the datasets (default: the user's cache folder)",
    )
    add(
        "--save_path",
        default="Training_Results",
        help="runs go to <save_path>/<dataset>/<run name>",
    )
    add(
        "--savename",
        default="group_plus_seed",
        help="the run's name; group_plus_seed makes it from --group, --seed and --cv_fold",
    )
    add(
        "--skip_finished",
        action="store_true",
        help="do nothing if a run of that name and these flags is finished; for scripts",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run of that name and these flags where it was stopped or killed; "
        "begin where there is none",
    )
    add(
        "--dry_run",
        action="store_true",
        help="try everything and keep nothing: build the run, take two steps, evaluate two batches "
        "of each set; only the cache (words, pseudolabels, partners) is filled as by the run",
    )
    add(
        "--checkpoint_every",
        type=period,
        default="15m",
        help="checkpoints within an epoch: after so many steps (500) or minutes (15m); 0: only at "
        "its end",
    )
    add(
        "--deterministic",
        action="store_true",
        help="fail on nondeterministic GPU operations",
    )
    add("--seed", type=natural, default=0, help="seeds weights, batches, augmentation and splits")
    add(
        "--device",
        default="auto",
        help="auto (the GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps, xpu",
    )
    add("--gpu", type=natural, default=0, help="which of several GPUs")
    add(
        "--kernels",
        type=natural,
        default=6,
        help="data-loading processes, at most one per core; 0 loads in the training process",
    )
    add(
        "--cache_images",
        action="store_true",
        help="decode every image once and keep it, at the size that evaluation resizes to, in one "
        "memory-mapped file in the cache folder (about 0.26 MB an image at 224 px); training then "
        "cuts its views from these smaller images",
    )
    add("--bs", type=count, default=112, help="images per batch, of all processes together")
    add("--n_epochs", type=natural, default=None, help="epochs; 0 only evaluates")
    add(
        "--max_steps",
        type=natural,
        default=None,
        help="optimizer steps, in place of --n_epochs; 0: as many as the epochs have",
    )
    add("--lr", type=positive, default=None, help="learning rate of the backbone")
    add(
        "--lr_base_bs",
        type=natural,
        default=None,
        help="batch size that --lr is for: it is scaled by --bs / --lr_base_bs; 0: not scaled",
    )
    add("--fc_lr", type=float, default=-1, help="learning rate of the embedding layer; -1: as --lr")
    add("--decay", type=nonnegative, default=None, help="weight decay")
    add(
        "--no_norm_decay",
        action="store_true",
        help="no weight decay on norms and biases; heads of --loss simclr and the like always do",
    )
    add("--optim", type=one_of(*OPTIMIZERS), default=None, help=", ".join(OPTIMIZERS))
    add(
        "--scheduler",
        type=one_of(*SCHEDULERS),
        default=None,
        help="step (by --gamma at --tau), cosine (to zero at the end), none; all by the epoch; "
        "warmup_cosine by the step: up to --lr in --warmup_steps, then down to --final_lr",
    )
    add(
        "--warmup_steps",
        type=natural,
        default=None,
        help="steps in which warmup_cosine rises from --warmup_lr to --lr",
    )
    add("--warmup_lr", type=nonnegative, default=1e-5, help="first learning rate of warmup_cosine")
    add("--final_lr", type=nonnegative, default=1e-6, help="last learning rate of warmup_cosine")
    add(
        "--tau",
        type=natural,
        nargs="+",
        default=[10000],
        help="epochs after which the step scheduler acts",
    )
    add("--gamma", type=positive, default=0.3, help="factor on the learning rate at each --tau")
    add(
        "--warmup",
        type=natural,
        default=0,
        help="epochs in which only the embedding layer and the criterion train",
    )
    add(
        "--augmentation",
        type=one_of(*AUGMENTATIONS),
        default=None,
        help="base (random resized crop, flip), adv (and colour jitter, grey), big (base, 8/7 "
        "the image size), global_crop (half of the image or more), simclr (crop, colour, grey, "
        "blur, flip), slip (global_crop for the captions, simclr for the views) (default: simclr "
        "for augmented_pairs, global_crop for other pairs and captions, slip for --loss slip, else "
        "base)",
    )
    add(
        "--precision",
        type=one_of(*PRECISIONS),
        default=None,
        help="of forward passes: fp32; bf16; fp16, with loss scaling (default: fp32)",
    )
    add(
        "--use_float16",
        action="store_true",
        help="the published name of --precision fp16; on the CPU, where it saves memory and not "
        "time, of bf16",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the embedder with torch.compile: minutes at the start, faster steps",
    )


def architecture_parameters(parser: argparse.ArgumentParser) -> None:
    """The embedder."""
    add = parser.add_argument_group("architecture").add_argument
    add(
        "--arch",
        default=None,
        help="<timm backbone>[_frozen][_double][_normalize]: BatchNorm frozen, average + max "
        "pooling, unit embeddings; e.g. resnet50_frozen_normalize",
    )
    add("--embed_dim", type=count, default=128, help="D, dimensions of the embedding")
    add("--image_size", type=count, default=None, help="pixels, side of the square input")
    add("--not_pretrained", action="store_true", help="start from random weights")
    add(
        "--weights",
        default=None,
        metavar="FILE",
        help="backbone weights from a local .pth or .safetensors file (default: a package, "
        "else timm's hub)",
    )


def batch_creation_parameters(parser: argparse.ArgumentParser) -> None:
    """Which images meet in a batch."""
    add = parser.add_argument_group("batch creation").add_argument
    add(
        "--data_sampler",
        type=one_of(*SAMPLERS),
        default=None,
        help=", ".join(SAMPLERS) + "; docs/objectives.md tells them apart (default: class_random, "
        "and augmented_pairs for an objective without labels)",
    )
    add("--samples_per_class", type=count, default=2, help="images of each class in a batch")
    add(
        "--data_pairs_by",
        type=one_of("language", "visual"),
        default="language",
        help="language_pairs: partners are nearest by their captions, or (an ablation) by the "
        "features of --data_pairs_checkpoint",
    )
    add(
        "--data_pairs_checkpoint",
        default=None,
        metavar="RUN",
        help="run folder, .pt file or --arch whose features choose visual partners (default: "
        "--arch with ImageNet weights)",
    )
    add(
        "--data_pairs_from",
        default=None,
        metavar="DIR",
        help="take partners from this folder, which python -m language.neighbours wrote "
        "(default: found or made in the user's cache)",
    )
    add("--data_pairs_k", type=count, default=1, help="nearest partners to draw one from")
    add(
        "--data_pairs_threshold",
        type=number(low=-1, high=1),
        default=-1.0,
        help="least cosine of a partner; an image without one is left out",
    )
    add(
        "--data_pairs_self",
        type=number(low=0, high=1),
        default=0.0,
        help="probability that an image is paired with itself instead",
    )
    add(
        "--data_pairs_scope",
        type=one_of(*SCOPES),
        default="none",
        help="partners come from the same subreddit, year or both, which RedCaps' directories name",
    )
    add(
        "--data_pairs_distinct",
        action="store_true",
        help="no partner whose caption is the same text",
    )
    add(
        "--data_related_classes",
        type=count,
        default=4,
        help="class_related: classes per group of neighbours by words",
    )
    add(
        "--data_store_every",
        type=natural,
        default=1,
        help="coreset and batchmatch samplers: epochs between embedding the whole training set "
        "anew; 0: only before the first epoch",
    )
    add(
        "--data_mb_mom",
        type=number(low=-1, high=1),
        default=-1.0,
        help="share of the old embedding that stays when a batch's enter the store; -1: none",
    )
    add(
        "--data_sampler_lowproj_dim",
        type=number(int, low=-1),
        default=-1,
        help="dimensions that the store is projected to at random; -1: no projection",
    )
    add(
        "--data_sim_measure",
        type=one_of("euclidean", "cosine"),
        default="euclidean",
        help="coreset and batchmatch samplers: distance between embeddings, euclidean or cosine",
    )
    add(
        "--data_batchmatch_bigbs",
        type=count,
        default=512,
        help="images in the big batch that a sampler looks at before it chooses",
    )
    add(
        "--data_batchmatch_ncomps",
        type=count,
        default=10,
        help="batchmatch: candidate batches that are compared for each batch",
    )
    add(
        "--data_d2_coreset_lambda",
        type=nonnegative,
        default=1.0,
        help="d2_coreset: exponent of the squared distances; 0: density alone",
    )
    add(
        "--data_gc_coreset_lim",
        type=nonnegative,
        default=1e-9,
        help="greedy_coreset: squared distance up to which an image counts as covered",
    )
    add(
        "--data_gc_softened",
        action="store_true",
        help="greedy_coreset: draw among the farthest 3 %% instead of taking the farthest",
    )


def batchmining_parameters(parser: argparse.ArgumentParser) -> None:
    """Which triplets of a batch the criterion sees."""
    add = parser.add_argument_group("batch mining").add_argument
    add(
        "--batch_mining",
        type=one_of(*MINERS),
        default="distance",
        help=", ".join(MINERS) + "; used by " + ", ".join(MINED_LOSSES),
    )
    for name in ("distance", "rho_distance", "random_distance"):
        add(
            f"--miner_{name}_lower_cutoff",
            type=nonnegative,
            default=0.5,
            help="Euclidean distance under which all negatives weigh the same",
        )
        add(
            f"--miner_{name}_upper_cutoff",
            type=nonnegative,
            default=1.4,
            help="Euclidean distance beyond which no negative is drawn",
        )
    add(
        "--miner_rho_distance_cp",
        type=number(low=0, high=1),
        default=0.2,
        help="probability that an image of the anchor's class takes the negative's place",
    )
    add(
        "--miner_semihard_margin",
        type=nonnegative,
        default=0.2,
        help="a semihard negative is farther than the positive by less than this",
    )
    add(
        "--miner_multisimilarity_margin",
        type=float,
        default=0.1,
        help="cosine by which a pair may miss its hardest counterpart and still count",
    )
    add(
        "--miner_parametric_every",
        type=count,
        default=30,
        help="iterations from one adaptation of the policy to the next",
    )
    add(
        "--feedback_images",
        type=count,
        default=1000,
        help="validation images that reward the policy, at most",
    )
    add(
        "--miner_parametric_bins",
        type=count,
        default=30,
        help="bins of distance that negatives are drawn from",
    )
    add("--miner_parametric_lower", type=nonnegative, default=0.1, help="distance of the first bin")
    add(
        "--miner_parametric_upper",
        type=positive,
        default=1.4,
        help="distance where the last bin ends",
    )
    add(
        "--miner_parametric_lr",
        type=nonnegative,
        default=1e-3,
        help="learning rate of the policy; 0 leaves it at random",
    )
    add(
        "--miner_parametric_init",
        type=one_of("low", "uniform"),
        default="low",
        help="first distribution: low (distances 0.3 to 0.7) or uniform over the bins",
    )


def loss_parameters(parser: argparse.ArgumentParser) -> None:
    """The metric-learning objective."""
    add = parser.add_argument_group("loss").add_argument
    add("--loss", type=one_of(*LOSSES), default="margin", help=", ".join(LOSSES))

    add(
        "--xbm_size",
        type=natural,
        default=0,
        help="cross-batch memory: embeddings of earlier batches that a pair loss also compares "
        "with; 0: no memory",
    )
    add(
        "--xbm_start",
        type=natural,
        default=1000,
        help="iterations before the memory is used; the embeddings move less by then",
    )
    add("--xbm_weight", type=nonnegative, default=1.0, help="weight of the loss over the memory")

    add("--loss_margin_margin", type=nonnegative, default=0.2, help="Wu et al. 2017, alpha")
    add(
        "--loss_margin_beta", type=float, default=1.2, help="first value of the class boundary beta"
    )
    add("--loss_margin_beta_lr", type=nonnegative, default=5e-4, help="learning rate of beta")
    add("--loss_margin_nu", type=float, default=0.0, help="weight of the regulariser on beta")
    add("--loss_margin_beta_constant", action="store_true", help="keep beta as it is")

    add(
        "--loss_triplet_margin",
        type=nonnegative,
        default=0.2,
        help="margin on squared Euclidean distances",
    )

    add(
        "--loss_multisimilarity_pos_weight",
        type=positive,
        default=2.0,
        help="Wang et al. 2019, alpha",
    )
    add(
        "--loss_multisimilarity_neg_weight",
        type=positive,
        default=40.0,
        help="Wang et al. 2019, beta",
    )
    add(
        "--loss_multisimilarity_margin",
        type=float,
        default=0.1,
        help="mining margin, cosine; epsilon",
    )
    add(
        "--loss_multisimilarity_pos_thresh",
        type=float,
        default=0.5,
        help="lambda of positive pairs",
    )
    add(
        "--loss_multisimilarity_neg_thresh",
        type=float,
        default=0.5,
        help="lambda of negative pairs",
    )
    add(
        "--loss_multisimilarity_dim",
        type=int,
        choices=(0, 1),
        default=0,
        help="axis along which an anchor's pairs lie; the matrix is symmetric, so both give "
        "one loss",
    )
    add(
        "--loss_multisimilarity_released",
        action="store_true",
        help="the form of the released code, which the published guidance weights were tuned with",
    )

    add(
        "--loss_contrastive_pos_margin",
        type=nonnegative,
        default=0.0,
        help="distance up to which positives do not pull",
    )
    add(
        "--loss_contrastive_neg_margin",
        type=nonnegative,
        default=1.0,
        help="distance from which negatives do not push",
    )

    add(
        "--loss_quadruplet_margin_alpha_1",
        type=nonnegative,
        default=0.2,
        help="margin of the triplet term, squared distance",
    )
    add(
        "--loss_quadruplet_margin_alpha_2",
        type=nonnegative,
        default=0.2,
        help="margin of the term between two negatives, squared distance",
    )

    add(
        "--loss_snr_margin",
        type=nonnegative,
        default=0.2,
        help="margin on the noise-to-signal ratio",
    )
    add(
        "--loss_snr_reg_lambda",
        type=nonnegative,
        default=0.005,
        help="weight of the embeddings' mean, which should be zero",
    )

    add(
        "--loss_npair_l2",
        type=nonnegative,
        default=0.005,
        help="weight of the embeddings' mean squared length",
    )

    add(
        "--loss_angular_alpha",
        type=number(low=0, high=70, above=True),
        default=45.0,
        help="bound on the angle at the negative, degrees",
    )
    add(
        "--loss_angular_npair_ang_weight",
        type=nonnegative,
        default=2.0,
        help="weight of the angular term beside the N-pair term",
    )
    add(
        "--loss_angular_npair_l2",
        type=nonnegative,
        default=0.005,
        help="weight of the embeddings' mean squared length",
    )

    add(
        "--loss_lifted_neg_margin",
        type=nonnegative,
        default=1.0,
        help="margin on Euclidean distances",
    )
    add(
        "--loss_lifted_l2",
        type=nonnegative,
        default=0.005,
        help="weight of the embeddings' mean squared length",
    )

    add("--loss_supcon_temperature", type=positive, default=0.1, help="of the softmax over cosines")

    add("--loss_circle_margin", type=float, default=0.25, help="relaxation m, cosine")
    add("--loss_circle_gamma", type=positive, default=80.0, help="scale, an inverse temperature")

    add(
        "--loss_histogram_nbins",
        type=number(int, low=3),
        default=65,
        help="nodes of the histograms over cosine",
    )

    add(
        "--loss_smooth_ap_temperature",
        type=positive,
        default=0.01,
        help="of the sigmoid that stands for a comparison, cosine",
    )


def class_vector_loss_parameters(parser: argparse.ArgumentParser) -> None:
    """Objectives that compare images with one or more learned vectors per class."""
    add = parser.add_argument_group("losses with class vectors").add_argument
    add(
        "--loss_softmax_lr",
        type=nonnegative,
        default=1e-5,
        help="learning rate of the class vectors",
    )
    add(
        "--loss_softmax_temperature",
        type=positive,
        default=0.05,
        help="of the softmax over cosines",
    )

    add(
        "--loss_arcface_lr",
        type=nonnegative,
        default=5e-4,
        help="learning rate of the class vectors",
    )
    add(
        "--loss_arcface_angular_margin",
        type=number(low=0, high=math.pi / 2),
        default=0.5,
        help="added to the angle of the own class, radians",
    )
    add("--loss_arcface_feature_scale", type=positive, default=16.0, help="scale of the cosines")

    add(
        "--loss_cosface_lr",
        type=nonnegative,
        default=5e-4,
        help="learning rate of the class vectors",
    )
    add(
        "--loss_cosface_margin",
        type=nonnegative,
        default=0.35,
        help="taken from the cosine of the own class",
    )
    add("--loss_cosface_feature_scale", type=positive, default=16.0, help="scale of the cosines")

    add(
        "--loss_subcenter_arcface_lr",
        type=nonnegative,
        default=5e-4,
        help="learning rate of the class vectors",
    )
    add(
        "--loss_subcenter_arcface_angular_margin",
        type=number(low=0, high=math.pi / 2),
        default=0.5,
        help="added to the angle of the own class, radians",
    )
    add(
        "--loss_subcenter_arcface_feature_scale",
        type=positive,
        default=16.0,
        help="scale of the cosines",
    )
    add("--loss_subcenter_arcface_n_subcenters", type=count, default=3, help="vectors per class")

    add(
        "--loss_oproxy_mode",
        type=one_of("anchor", "nca"),
        default="anchor",
        help="anchor: over the images of each proxy, Kim et al. 2020; nca: over the proxies of "
        "each image, as released",
    )
    add(
        "--loss_oproxy_lrmulti",
        type=nonnegative,
        default=2000.0,
        help="learning rate of the proxies, in --lr",
    )
    add("--loss_oproxy_pos_alpha", type=positive, default=32.0, help="scale of the positives")
    add("--loss_oproxy_neg_alpha", type=positive, default=32.0, help="scale of the negatives")
    add("--loss_oproxy_pos_delta", type=float, default=0.1, help="margin of the positives, cosine")
    add("--loss_oproxy_neg_delta", type=float, default=-0.1, help="margin of the negatives, cosine")

    add(
        "--loss_proxynca_lrmulti",
        type=nonnegative,
        default=50.0,
        help="learning rate of the proxies, in --lr",
    )

    add(
        "--loss_proxynca_pp_lrmulti",
        type=nonnegative,
        default=50.0,
        help="learning rate of the proxies, in --lr",
    )
    add(
        "--loss_proxynca_pp_temperature",
        type=positive,
        default=0.11,
        help="of the softmax over squared distances",
    )

    add("--loss_softtriplet_n_centroids", type=count, default=2, help="centres per class")
    add(
        "--loss_softtriplet_margin_delta",
        type=float,
        default=0.01,
        help="margin of the own class, cosine",
    )
    add(
        "--loss_softtriplet_gamma",
        type=positive,
        default=0.1,
        help="temperature of the softmax over the centres of a class",
    )
    add(
        "--loss_softtriplet_lambda",
        dest="loss_softtriplet_lambda_",
        type=positive,
        default=8.0,
        help="scale of the similarities",
    )
    add(
        "--loss_softtriplet_reg_weight",
        type=nonnegative,
        default=0.2,
        help="weight that pulls a class's centres together",
    )
    add(
        "--loss_softtriplet_lrmulti",
        type=nonnegative,
        default=1.0,
        help="learning rate of the centres, in --lr",
    )


def s2sd_parameters(parser: argparse.ArgumentParser) -> None:
    """Self-distillation from branches of more dimensions, Roth et al., ICML 2021."""
    add = parser.add_argument_group("s2sd").add_argument
    others = [name for name in LABEL_LOSSES if name != "s2sd"]
    add(
        "--loss_s2sd_source",
        type=one_of(*others),
        default="multisimilarity",
        help="objective of the embeddings; its own flags apply",
    )
    add(
        "--loss_s2sd_target",
        type=one_of(*others),
        default="multisimilarity",
        help="objective of each target branch; its own flags apply",
    )
    add("--loss_s2sd_T", type=positive, default=1.0, help="temperature of the distillation")
    add(
        "--loss_s2sd_w",
        type=nonnegative,
        default=0.0,
        help="weight of the distillation from the target branches",
    )
    add(
        "--loss_s2sd_pool_aggr",
        action="store_true",
        help="the branches read average + maximum pooled features",
    )
    add(
        "--loss_s2sd_target_dims",
        type=count,
        nargs="+",
        default=(1024, 1536, 2048),
        help="dimensions of the target branches",
    )
    add("--loss_s2sd_feat_distill", action="store_true", help="distil from the pooled features too")
    add("--loss_s2sd_feat_w", type=nonnegative, default=50.0, help="weight of that distillation")
    add(
        "--loss_s2sd_feat_distill_delay",
        type=natural,
        default=1000,
        help="iterations before it starts",
    )


def view_loss_parameters(parser: argparse.ArgumentParser) -> None:
    """Views of an image, or of two images that belong together; the heads are the objective's."""
    add = parser.add_argument_group("objectives on views").add_argument
    add("--loss_simclr_temperature", type=positive, default=0.1, help="of the softmax over cosines")
    add("--loss_simclr_hidden_dim", type=count, default=2048, help="width of the projector")
    add("--loss_simclr_proj_dim", type=count, default=128, help="dimension of the projections")
    add(
        "--loss_simsiam_hidden_dim",
        type=count,
        default=2048,
        help="width of the projector's two hidden layers",
    )
    add("--loss_simsiam_proj_dim", type=count, default=2048, help="dimension of the projections")
    add(
        "--loss_simsiam_pred_dim",
        type=count,
        default=512,
        help="width of the predictor's hidden layer",
    )
    add("--loss_nnclr_temperature", type=positive, default=0.1, help="of the softmax over cosines")
    add(
        "--loss_nnclr_queue_size",
        type=count,
        default=16384,
        help="earlier images among which neighbours are found; Dwibedi et al. 2021: 98304",
    )
    add(
        "--loss_nnclr_hidden_dim",
        type=count,
        default=2048,
        help="width of the projector's two hidden layers",
    )
    add("--loss_nnclr_proj_dim", type=count, default=256, help="dimension of the projections")
    add(
        "--loss_nnclr_pred_dim",
        type=count,
        default=4096,
        help="width of the predictor's hidden layer",
    )
    add(
        "--loss_swav_temperature", type=positive, default=0.1, help="of the softmax over prototypes"
    )
    add(
        "--loss_swav_epsilon",
        type=positive,
        default=0.05,
        help="of the Sinkhorn assignment; lower is closer to one prototype an image",
    )
    add("--loss_swav_sinkhorn_iterations", type=count, default=3, help="of the assignment")
    add("--loss_swav_hidden_dim", type=count, default=2048, help="width of the projector")
    add("--loss_swav_proj_dim", type=count, default=128, help="dimension of the projections")
    add(
        "--loss_swav_n_prototypes",
        type=count,
        default=3000,
        help="prototypes that images are assigned to",
    )
    add(
        "--loss_swav_freeze_steps",
        type=natural,
        default=2503,
        help="first optimizer steps in which the prototypes stay as they are",
    )
    add(
        "--loss_swav_queue_size",
        type=natural,
        default=7680,
        help="earlier images assigned along with a batch, of all processes; 0: none",
    )
    add(
        "--loss_swav_queue_start",
        type=natural,
        default=37500,
        help="optimizer steps before the first image enters the queue",
    )
    add(
        "--loss_byol_momentum",
        type=number(low=0, high=1),
        default=0.996,
        help="of the target at the first step; rises to 1 by a cosine",
    )
    add("--loss_byol_hidden_dim", type=count, default=4096, help="width of projector and predictor")
    add("--loss_byol_proj_dim", type=count, default=256, help="dimension of the projections")
    add(
        "--loss_barlowtwins_redundancy_weight",
        type=nonnegative,
        default=0.0051,
        help="lambda of Zbontar et al., ICML 2021",
    )
    add(
        "--loss_barlowtwins_hidden_dim",
        type=count,
        default=8192,
        help="width of the projector's two hidden layers",
    )
    add(
        "--loss_barlowtwins_proj_dim", type=count, default=8192, help="dimension of the projections"
    )
    add(
        "--loss_vicreg_invariance_weight",
        type=nonnegative,
        default=25.0,
        help="lambda of Bardes et al., ICLR 2022",
    )
    add("--loss_vicreg_variance_weight", type=nonnegative, default=25.0, help="mu")
    add("--loss_vicreg_covariance_weight", type=nonnegative, default=1.0, help="nu")
    add(
        "--loss_vicreg_hidden_dim",
        type=count,
        default=8192,
        help="width of the projector's two hidden layers",
    )
    add("--loss_vicreg_proj_dim", type=count, default=8192, help="dimension of the projections")


def caption_loss_parameters(parser: argparse.ArgumentParser) -> None:
    """Images and captions: Radford et al., ICML 2021; SLIP, LG-SLIP and DeCLIP-NNS contain it."""
    add = parser.add_argument_group("objectives with captions").add_argument
    add(
        "--loss_clip_text",
        type=one_of("transformer", "frozen"),
        default="transformer",
        help="what reads captions: transformer (trained along, with the tokenizer of "
        "--language_model) or frozen (--language_model itself, under a trained projection)",
    )
    add(
        "--loss_clip_proj_dim",
        type=count,
        default=512,
        help="dimension in which images and captions meet",
    )
    add("--loss_clip_width", type=count, default=512, help="transformer: width of a token")
    add("--loss_clip_layers", type=count, default=12, help="transformer: number of blocks")
    add(
        "--loss_clip_heads",
        type=count,
        default=8,
        help="transformer: attention heads; they divide the width",
    )
    add(
        "--loss_clip_tokens",
        type=count,
        default=77,
        help="transformer: most tokens of a caption, the rest is cut off",
    )
    add(
        "--loss_clip_temperature",
        type=number(low=0.01),
        default=0.07,
        help="temperature at the start; it is learned, down to 0.01",
    )
    for name in ("slip", "lgslip"):
        add(
            f"--loss_{name}_ssl_weight",
            type=nonnegative,
            default=1.0,
            help="weight of SimCLR beside CLIP; the flags of either apply",
        )
    add(
        "--loss_declip_nns_weight",
        type=number(low=0, high=1),
        default=0.2,
        help="share of CLIP against the nearest text in the queue; CLIP against the own caption "
        "has the rest",
    )
    add(
        "--loss_declip_nns_queue_size",
        type=count,
        default=16384,
        help="texts in the queue; well below the number of images, or a caption finds itself of an "
        "epoch ago",
    )


def language_guidance_parameters(parser: argparse.ArgumentParser) -> None:
    """Words in the loss: L = L_DML + w * L_match."""
    add = parser.add_argument_group("language guidance").add_argument
    add(
        "--language_distill_w",
        type=nonnegative,
        default=0.0,
        help="w, weight of the distillation; 0: no guidance",
    )
    add(
        "--language_model",
        default=None,
        help="minilm (offline), clip, bert, roberta_l, mpnet, a Hugging Face id, a local "
        "folder, or a file of word vectors (.txt, .vec)",
    )
    add(
        "--language_words",
        default=None,
        help="classnames, pseudolabels, captions, or a JSON file {class: word or words}",
    )
    add(
        "--language_prompt",
        default="a photo of a {}",
        help="{} is the word; captions take no prompt",
    )
    add(
        "--language_pseudoclass",
        action="store_true",
        help="short for --language_words pseudolabels",
    )
    add(
        "--language_pseudoclass_topk",
        type=number(int, low=1, high=1000),
        default=5,
        help="k, ImageNet names per class or image",
    )
    add(
        "--language_pseudoclass_level",
        type=one_of("class", "sample"),
        default="class",
        help="names for each class, or for each image",
    )
    add(
        "--language_pseudoclass_average",
        type=one_of("logits", "probabilities"),
        default="logits",
        help="what is averaged over the images of a class; the released code averages logits",
    )
    add(
        "--language_pseudoclass_model",
        default=None,
        help="timm ImageNet classifier that names the images",
    )
    add("--language_shift", type=float, default=1.0, help="added to the word similarities")
    add("--language_temp", type=positive, default=1.0, help="T, temperature of both distributions")
    add(
        "--language_distill_dir",
        type=one_of("backward", "forward"),
        default="backward",
        help="backward: KL(images || words), as published; forward: the reverse",
    )
    add("--language_delay", type=natural, default=0, help="iterations before guidance starts")
    add(
        "--language_control",
        type=one_of(*CONTROLS),
        default="none",
        help="permuted (the words of another class) or uniform (one constant similarity): "
        "controls of what the words add",
    )


def evaluation_parameters(parser: argparse.ArgumentParser) -> None:
    """What is measured, on what, and which checkpoints are kept."""
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--evaluate_only",
        action="store_true",
        help="train nothing, score --checkpoint under its own flags, but for those given",
    )
    add(
        "--checkpoint",
        default=None,
        metavar="RUN",
        help="run folder (its last.pt) or .pt file to score (default: none)",
    )
    add(
        "--evaluation_metrics",
        nargs="+",
        default=None,
        help="recall@k precision@k R_precision mAP mAP@R mAP_1000 mAP_c mAP_lim MRR nmi ami f1 "
        "group_recall@k wrong_word_similarity@k wrong_group_share@k intra_distance inter_distance "
        "intra_over_inter alignment uniformity rho_spectrum@m; e_ before a name is by euclidean "
        "distance (default), c_ by cosine",
    )
    add(
        "--eval_memory",
        type=positive,
        default=1.0,
        help="GiB that the search may take, whatever the number of images",
    )
    add(
        "--evaluations",
        nargs="+",
        type=one_of(*EVALUATIONS),
        default=["retrieval"],
        help="retrieval (at each evaluation), and at the end, of frozen features: "
        + ", ".join(EVALUATIONS[1:]),
    )
    add(
        "--evaluation_datasets",
        nargs="+",
        default=None,
        help="labelled datasets that frozen features are evaluated on: as --dataset, NAME:groups "
        "for its groups as classes, or a downstream dataset such as cifar10, food101 or dtd "
        "(default: by dataset; for a labelled one, itself)",
    )
    add("--no_report", action="store_true", help="write no pictures and no report.html at the end")
    add(
        "--evaltypes",
        nargs="+",
        type=one_of("embeds", "features"),
        default=None,
        help="embeds (after the embedding layer), features (pooled, before it) (default: what the "
        "objective reads)",
    )
    add(
        "--evaluate_every",
        type=count,
        default=None,
        help="epochs between evaluations; the last epoch is always evaluated",
    )
    add(
        "--evaluation_language_model",
        default=None,
        help="encoder of the semantic scores, the same for runs that are to be compared",
    )
    add("--no_train_metrics", action="store_true", help="do not evaluate the training images")
    add("--no_test_metrics", action="store_true", help="do not evaluate the test images")
    add("--evaluate_on_cpu", action="store_true", help="keep the neighbour search off the GPU")
    add(
        "--storage_metrics",
        nargs="+",
        default=["e_recall@1"],
        help="each keeps its best checkpoint, by validation where there is one",
    )
    add(
        "--store_improvements",
        action="store_true",
        help="keep every checkpoint that was once the best",
    )
    add(
        "--use_tv_split",
        action="store_true",
        help="hold out part of the training data for validation",
    )
    add(
        "--tv_split_by_samples",
        action="store_true",
        help="hold out images of each class instead of whole classes",
    )
    add(
        "--tv_split_perc",
        type=number(low=0, high=1, above=True),
        default=0.8,
        help="share of the training data that is trained on",
    )
    add(
        "--cv_folds",
        type=natural,
        default=0,
        help="K, class-disjoint cross-validation of the training classes, Musgrave et al., A "
        "Metric Learning Reality Check, ECCV 2020: one of K parts is held out for validation; 0: "
        "none",
    )
    add(
        "--cv_fold",
        type=natural,
        default=0,
        help="which of the K parts is held out, from 0 to K - 1",
    )


def logging_parameters(parser: argparse.ArgumentParser) -> None:
    """Where else scores go. W&B's key comes from the environment or `wandb login`, never a flag."""
    add = parser.add_argument_group("Weights & Biases, TensorBoard").add_argument
    add("--log_online", action="store_true", help="short for --wandb_mode online")
    add(
        "--wandb_mode",
        type=one_of("online", "offline", "disabled"),
        default="disabled",
        help="online, offline (files in the run folder, for wandb sync), disabled",
    )
    add("--project", default="language_guided_similarity", help="W&B project")
    add("--group", default="default", help="runs that differ in --seed alone share a group")
    add(
        "--tensorboard",
        action="store_true",
        help="write scores and pictures for TensorBoard, too: <run folder>/tensorboard",
    )
