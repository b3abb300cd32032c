"""main.py end to end on images and captions, judged on labelled images that it never saw."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

import main
import parameters
from tests.runs import rows_of, without_times
from utilities import checkpoint

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")

COLOURS = {"red": (220, 40, 30), "green": (40, 180, 60), "blue": (40, 60, 220)}
THINGS = ("fox", "owl", "cat")
SHADES = ("coral", "olive", "navy", "pink", "teal")
SSL = (*sorted(parameters.VIEW_LOSSES), "clip", "declip_nns")
SMALL_HEADS = {
    "simclr": "hidden_dim 8 proj_dim 6",
    "simsiam": "hidden_dim 8 proj_dim 8 pred_dim 4",
    "nnclr": "hidden_dim 8 proj_dim 6 pred_dim 8 queue_size 16",
    "swav": "hidden_dim 8 proj_dim 6 n_prototypes 5 queue_size 8 queue_start 1 freeze_steps 1",
    "byol": "hidden_dim 8 proj_dim 6 momentum 0.5",
    "barlowtwins": "hidden_dim 8 proj_dim 6",
    "vicreg": "hidden_dim 8 proj_dim 6",
    "clip": "proj_dim 6 width 8 layers 1 heads 2 tokens 6",
    "declip_nns": "queue_size 8",
}


def small_heads():
    """Every flag of ``SMALL_HEADS``: an objective also reads those of the ones it contains."""
    for loss, flags in SMALL_HEADS.items():
        words = flags.split()
        for name, value in zip(words[::2], words[1::2], strict=True):
            yield from (f"--loss_{loss}_{name}", value)


def picture(rng, colour, file):
    pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (34, 36, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source"))


def write_source(source):
    """Write 24 drawings with captions, 5 classes of 11 images, words, and a tokenizer."""
    rng = np.random.default_rng(0)
    folder = source / "drawings" / "aww_2020"
    folder.mkdir(parents=True)
    for number in range(24):
        colour, thing = list(COLOURS)[number % 3], THINGS[number // 3 % 3]
        picture(rng, COLOURS[colour], folder / f"{number:02d}.jpg")
        caption = {"caption": f"a {colour} {thing} {number % 8}"}
        (folder / f"{number:02d}.json").write_text(json.dumps(caption))
    for name, count in (("shades", 11), ("few", 3)):
        for shade in SHADES:
            of_class = source / name / "images" / shade
            of_class.mkdir(parents=True)
            colour = rng.integers(126, 131, 3)  # hard to tell apart
            for number in range(count):
                picture(rng, colour, of_class / f"{number}.jpg")
    words = ["a", *COLOURS, *THINGS, *SHADES, *map(str, range(8))]
    lines = [f"{word} {' '.join(map(str, rng.normal(size=8)))}\n" for word in words]
    (source / "words.txt").write_text("".join(lines))
    save_tokenizer(source / "tokenizer", words)
    return source


def save_tokenizer(folder, words):
    """A folder as of a text encoder, with a tokenizer of whole words and no weights."""
    known = ["<pad>", "<s>", "<unk>", "</s>", *words]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    BertConfig(vocab_size=len(known)).save_pretrained(folder)


def flags(source, save_path, *more, length=("--max_steps", "2")):
    """Two steps of a run of timm's test network from scratch at 32 px; three make an epoch."""
    return [
        *("--dataset", "drawings", "--source_path", str(source), "--save_path", str(save_path)),
        *("--arch", "test_resnet", "--not_pretrained", "--image_size", "32", "--embed_dim", "4"),
        *("--bs", "8", "--kernels", "0", "--lr", "1e-2", "--optim", "adamw", *length),
        *("--scheduler", "none", "--warmup_steps", "0"),
        *("--language_model", str(source / "words.txt"), "--language_words", "captions"),
        *("--evaluation_datasets", "shades", "--evaluation_metrics", "e_recall@1", "--no_report"),
        *("--loss", "simclr", *small_heads(), *more),
    ]


def without(asked, flag, n_values=1):
    """The flags but one and its values."""
    place = asked.index(flag)
    return asked[:place] + asked[place + 1 + n_values :]


def run_folder(save_path, name="default_s0"):
    return save_path / "drawings" / name


def texts_of(source, loss):
    """Flags by which an objective that contains CLIP reads captions."""
    if loss not in parameters.CAPTION_LOSSES:
        return ()
    if loss == "declip_nns":
        return ("--loss_clip_text", "frozen")
    return ("--language_model", str(source / "tokenizer"))


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("loss", SSL)
def test_every_objective_trains_without_labels(source, tmp_path, loss):
    more = ("--loss", loss, *texts_of(source, loss), "--evaluation_metrics", "c_recall@1")
    scores = main.main(flags(source, tmp_path, *more))
    assert np.isfinite(scores["train/loss_dml"])
    assert 0 <= scores["shades/features/c_recall@1"] <= 1  # and not of the untrained embeds
    kept = checkpoint.load(run_folder(tmp_path) / "last.pt")
    assert kept["trainer"]["iteration"] == 2 and kept["flags"]["evaltypes"] == ["features"]
    moved = [
        not torch.equal(value, kept["criterion"][f"target_embedder.{name}"])
        for name, value in kept["embedder"].items()
        if loss == "byol" and name.endswith("weight")
    ]
    assert any(moved) == (loss == "byol")


@pytest.mark.parametrize(
    "more",
    [
        ("--data_sampler", "augmented_pairs", "--augmentation", "global_crop"),
        ("--data_sampler", "language_pairs"),
        ("--data_sampler", "language_pairs", "--data_pairs_k", "3", "--data_pairs_distinct"),
        ("--data_sampler", "language_pairs", "--data_pairs_scope", "subreddit_year"),
        ("--data_sampler", "language_pairs", "--data_pairs_csls", "2", "--data_pairs_mutual"),
        ("--data_sampler", "language_pairs", "--data_pairs_self", "0.5", "--loss", "nnclr"),
        ("--data_sampler", "language_pairs", "--loss", "lgslip", "--loss_clip_text", "frozen"),
        ("--data_sampler", "random_pairs", "--loss", "simsiam", "--use_float16"),
        ("--data_sampler", "random", "--loss", "clip", "--loss_clip_text", "frozen"),
    ],
    ids=" ".join,
)
def test_every_sampler_of_pairs_feeds_a_run(source, tmp_path, more):
    scores = main.main(flags(source, tmp_path, *more))
    assert np.isfinite(scores["train/loss"])


def batches_of(monkeypatch):
    """What the criterion of a SimCLR run is given: a list that fills as it runs."""
    seen = []
    compute = main.criteria.SimCLR.compute

    def spy(self, views, batch):
        seen.append((views, batch))
        return compute(self, views, batch)

    monkeypatch.setattr(main.criteria.SimCLR, "compute", spy)
    return seen


def test_captions_and_rows_are_those_of_the_first_view(source, tmp_path, monkeypatch):
    seen = batches_of(monkeypatch)
    main.main(flags(source, tmp_path, "--data_sampler", "random_pairs"))
    assert len(seen) == 2
    for views, batch in seen:
        assert len(views) == len(batch.views) == 2
        for row, caption in zip(batch.rows.tolist(), batch.captions, strict=True):
            assert caption == f"a {list(COLOURS)[row % 3]} {THINGS[row // 3 % 3]} {row % 8}"


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--loss", "clip"), marks=pytest.mark.slow),
        ("--loss", "lgslip", "--data_sampler", "language_pairs"),
    ],
)
def test_of_several_captions_one_is_read_in_each_epoch(source, tmp_path, monkeypatch, more):
    """And all of them guide and choose partners; a run with loading processes reads the same."""
    several = tmp_path / "source"
    shutil.copytree(source, several)
    for file in (several / "drawings").rglob("*.json"):
        caption = json.loads(file.read_text())["caption"]
        file.write_text(json.dumps({"caption": [caption, f"the {caption}", f"{caption} again"]}))
    read = main.criteria.CLIP.project
    seen = []

    def spy(self, views, batch):
        seen.append((batch.rows.tolist(), batch.captions))
        return read(self, views, batch)

    monkeypatch.setattr(main.criteria.CLIP, "project", spy)
    more = (*more, "--loss_clip_text", "frozen", "--language_distill_w", "1", "--n_epochs", "4")
    runs = []
    for kernels in ("0", "1"):
        words = flags(several, tmp_path / kernels, *more, length=())
        main.main([*words, "--kernels", kernels])
        runs.append(seen.copy())
        seen.clear()
    assert runs[0] == runs[1] and len(runs[0]) == 12
    of_rows = {}
    for rows, captions in runs[0]:
        for row, caption in zip(rows, captions, strict=True):
            assert "\n" not in caption and caption.removeprefix("the ").split()[0] == "a"
            of_rows.setdefault(row, set()).add(caption)
    assert len(of_rows) == 24 and sum(map(len, of_rows.values())) > 40
    kept = [checkpoint.load(run_folder(tmp_path / kernels) / "last.pt") for kernels in ("0", "1")]
    for name, value in kept[0]["embedder"].items():
        assert torch.equal(value, kept[1]["embedder"][name])


def test_the_views_that_training_begins_with_are_drawn(source, tmp_path, monkeypatch):
    """And are those that it begins with: in the colours of the images, two to a row."""
    seen, drawn = batches_of(monkeypatch), []
    monkeypatch.setattr("evaluation.from_flags.views_picture", lambda *given: drawn.append(given))
    main.main(without(flags(source, tmp_path, "--data_sampler", "random_pairs"), "--no_report", 0))
    [(views, said, path)] = drawn
    assert path == run_folder(tmp_path) / "views.png"
    captions = [f"a {list(COLOURS)[r % 3]} {THINGS[r // 3 % 3]} {r % 8}" for r in range(24)]
    assert [first for first, _ in said] == list(seen[0][1].captions)
    assert all(second in captions for _, second in said)
    means = views.mean(axis=(2, 3))  # (8, 2, 3)
    for colours, words in zip(means, said, strict=True):
        for colour, caption in zip(colours, words, strict=True):
            name = caption.split()[1]
            assert abs(colour - np.array(COLOURS[name])).max() < 25


def test_a_language_partner_has_the_nearest_caption(source, tmp_path, monkeypatch):
    """The second view is of the image whose caption is nearest: here another of equal words."""
    seen = {}
    build = main.datasampler.build

    def spy(args, train, **given):
        seen.update(given, captions=list(train.captions))
        return build(args, train, **given)

    monkeypatch.setattr(main.datasampler, "build", spy)
    main.main(flags(source, tmp_path, "--data_sampler", "language_pairs", "--data_pairs_k", "2"))
    encoder = main.language.build_encoder(str(source / "words.txt"), torch.device("cpu"))
    embeds = encoder.encode(seen["captions"]).double().numpy()
    cosines = embeds @ embeds.T
    np.fill_diagonal(cosines, -np.inf)
    for row, (partners, found) in enumerate(
        zip(seen["partners"], seen["similarities"], strict=True)
    ):
        best = np.sort(cosines[row])[::-1][:2]
        assert np.allclose(found, best, atol=1e-3)  # of embeddings that are kept in half precision
        assert np.allclose(cosines[row][partners], best, atol=1e-3)


def test_partners_may_be_found_beforehand(source, tmp_path):
    """By ``python -m language.neighbours``, into a folder; that of other images is refused."""
    pairs = ("--data_sampler", "language_pairs")
    one = main.main(flags(source, tmp_path, *pairs))
    (found,) = (tmp_path / "cache").rglob("partners.npy")
    folder = found.parent.rename(tmp_path / "found")
    two = main.main(flags(source, tmp_path, *pairs, "--data_pairs_from", str(folder)))
    assert without_times(one) == without_times(two)
    assert not list((tmp_path / "cache").rglob("partners.npy"))

    fewer = tmp_path / "source" / "drawings"
    shutil.copytree(source / "drawings", fewer)
    (fewer / "aww_2020" / "03.jpg").unlink()
    (fewer / "aww_2020" / "03.json").unlink()
    shutil.copytree(source / "shades", fewer.parent / "shades")
    asked = flags(source, tmp_path / "runs", *pairs, "--data_pairs_from", str(folder))
    with pytest.raises(ValueError, match="holds the neighbours of 24 rows of drawings, but there"):
        main.main([*asked, "--source_path", str(fewer.parent)])
    with pytest.raises(FileNotFoundError, match="nowhere holds no neighbours; make them: python"):
        main.main([*asked, "--data_pairs_from", "nowhere"])
    assert not (tmp_path / "runs").exists()


def test_visual_partners_by_the_features_of_a_run(source, tmp_path):
    main.main(flags(source, tmp_path))
    pairs = ("--data_sampler", "language_pairs", "--data_pairs_by", "visual")
    by = ("--data_pairs_checkpoint", str(run_folder(tmp_path)), "--group", "visual")
    scores = main.main(flags(source, tmp_path, *pairs, *by))
    assert np.isfinite(scores["train/loss"])


def test_guidance_reads_features_and_captions(source, tmp_path, monkeypatch):
    """L = L_SimCLR + w L_match, the images' similarities being those of pooled features."""
    seen, read = batches_of(monkeypatch), []
    forward = main.criteria.LanguageDistillation.forward

    def spy(self, images, *rest):
        read.append(images)
        return forward(self, images, *rest)

    monkeypatch.setattr(main.criteria.LanguageDistillation, "forward", spy)
    scores = main.main(flags(source, tmp_path, "--language_distill_w", "7.5"))
    assert scores["train/loss_match"] > 0
    assert scores["train/loss"] == pytest.approx(
        scores["train/loss_dml"] + 7.5 * scores["train/loss_match"], rel=1e-5
    )
    for (views, _), images in zip(seen, read, strict=True):
        assert images is views[0].features


def test_the_same_flags_give_the_same_numbers(source, tmp_path):
    more = ("--data_sampler", "language_pairs", "--data_pairs_k", "2", "--loss", "nnclr")
    more += ("--seed", "4", "--evaluations", "retrieval", "fewshot")
    one = main.main(flags(source, tmp_path / "one", *more))
    two = main.main(flags(source, tmp_path / "two", *more, "--kernels", "2"))
    other = main.main(flags(source, tmp_path / "three", *more, "--seed", "5"))
    assert without_times(one) == without_times(two)
    assert one["train/loss"] != other["train/loss"]


# --------------------------------------------------------------------------------------- length


def rates_of(monkeypatch):
    """The learning rates of the first group at each step of an AdamW."""
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    return rates


def test_a_run_ends_in_the_middle_of_an_epoch_and_is_finished(source, tmp_path, capsys):
    """Three steps make an epoch: five are one and two thirds."""
    asked = flags(source, tmp_path, length=("--max_steps", "5"))
    main.main(asked)
    folder = run_folder(tmp_path)
    assert [row["epoch"] for row in rows_of(folder)] == [0, 1, 2]
    kept = checkpoint.load(folder / "last.pt")
    assert (kept["epoch"], kept["trainer"]["iteration"]) == (2, 5)
    assert (kept["flags"]["n_epochs"], kept["flags"]["max_steps"]) == (2, 5)
    with pytest.raises(SystemExit) as done:
        main.main([*asked, "--skip_finished"])
    assert not done.value.code and "is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"--max_steps 5 \(now 4\)"):
        main.main([*flags(source, tmp_path, length=("--max_steps", "4")), "--skip_finished"])


def test_the_rate_rises_by_the_step_and_falls_to_the_last_one(source, tmp_path, monkeypatch):
    rates = rates_of(monkeypatch)
    schedule = ("--scheduler", "warmup_cosine", "--warmup_steps", "2", "--final_lr", "1e-5")
    more = (*schedule, "--warmup_lr", "1e-4", "--lr_base_bs", "16")
    main.main(flags(source, tmp_path, *more, length=("--max_steps", "5")))
    top = 1e-2 * 8 / 16  # --lr, scaled from 16 images to 8
    cosine = [(1 + np.cos(np.pi * done / 3)) / 2 for done in range(4)]
    falling = [1e-5 + (top - 1e-5) * share for share in cosine]
    assert rates == pytest.approx([1e-4, (1e-4 + top) / 2, *falling[:3]])
    kept = checkpoint.load(run_folder(tmp_path) / "last.pt")
    assert {group["lr"] for group in kept["trainer"]["optimizer"]["param_groups"]} == {falling[3]}
    assert falling[3] == 1e-5


def test_epochs_give_the_schedule_its_steps(source, tmp_path, monkeypatch):
    rates = rates_of(monkeypatch)
    schedule = ("--scheduler", "warmup_cosine", "--warmup_steps", "0", "--final_lr", "0")
    main.main(flags(source, tmp_path, *schedule, length=("--n_epochs", "2")))
    assert rates == pytest.approx([5e-3 * (1 + np.cos(np.pi * t / 6)) for t in range(6)])


def test_no_epoch_evaluates_and_saves_what_it_began_with(source, tmp_path):
    schedule = ("--scheduler", "warmup_cosine", "--warmup_steps", "2")
    more = (*schedule, "--evaluations", "knn", "retrieval")
    scores = main.main(flags(source, tmp_path, *more, length=("--n_epochs", "0")))
    assert 0 <= scores["shades/features/e_recall@1"] <= 1
    (row,) = rows_of(run_folder(tmp_path))
    assert row["epoch"] == 0 and 0 <= row["shades/knn@20"] <= 1
    assert (run_folder(tmp_path) / "last.pt").exists()


# ----------------------------------------------------------------------------------- evaluation


def test_a_checkpoint_is_judged_as_it_was_in_training(source, tmp_path):
    """To the last digit; by other evaluations and on other images where these are given."""
    more = ("--evaluations", "retrieval", "linear_probe", "fewshot", "knn", "--seed", "3")
    trained = main.main(flags(source, tmp_path, *more, "--data_sampler", "language_pairs"))
    folder = run_folder(tmp_path, "default_s3")
    measured = {name: value for name, value in trained.items() if name.startswith("shades/")}
    assert set(measured) == {
        "shades/features/e_recall@1", "shades/linear_probe", "shades/fewshot_5w5s",
        "shades/knn@20", "shades/knn@200",
    }  # fmt: skip
    assert all(0 < value < 1 for value in measured.values())
    last = rows_of(folder)[-1]
    assert measured == {name: last[name] for name in measured}

    only = ["--evaluate_only", "--checkpoint", str(folder), "--save_path", str(tmp_path)]
    assert main.main(only) == measured
    evaluated = run_folder(tmp_path, "default_s3_evaluation")
    assert rows_of(evaluated)[-1]["shades/linear_probe"] == measured["shades/linear_probe"]
    other = main.main([*only, "--evaluations", "knn", "--evaluation_datasets", "few"])
    assert set(other) == {"few/knn@20", "few/knn@200"}
    assert (folder / "classes_shades.csv").is_file()


def test_classifiers_come_at_the_end_and_are_of_all_datasets(source, tmp_path):
    more = ("--evaluations", "retrieval", "knn", "--evaluation_datasets", "shades", "few")
    main.main(flags(source, tmp_path, *more, length=("--max_steps", "5")))
    start, middle, end = rows_of(run_folder(tmp_path))
    for row in (start, middle, end):
        assert {"shades/features/e_recall@1", "few/features/e_recall@1"} <= set(row)
    assert {"shades/knn@20", "few/knn@20"} <= set(end)
    assert not any("knn" in name for name in (*start, *middle))
    assert (run_folder(tmp_path) / "best_shades_features_e_recall@1.pt").is_file()


def test_a_labelled_set_is_judged_on_itself_and_trained_without_labels(source, tmp_path):
    more = ("--dataset", "shades", "--bs", "4", "--language_words", "classnames")
    more += ("--evaluations", "retrieval", "knn", "--no_report")
    scores = main.main(without(flags(source, tmp_path, *more), "--evaluation_datasets"))
    assert 0 <= scores["test/features/e_recall@1"] <= 1
    assert 0 <= scores["shades/knn@20"] <= 1


def test_without_anything_to_evaluate_on_a_run_trains_and_says_so(source, tmp_path, caplog):
    scores = main.main(without(flags(source, tmp_path), "--evaluation_datasets"))
    assert np.isfinite(scores["train/loss"])
    assert not any("recall" in name for name in scores)
    folder = run_folder(tmp_path)
    assert checkpoint.load(folder / "last.pt")["trainer"]["iteration"] == 2
    for text in (caplog.text, (folder / "log.txt").read_text()):
        assert text.count("nothing is evaluated") == 1
        assert "24 images with captions" in text


# ---------------------------------------------------------------------- from one run to another


def labelled(source, save_path, *more):
    """A run of metric learning on the shades, two steps."""
    own = ("--dataset", "shades", "--loss", "multisimilarity", "--language_words", "classnames")
    return flags(source, save_path, *own, "--bs", "4", *more)


def starting(asked, file):
    """The same run from the backbone of a checkpoint."""
    return [*without(asked, "--not_pretrained", 0), "--weights", str(file)]


def backbone_of(embedder):
    return {name: value.clone() for name, value in embedder.backbone.state_dict().items()}


@pytest.mark.parametrize("labels_first", [False, True])
def test_a_run_starts_from_the_backbone_of_the_other_kind(
    source, tmp_path, monkeypatch, labels_first
):
    first, second = flags(source, tmp_path), labelled(source, tmp_path)
    dataset = "drawings"
    if labels_first:
        first, second, dataset = second, first, "shades"
    main.main(first)
    file = tmp_path / dataset / "default_s0" / "last.pt"
    started = []
    build = main.architectures.build

    def spy(args):
        embedder = build(args)
        started.append(backbone_of(embedder))
        return embedder

    monkeypatch.setattr(main.architectures, "build", spy)
    scores = main.main(starting(second, file))
    assert np.isfinite(scores["train/loss"])
    kept = checkpoint.load(file)["embedder"]
    expected = {
        name.removeprefix("backbone."): value
        for name, value in kept.items()
        if name.startswith("backbone.")
    }
    assert expected.keys() == started[0].keys()
    assert all(torch.equal(started[0][name], value) for name, value in expected.items())


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--loss multisimilarity", "compares classes, but --dataset drawings"),
        ("--loss clip --data_sampler class_random", "class_random draws by class, --dataset draw"),
        ("--use_tv_split", "--use_tv_split holds out classes, --dataset drawings has captions"),
        (
            "--patience 2",
            "--patience 2 .* of which --dataset drawings has none; leave --patience 2 out",
        ),
        ("--language_distill_w 1 --language_words pseudolabels", "use --language_words captions"),
        ("--language_distill_w 1 --language_words classnames", "use --language_words captions"),
        ("--loss clip --dataset shades", "reads captions, but --dataset shades has none"),
        ("--loss slip --dataset shades", "use a dataset with captions such as openclipart"),
        ("--data_sampler language_pairs --dataset shades", "shades.train has no captions"),
        ("--data_sampler language_pairs --data_pairs_threshold 1", "leaves 0 of 24;"),
        ("--scheduler warmup_cosine --warmup_steps 2", "--max_steps 2 ends in the warm-up"),
        ("--evaluations knn --evaluation_datasets nowhere", "--evaluation_datasets nowhere: there"),
        ("--loss clip", "has vectors of words and no tokenizer"),
        ("--bs 25", "--bs must be at most 24 for 24 training images; got 25"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_folder(source, tmp_path, more, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        main.main(flags(source, tmp_path / "runs", *more.split()))
    assert not (tmp_path / "runs").exists()


def test_classifiers_need_labelled_images(source, tmp_path):
    asked = flags(source, tmp_path / "runs", "--evaluations", "retrieval", "knn", "fewshot")
    with pytest.raises(ValueError, match="knn fewshot need labels, but --dataset draw"):
        main.main(without(asked, "--evaluation_datasets"))
    assert not (tmp_path / "runs").exists()
