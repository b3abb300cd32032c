"""The files of an index of images, which commands look for before torch is imported."""

from pathlib import Path

INDEX, PARTS, QUICK = "retrieval_index", "retrieval_parts", "retrieval_embedder"
IMAGES, VECTORS = "images.json", "vectors.faiss"
EARLIER = "index.json"  # of format 1, which has no checksums and decoded large JPEGs differently
SPACES = {
    "embeds": "the embeddings that the run evaluates",
    "words": "those in which a run on captions compares images with words",
}


def has_index(where: Path) -> bool:
    """Return whether ``where`` holds an index, of whatever format."""
    return (where / INDEX).is_dir() or (where / EARLIER).is_file()


def refuse_missing(where: Path) -> None:
    """Raise FileNotFoundError if ``where`` holds no index."""
    if not has_index(where):
        raise FileNotFoundError(
            f"{where} holds no index; make one first: "
            "python -m evaluation.retrieve index FOLDER --checkpoint RUN --index DIR"
        )
