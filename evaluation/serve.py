"""Search a folder of images on a page in the browser.

    bash requirements.sh --demo
    python -m evaluation.retrieve index FOLDER --checkpoint RUN --index DIR
    python -m evaluation.serve --index DIR

Drop a picture or type words to see the nearest images; click one to search on. Only this machine
can open the page, and nothing is sent anywhere. Words need a map or a text side, as for
``python -m evaluation.retrieve query --words``.
"""

from evaluation import serve_flags
from utilities import startup

if __name__ == "__main__":  # a wrong flag or a missing file need not wait for torch
    startup.begin()
    serve_flags.parse()

import argparse
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from utilities import faults, log

LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM; its URL goes to stdout, everything else to stderr."""
    parser, args = serve_flags.parse(argv)
    log.set_up()
    with suppress(ValueError):  # in a thread, as in tests
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # deletes the uploads, too
    with (
        faults.reported(parser.error),
        listen(args.host, args.port) as listener,
        tempfile.TemporaryDirectory(prefix="search_page_") as uploads,
    ):
        serve(args, listener, Path(uploads))


def listen(host: str, port: int | None) -> socket.socket:
    """Return a listening socket; for no port the usual one, or a free one if it is taken.

    Raises:
        OSError: the port is taken, or the host is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port is None:
        with suppress(OSError):
            return socket.create_server((host, serve_flags.PORT), family=family)
    try:
        return socket.create_server((host, port or 0), family=family)
    except OSError as error:
        raise OSError(
            f"--host {host} --port {port or 0} cannot be listened on ({error.strerror or error}); "
            "leave --port out for a free one"
        ) from error


def serve(args: argparse.Namespace, listener: socket.socket, uploads: Path) -> None:
    """Load the index and its model, and answer on a socket until Ctrl-C.

    Args:
        uploads: an empty folder for the pictures that are dropped.

    Raises:
        FileNotFoundError, ValueError: as a query by ``evaluation.retrieve`` would be refused.
    """
    # Gradio reads these as it is imported. Others of its variables could open folders or publish
    # the page: the flags alone decide that.
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads)}

    import uvicorn

    from evaluation.search_page import LOCAL, SearchPage, application
    from evaluation.searcher import Searcher

    searcher = Searcher(args.index, args.checkpoint, args.map, args.language_model, args.device)
    _ = searcher.quick_embedder or searcher.model  # an index of another model is refused now
    no_words = ""
    try:
        _ = searcher.read_texts
    except (OSError, ValueError) as error:
        if args.map or args.language_model:
            raise
        no_words = str(error).removeprefix("--words: ")
        LOG.warning("the page searches by pictures alone: %s", no_words)
    app = application(SearchPage(searcher, args.k, no_words), args.host)
    if args.host not in LOCAL:
        LOG.warning("--host %s: whoever reaches this address sees the pictures", args.host)
    n, folder = len(searcher.index.embedded.files), searcher.index.provenance.folder
    LOG.info(
        "%s images of %s, embedded by %s; stop with Ctrl-C",
        *(f"{n:,}", folder, searcher.run),
    )
    print(url_of(args.host, listener.getsockname()[1]), flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def url_of(host: str, port: int) -> str:
    """Return the address to open in a browser of this machine."""
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    main()
