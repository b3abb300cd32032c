"""The search page finds what the command finds, says what is wrong, and serves nothing else."""

import contextlib
import html
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import gradio as gr
import numpy as np
import pytest
import uvicorn
from PIL import Image

from evaluation import indexing, search_page, serve
from evaluation.search_models import load_model
from evaluation.search_page import SearchPage
from evaluation.searcher import Searcher
from tests.browser import started_browser
from tests.evaluation.test_retrieve import draw, run_command, save_run
from tests.evaluation.test_retrieve_words import KNOWN, write_map
from tests.runs import ROOT

K = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a map, and an index of twelve pictures in two folders and above them."""
    place = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    vectors = [f"{word} {' '.join(map(str, rng.normal(size=6)))}\n" for word in KNOWN]
    (place / "words.txt").write_text("".join(vectors))
    save_run(place / "run")
    write_map(place, place / "run" / "last.words.safetensors")
    for seed in range(12):
        draw(place / "photos" / ("", "cats", "dogs/old")[seed % 3] / f"{seed}.png", seed)
    draw(place / "asked.png", 50)
    index(place, place / "run")
    return place


def index(place, run):
    indexing.build_index(place / "photos", load_model(run), place / "index", workers=0)


@pytest.fixture
def place(made, tmp_path):
    """A copy of it, which a test may change. The index knows its folder by its name."""
    for name in ("run", "photos", "words.txt", "asked.png"):
        source = made / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    index(tmp_path, tmp_path / "run")
    return tmp_path


@pytest.fixture(scope="module")
def page(made):
    return SearchPage(Searcher(made / "index"), K)


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    pass


def ask(page, picture=None, words="", weight=0.5, chosen=None, leave_out=False, history=()):
    shown = page.ask(picture and str(picture), words, weight, chosen, leave_out, [*history])
    return Shown(page, shown)


class Shown:
    """What an event changes on the page."""

    def __init__(self, page, values):
        self.values = values
        self.text = html.unescape(re.sub(r"<[^>]+>", " ", values.get(page.message, "")))
        self.failed = "complaint" in values.get(page.message, "")
        self.history = values.get(page.history)
        self.paths = values.get(page.found)
        tiles = values[page.gallery]["value"] if page.gallery in values else []
        self.captions = [caption for _, caption in tiles]
        self.pictures = [picture for picture, _ in tiles]


def by_command(capsys, place, *more):
    """The paths and the captions of what the command finds."""
    out = run_command(capsys, "query", *more, "--index", place / "index", "--k", K, "--json")
    [query] = json.loads(out)
    hits = [(Path(hit["path"]), hit["similarity"]) for hit in query["neighbours"]]
    return [path for path, _ in hits], [caption(place, *hit) for hit in hits]


def caption(place, path, cosine):
    folder = path.relative_to(place / "photos").parent.as_posix()
    return f"{path.name}\n{cosine:.3f}  {'' if folder == '.' else folder}"


@pytest.mark.parametrize(
    ("picture", "words", "weight"),
    [("asked.png", "", 0.5), (None, "red fox", 0.5), ("asked.png", "snow", 0.3)],
)
def test_the_page_finds_what_the_command_finds(made, page, capsys, picture, words, weight):
    shown = ask(page, picture and made / picture, words, weight)
    command = [made / picture] if picture else []
    command += ["--words", words] if words else []
    command += ["--words_weight", weight] if picture and words else []
    assert (shown.paths, shown.captions) == by_command(capsys, made, *command)
    assert len(shown.paths) == K and not shown.failed
    assert f"The {K} nearest of 12 images to" in shown.text
    assert all(f"“{text}”" in shown.text for text in [words] if text)
    assert ("(weight 0.3)" in shown.text) == (weight == 0.3)


def test_a_result_is_searched_for_and_a_way_leads_back(made, page, capsys, monkeypatch):
    first = ask(page, made / "asked.png", "snow", 0.3)
    monkeypatch.setattr("evaluation.indexing.embed_queries", None)  # an index has it embedded
    clicked = first.paths[3]
    event = SimpleNamespace(index=3)
    values = page.search_on(first.paths, False, first.history, event)
    second = Shown(page, values)
    monkeypatch.undo()
    assert (second.paths, second.captions) == by_command(capsys, made, clicked)
    assert second.captions[0].splitlines()[1].startswith("1.000")
    assert clicked.name in second.text and "snow" not in second.text
    assert values[page.words] == "" and values[page.chosen] == clicked
    assert values[page.picture].size == (48, 40)  # a thumbnail, not the file
    assert values[page.back]["interactive"]

    mixed = ask(page, "thumbnail.webp", "fox", chosen=clicked, history=second.history)
    assert mixed.paths == by_command(capsys, made, clicked, "--words", "fox")[0]

    values = page.go_back(False, second.history)
    third = Shown(page, values)
    assert (third.paths, third.captions, third.text) == (first.paths, first.captions, first.text)
    assert (values[page.words], values[page.weight], values[page.chosen]) == ("snow", 0.3, None)
    assert values[page.picture] == str(made / "asked.png")
    assert not values[page.back]["interactive"] and len(third.history) == 1
    assert page.go_back(False, third.history) == {}


def test_a_new_picture_takes_the_place_of_a_chosen_one(made, page, capsys):
    chosen = made / "photos" / "0.png"
    values = page.ask_upload(str(made / "asked.png"), "", 0.5, chosen, False, [])
    assert values[page.chosen] is None
    assert Shown(page, values).paths == by_command(capsys, made, made / "asked.png")[0]


def test_the_query_can_be_left_out(made, page, capsys):
    asked = made / "photos" / "cats" / "1.png"
    whole = ask(page, asked)
    assert whole.paths[0] == asked
    left = ask(page, asked, leave_out=True)
    assert (left.paths, left.captions) == by_command(capsys, made, asked, "--leave_out_query")
    assert left.paths[:-1] == whole.paths[1:] and len(left.paths) == K
    assert ask(page, None, "fox", leave_out=True).paths == ask(page, None, "fox").paths


def test_weight_and_options_count_at_once_but_search_for_nothing(made, page):
    assert page.ask_again(None, " ", 0.5, None, True, []) == {}
    values = page.ask_again(str(made / "asked.png"), "", 0.5, None, True, [])
    assert len(Shown(page, values).paths) == K
    assert [page.mixes(*pair)["visible"] for pair in ((None, "x"), ("a", " "), ("a", "x"))] == [
        *(False, False, True),
    ]


# --------------------------------------------------------------------------------------------------
# What cannot be answered
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        (None, "  ", "Drop a picture or type words first."),
        (b"no image", "", "notes.png cannot be read as a picture; try another file"),
        (b"", "fox", "notes.png cannot be read as a picture"),
        ("cut", "", "notes.png cannot be read as a picture"),
        (None, "zebra", "'zebra': the text encoder"),
    ],
)
def test_the_page_says_what_is_wrong_and_stays(made, page, tmp_path, content, words, says):
    file = tmp_path / "notes.png"
    if content == "cut":
        content = (made / "asked.png").read_bytes()[:-300]
    if content is not None:
        file.write_bytes(content)
    values = page.ask(None if content is None else str(file), words, 0.5, None, False, [])
    shown = Shown(page, values)
    assert shown.failed and says in shown.text and str(tmp_path) not in shown.text
    emptied = {page.picture: None} if content is not None else {}
    assert values == {page.message: values[page.message], **emptied}


def test_an_image_that_vanished_is_shown_as_gone_and_can_be_searched_for(place):
    page = SearchPage(Searcher(place / "index"), K)
    clicked = place / "photos" / "cats" / "4.png"
    before = ask(page, clicked)
    clicked.unlink()
    values = page.search_on([clicked], False, before.history, SimpleNamespace(index=0))
    after = Shown(page, values)
    assert after.paths == before.paths
    assert after.captions[0] == "4.png  (gone)\n1.000  cats" and after.failed
    assert "1 of these cannot be read any more; index the folder again" in after.text
    assert len(np.unique(after.pictures[0])) == 1 and len(np.unique(after.pictures[1])) > 1

    index(place, place / "run")  # which drops it
    values = page.search_on([clicked], False, before.history, SimpleNamespace(index=0))
    assert {*values} == {page.message}
    assert "4.png is no longer in the index" in Shown(page, values).text


def test_an_index_that_is_replaced_is_read_again_or_refused(place):
    page = SearchPage(Searcher(place / "index"), K)
    new = place / "photos" / "new.png"
    shutil.copy(place / "asked.png", new)
    assert new not in ask(page, place / "asked.png").paths
    index(place, place / "run")
    shown = ask(page, place / "asked.png")
    assert shown.paths[0] == new and "of 13 images" in shown.text

    shutil.rmtree(place / "index")
    assert "holds no index; make one first" in ask(page, place / "asked.png").text
    index(place, save_run(place / "other", seed=1))
    assert "embeds differently" in ask(page, place / "asked.png").text
    shutil.rmtree(place / "index")
    index(place, place / "run")
    assert not ask(page, place / "asked.png").failed


def test_names_and_words_are_text_whatever_they_hold(place):
    hostile = "<img src=x onerror=alert(1)>&.png"
    draw(place / "photos" / "<b>" / hostile, 70)
    index(place, place / "run")
    page = SearchPage(Searcher(place / "index"), K)
    path = place / "photos" / "<b>" / hostile
    values = page.search_on([path], False, [], SimpleNamespace(index=0))
    assert "<img" not in values[page.message] and f"{hostile} in <b>" in Shown(page, values).text
    message = page.ask(None, "<script>fox</script>", 0.5, None, False, [])[page.message]
    assert "<script" not in message and "&lt;script" in message


def test_without_a_map_the_words_box_says_how_to_make_one(made):
    page = SearchPage(Searcher(made / "index"), K, "there is no <map>; make it: python -m x")
    assert page.words.interactive is False and "no &lt;map&gt;; make it" in page.words.info
    assert "Drop a picture to see" in page.message.value
    page = SearchPage(Searcher(made / "index"), K)
    assert page.words.interactive is True and page.words.info is None
    assert "Drop a picture or type words to see" in page.message.value


def test_thumbnails_are_small_and_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 2000), "red").save(tmp_path / "turned.jpg", exif=exif)
    picture = search_page.thumbnail(tmp_path / "turned.jpg")
    assert picture.height == search_page.SIDE and picture.width == search_page.SIDE * 2 // 3
    Image.new("RGB", (300, 300), "blue").save(tmp_path / "turned.jpg")
    assert search_page.thumbnail(tmp_path / "turned.jpg").size == (300, 300)  # the file changed
    assert search_page.thumbnail(tmp_path / "absent.jpg") is None


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        serve.main([*map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--k", 0), "--k must be at least 1; got 0"),
        (("--port", 65536), "--port must be in [0, 65535]; got 65536"),
        (("--index", "absent"), "absent holds no index; make one first"),
        (("--checkpoint", "other"), "Give the checkpoint that made it"),
        (("--checkpoint", "absent"), "checkpoint absent does not exist"),
        (("--map", "absent"), "there is no map from words absent"),
        (("--language_model", "absent.txt"), "absent.txt"),
        (("--host", "192.0.2.1"), "--host 192.0.2.1 --port 0 cannot be listened on"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_page_that_cannot_be_served(made, tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.setattr(uvicorn.Server, "run", None)
    if "other" in words:
        words = ("--checkpoint", save_run(tmp_path / "other", seed=1))
    assert says in refusal(capsys, "--index", made / "index", "--port", 0, *words)


def test_without_gradio_one_sentence_says_how_to_install_it(capsys, monkeypatch):
    """Before the index is looked at."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name)
    )
    told = refusal(capsys, "--index", "absent").splitlines()[-1]
    assert told.endswith("error: the search page needs Gradio; install it: "
                         "bash requirements.sh --demo")  # fmt: skip


def test_a_port_is_free_or_refused(capsys, made):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refusal(capsys, "--index", made / "index", "--port", port)
        assert f"--port {port} cannot be listened on" in told and "leave --port out" in told
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serve.serve_flags, "PORT", port)
            with serve.listen("127.0.0.1", None) as other:
                assert other.getsockname()[1] not in (0, port)
    with serve.listen("127.0.0.1", 0) as free:
        assert free.getsockname()[0] == "127.0.0.1"


# --------------------------------------------------------------------------------------------------
# Served
# --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def url(made):
    """The URL of a page that runs in a thread, by the command line."""
    servers = []

    class Noted(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    out = io.StringIO()
    words = ["--index", made / "index", "--k", K, "--port", 0, "--device", "cpu"]
    thread = threading.Thread(target=serve.main, args=([*map(str, words)],), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", Noted)
        patch.setenv("GRADIO_ALLOWED_PATHS", str(made))  # which opens nothing
        for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
            patch.setenv(name, "")
        with contextlib.redirect_stdout(out):
            thread.start()
            until = time.monotonic() + 60
            while not (servers and servers[0].started):
                assert thread.is_alive() and time.monotonic() < until
                time.sleep(0.02)
        yield out.getvalue().strip()
        servers[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def fetch(url, path, **headers):
    """Return the response to a path that is sent as it is, and its content."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    with contextlib.closing(connection):
        return response, response.read()


def test_no_file_is_served(made, url, tmp_path):
    """Neither the pictures of the index, nor the index, nor what a link or dots lead to."""
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    (tmp_path / "link").symlink_to(made / "photos")
    uploads = Path(gr.utils.get_upload_folder())
    assert uploads.is_dir()
    photo = made / "photos" / "0.png"
    for file in (
        *(photo, made / "index", made / "words.txt", "/etc/passwd", tmp_path / "link" / "0.png"),
        *(f"{uploads}/../../../../../../etc/passwd", f"{uploads}/..%2f..%2fetc%2fpasswd"),
        *("photos/0.png", "README.md", "evaluation/serve.py"),
    ):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"):
            response, content = fetch(url, prefix + quote(str(file), safe="/%"))
            assert response.status >= 400, (prefix, file)
            assert b"root:" not in content and content[:4] != b"\x89PNG"
    assert fetch(url, "/")[0].status == 200


def test_browsers_are_told_to_stay_on_this_host(url):
    response, _ = fetch(url, "/")
    assert "default-src 'self' " in response.headers["content-security-policy"]
    assert "http" not in response.headers["content-security-policy"]
    assert fetch(url, "/", Host="evil.example")[0].status == 400  # a name that leads here
    for path in ("/docs", "/openapi.json", "/gradio_api/startup-events"):
        assert b"swagger" not in fetch(url, path)[1].lower()


def test_uploads_are_deleted_as_it_stops(made, tmp_path):
    """In a process of its own, which another program stops; Ctrl-C takes the same path."""
    words = ["--index", made / "index", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "evaluation.serve", *map(str, words)],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        url = process.stdout.readline().strip()
        assert fetch(url, "/")[0].status == 200
        assert list(tmp_path.glob("search_page_*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not list(tmp_path.glob("search_page_*"))


NAMES = "[...document.querySelectorAll('#found .caption-label')].map(one => one.textContent.trim())"
TOLD = "(document.querySelector('#told')?.innerText ?? '')"
DROP = "input[type=file]"
BOX = "textarea, input[type=text]"


def test_a_browser_searches_by_a_picture_by_words_and_on(made, url, tmp_path, capsys):
    def shown(text, captions):
        """Wait until the page tells the text, and see what it shows."""
        browser.wait_for(f"{TOLD}.includes({json.dumps(text)})")
        browser.wait_for(f"{NAMES}.join('|') === {json.dumps('|'.join(captions))}")
        browser.wait_for("[...document.querySelectorAll('#found img')].every(i => i.naturalWidth)")

    def expected(*query):
        return [one.strip() for one in by_command(capsys, made, *query)[1]]

    click = "document.querySelectorAll('#found button')[{}].click()"
    with started_browser(tmp_path / "profile") as browser:
        browser.open(url, 390)
        browser.wait_for(f"{TOLD}.includes('12 images of photos')")
        browser.upload(DROP, made / "asked.png")
        shown("images to asked.png", expected(made / "asked.png"))
        browser.type(BOX, "red fox")
        shown("asked.png + “red fox”", expected(made / "asked.png", "--words", "red fox"))
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390

        # The second result, and then what is in its place.
        paths = [by_command(capsys, made, made / "asked.png", "--words", "red fox")[0][1]]
        paths += [by_command(capsys, made, paths[0])[0][1]]
        browser.evaluate(click.format(1))
        shown(f"images to {paths[0].name}", expected(paths[0]))
        assert browser.evaluate(f"document.querySelector({BOX!r}).value") == ""
        browser.evaluate(click.format(1))
        shown(f"images to {paths[1].name}", expected(paths[1]))
        browser.evaluate(
            "[...document.querySelectorAll('button')].find(b => b.innerText === 'Back').click()"
        )
        shown(f"images to {paths[0].name}", expected(paths[0]))

        (tmp_path / "broken.png").write_bytes(b"no image")
        browser.evaluate("document.querySelector('[aria-label=\"Remove Image\"]').click()")
        browser.wait_for(f"!!document.querySelector({DROP!r})")
        browser.upload(DROP, tmp_path / "broken.png")
        shown("broken.png cannot be read as a picture", expected(paths[0]))

        requests = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in requests]
        hosts = {urlsplit(one).netloc for one in urls if not one.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(url).netloc}
        assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
        browser.evaluate("new Image().src = 'http://192.0.2.1/x.png'")
        refused = [e for e in browser.complaints() if "Content Security Policy" in json.dumps(e)]
        assert refused
