"""Asks once, and briefly, whether a model hub answers."""

import threading
from functools import cache

TIMEOUT = 5.0  # seconds; a network without a route or a resolver would be waited for far longer
ASKED_FOR = "timm/resnet50.tv_in1k"  # a model that the hub has


@cache
def answers() -> bool:
    """Return whether the Hugging Face hub, or the mirror that ``HF_ENDPOINT`` names, answers."""
    import huggingface_hub  # which takes half a second

    answered = threading.Event()

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info(ASKED_FOR, timeout=TIMEOUT)
        except huggingface_hub.errors.RepositoryNotFoundError:
            pass  # a mirror may lack it
        except Exception:  # offline, a proxy, a page that is no hub's: each client has its own
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout
    thread.start()
    thread.join(TIMEOUT)
    return answered.is_set()


def has_cached(repository: str, revision: str | None, *alternatives: tuple[str, ...]) -> bool:
    """Return whether the hub's cache holds one file of each tuple of alternatives."""
    import huggingface_hub

    def cached(file: str) -> bool:
        found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        return isinstance(found, str)

    return all(any(map(cached, files)) for files in alternatives)
