"""The page on which an index is searched by pictures and words: see ``evaluation.serve``.

Pictures of the index are shown as thumbnails that are made in memory, so no file of the indexed
folder is ever served. Browsers are told to load nothing from any other host.
"""

import html
import os
import threading
from abc import ABCMeta
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import fastapi
import gradio as gr
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datasets.readable import fault
from datasets.reading import as_image, open_image
from evaluation.image_index import folder_of
from evaluation.nearest import Hit
from evaluation.queries import Query
from utilities import faults
from utilities.console import printable

SIDE = 320  # px of a thumbnail, at most
KEPT = 256  # thumbnails in memory, 80 MB at most
LOCAL = ("127.0.0.1", "localhost")
REMEDIES = faults.Remedies("free some of it", "start the page with --device cpu", "search again")
# Gradio's own scripts are inline, and evaluate the functions of a page.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
STYLE = Path(__file__).parent / "page" / "search.css"


class Asked(NamedTuple):
    """A query, with all that is needed to show it and to repeat it."""

    query: Query
    weight: float  # of the words beside a picture, in [0, 1]
    indexed: bool  # whether the picture is one of the index


def _file_of(self: Any, uploaded: Any) -> str | None:
    return uploaded.path if uploaded else None


# A gr.Image that gives the file as it was uploaded: its own would be opened and written anew, and
# one that is unreadable would fail with a message of Gradio's. A ``class`` statement would make
# Gradio write a .pyi file beside this one.
Upload: Any = ABCMeta.__new__(
    type(gr.Image), "Upload", (gr.Image,), {"is_template": True, "preprocess": _file_of}
)


class SearchPage:
    """The elements of the page and what happens when they are used.

    Args:
        searcher: ``evaluation.searcher.Searcher``.
        k: images that a query finds.
        no_words: why words cannot be searched for, with the remedy; empty if they can.
    """

    def __init__(self, searcher: Any, k: int, no_words: str = "") -> None:
        self.searcher = searcher
        self.one_at_a_time = threading.Lock()  # searches share the embedder
        self.k = k
        folder = searcher.index.provenance.folder
        with gr.Blocks(
            title=f"Search {printable(folder.name)}",
            fill_width=True,
            analytics_enabled=False,
            delete_cache=(3600, 24 * 3600),  # seconds: look for files of a day ago every hour
        ) as self.blocks:
            self.history = gr.State([])  # of Asked; the last one is shown
            self.found = gr.State([])  # paths of what is shown
            self.chosen = gr.State(None)  # path of the picture in the box, if it is of the index
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self.picture = Upload(
                        label="Picture", sources=["upload", "clipboard"], height=240, buttons=[]
                    )
                    self.words = gr.Textbox(
                        label="Words",
                        placeholder="" if no_words else 'such as "red panda"',
                        info=html.escape(no_words) or None,
                        interactive=not no_words,
                        max_lines=1,
                    )
                    self.weight = gr.Slider(
                        0, 1, 0.5, step=0.05, label="Weight of words", visible=False
                    )
                    self.leave_out = gr.Checkbox(label="Leave out the picture itself")
                    with gr.Row():
                        self.back = gr.Button("Back", interactive=False, min_width=80)
                        self.search = gr.Button("Search", variant="primary", min_width=80)
                with gr.Column(scale=4, min_width=280):
                    self.message = gr.HTML(self.welcome(bool(no_words)), elem_id="told")
                    self.gallery = gr.Gallery(
                        show_label=False, elem_id="found", allow_preview=False, interactive=False,
                        height="auto", object_fit="contain", format="jpeg", buttons=[],
                        container=False, visible=False,
                    )  # fmt: skip
            self._connect()

    def _connect(self) -> None:
        typed = [self.picture, self.words, self.weight, self.chosen, self.leave_out, self.history]
        changed = [
            *(self.picture, self.words, self.weight, self.back, self.message, self.gallery),
            *(self.history, self.found, self.chosen),
        ]
        options: Any = {
            "outputs": changed,
            "api_visibility": "private",
            "show_progress": "minimal",
            "show_progress_on": [self.gallery],
            "queue": False,  # whose stream of events can lose one that ends at once
        }
        gr.on([self.search.click, self.words.submit], self.ask, typed, **options)
        self.picture.upload(self.ask_upload, typed, **options)
        self.gallery.select(self.search_on, [self.found, self.leave_out, self.history], **options)
        self.gallery.select(None, js="() => window.scrollTo({top: 0, behavior: 'smooth'})")
        self.back.click(self.go_back, [self.leave_out, self.history], **options)
        gr.on([self.weight.release, self.leave_out.input], self.ask_again, typed, **options)
        hidden: Any = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        self.picture.clear(lambda: None, None, self.chosen, **hidden)
        gr.on(
            [self.picture.change, self.words.change], self.mixes, [self.picture, self.words],
            self.weight, trigger_mode="always_last", **hidden,
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------
    # Events: each returns the elements that change, with their values
    # ----------------------------------------------------------------------------------------------
    def ask(
        self,
        picture: str | None,
        words: str | None,
        weight: float,
        chosen: Path | None,
        leave_out: bool,
        history: list[Asked],
    ) -> dict[Any, Any]:
        """Search by the picture in the box, the words, or both."""
        image = (chosen or Path(picture)) if picture else None
        query = Query(image, (words or "").strip() or None)
        if not query.image and not query.words:
            return {self.message: _line("Drop a picture or type words first.", "complaint")}
        return self.show(
            [*history, Asked(query, weight, indexed=bool(image and chosen))], leave_out
        )

    def ask_upload(
        self,
        picture: str | None,
        words: str | None,
        weight: float,
        _: Path | None,
        leave_out: bool,
        history: list[Asked],
    ) -> dict[Any, Any]:
        """Search by a picture that was dropped."""
        return {self.chosen: None, **self.ask(picture, words, weight, None, leave_out, history)}

    def ask_again(self, *typed: Any) -> dict[Any, Any]:
        """Search again as an option has changed; before the first query there is nothing to do."""
        picture, words, *_ = typed
        return self.ask(*typed) if picture or (words or "").strip() else {}

    def search_on(
        self, found: list[Path], leave_out: bool, history: list[Asked], event: gr.SelectData
    ) -> dict[Any, Any]:
        """Search for what is nearest to an image that was found."""
        asked = Asked(Query(found[int(event.index)]), 0.5, indexed=True)
        return self.restored(asked, self.show([*history, asked], leave_out))

    def go_back(self, leave_out: bool, history: list[Asked]) -> dict[Any, Any]:
        """Return to the query before this one."""
        if len(history) < 2:
            return {}
        return self.restored(history[-2], self.show(history[:-1], leave_out))

    def mixes(self, picture: str | None, words: str | None) -> Any:
        """Show the weight of the words if they stand beside a picture."""
        return gr.update(visible=bool(picture and (words or "").strip()))

    # ----------------------------------------------------------------------------------------------
    # What is shown
    # ----------------------------------------------------------------------------------------------
    def show(self, history: list[Asked], leave_out: bool) -> dict[Any, Any]:
        """Search by the last query; if that fails, say why, and leave the rest of the page."""
        asked = history[-1]
        image, words = asked.query
        if image and not asked.indexed and fault(image):
            text = f"{printable(image.name)} cannot be read as a picture; try another file"
            return {self.message: _line(text, "complaint"), self.picture: None}
        try:
            with self.one_at_a_time, faults.explained(REMEDIES):
                self.searcher.refresh()
                [(_, hits)] = self.searcher.find(
                    *([image] if image else [], [words] if words else []),
                    weight=asked.weight,
                    k=self.k,
                    leave_out=leave_out and bool(image),
                    indexed=asked.indexed,
                )
        except (OSError, ValueError) as error:
            return {self.message: _line(str(error).removeprefix("--words "), "complaint")}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pictures = list(pool.map(thumbnail, [hit.path for hit in hits]))
        n_gone = sum(picture is None for picture in pictures)
        tiles = [
            (picture or blank(), self.caption(hit, gone=not picture))
            for hit, picture in zip(hits, pictures, strict=True)
        ]
        return {
            self.message: self.headline(asked, hits) + self.vanished(n_gone),
            self.gallery: gr.update(value=tiles, visible=True),
            self.found: [hit.path for hit in hits],
            self.history: history,
            self.back: gr.update(interactive=len(history) > 1),
        }

    def restored(self, asked: Asked, shown: dict[Any, Any]) -> dict[Any, Any]:
        """Add the query to what is shown, in its boxes, unless the search failed."""
        if self.gallery not in shown:
            return shown
        image = asked.query.image
        picture: Any = str(image) if image else None
        if image and asked.indexed:
            picture = thumbnail(image) or blank()
        boxes = {
            self.picture: picture,
            self.words: asked.query.words or "",
            self.weight: asked.weight,
            self.chosen: image if asked.indexed else None,
        }
        return shown | boxes

    def caption(self, hit: Hit, *, gone: bool) -> str:
        folder = folder_of(hit.path, self.searcher.index.provenance.folder)
        lines = [printable(hit.path.name) + ("  (gone)" if gone else "")]
        return "\n".join([*lines, f"{hit.similarity:.3f}  {printable(folder)}"])

    def welcome(self, pictures_alone: bool) -> str:
        folder, n = self.searcher.index.provenance.folder, len(self.searcher.index.embedded.files)
        how = "Drop a picture" if pictures_alone else "Drop a picture or type words"
        text = f"{n:,} images of {printable(folder.name)}. {how} to see the nearest"
        return _line(f"{text}; click one to search on.")

    def headline(self, asked: Asked, hits: Sequence[Hit]) -> str:
        root = self.searcher.index.provenance.folder
        parts = []
        if image := asked.query.image:
            folder = folder_of(image, root) if asked.indexed else ""
            parts.append(printable(image.name) + (f" in {printable(folder)}" if folder else ""))
        if asked.query.words:
            parts.append(f"“{printable(asked.query.words)}”")
        text = " + ".join(parts) + (f" (weight {asked.weight:g})" if len(parts) == 2 else "")
        n = len(self.searcher.index.embedded.files)
        if not hits:
            return _line(f"No other image is in the index than {text}")
        return _line(f"The {len(hits)} nearest of {n:,} images to {text}")

    def vanished(self, n: int) -> str:
        if not n:
            return ""
        text = f"{n} of these cannot be read any more; index the folder again to drop what is gone."
        return _line(text, "complaint")


def _line(text: str, kind: str = "told") -> str:
    """Return a text as HTML; file names and words may hold anything."""
    return f'<p class="{kind}" role="status">{html.escape(text)}</p>'


def thumbnail(path: Path) -> Image.Image | None:
    """Return an image, at most ``SIDE`` px high and wide; None if it cannot be read any more."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _thumbnail(path, status.st_size, status.st_mtime_ns)


@lru_cache(KEPT)
def _thumbnail(path: Path, size: int, mtime_ns: int) -> Image.Image | None:
    try:
        image = open_image(path)
        values = image.pixels(max(1, max(image.size) // (2 * SIDE))).values
    except OSError:
        return None
    picture = as_image(values)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def blank() -> Image.Image:
    """Return what stands for an image that cannot be read any more."""
    return Image.new("RGB", (SIDE, SIDE), "#dddddd")


class OwnHostAlone:
    """Forbids browsers to load anything from other hosts, whatever a page holds."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message.get("headers", ()), policy]
            await send(message)

        await self.app(scope, receive, with_policy)


def application(page: SearchPage, host: str) -> fastapi.FastAPI:
    """Return the web application of a page that listens on ``host``."""
    app = fastapi.FastAPI(openapi_url=None)
    if host in LOCAL:  # so that no other site can reach the page by a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL])
    app.add_middleware(OwnHostAlone)
    return gr.mount_gradio_app(
        *(app, page.blocks, "/"),
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        max_file_size="1gb",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css_paths=STYLE,
    )
