"""`khola chat --server`: the same screen, with a model of a running server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import uvicorn

from khola.serve.access.guard import Guard
from khola.serve.access.keys import Keys
from khola.serve.app import app
from khola.serve.engines.echo import Echo
from khola.serve.run import listen
from khola.serve.service import Service
from khola.settings import Settings
from tests.cli.command import Command


@contextmanager
def running(home: Path, *, offered: tuple[str, ...] = ("echo",), keys: Keys | None = None) -> Iterator[str]:
    """A server on a free port; its address."""
    sockets = listen("127.0.0.1", 0)
    guard = Guard(auth="keys", keys=keys) if keys else Guard()
    guard.listens_on(sockets[0].getsockname()[1])
    service = Service(backend=Echo(offered=offered), settings=Settings(home=home, user_home=home), guard=guard)
    server = uvicorn.Server(uvicorn.Config(app(service), lifespan="off", ws="none", log_config=None))
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    yield f"http://127.0.0.1:{guard.port}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("server")) as address:
        yield address


def test_an_answer_comes_from_the_server(khola_says: Command, loaded: list[object], server: str) -> None:
    done = khola_says("chat", "--server", server, "আমার সোনার বাংলা")
    assert (done.code, done.out, done.err) == (0, "আমার সোনার বাংলা\n", "")
    assert not loaded


def test_json_tells_counts_and_the_form(khola_says: Command, server: str) -> None:
    data = json.loads(khola_says("chat", "echo", "one two", "--server", f"{server}/v1", "--json").out)
    assert (data["model"], data["answer"], data["usage"]["prompt_tokens"], data["usage"]["answer_tokens"]) == ("echo", "one two", 2, 2)
    assert json.loads(khola_says("chat", "echo", "a b", "--server", server, "--json", "--json-object").out)["parsed"] == {}


def test_options_that_were_given_are_sent_and_no_others(khola_says: Command, server: str) -> None:
    assert khola_says("chat", "echo", "one two three", "--server", server, "--max-tokens", "2").out == "one two\n"
    assert khola_says("chat", "echo", "one two three", "--server", server, "--stop", "two").out.strip() == "one"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--context", "100"], 2, "--context is for models that this program loads"),
        (["--regex", "a"], 2, "--regex cannot be asked of a server"),
        (["--temperature", "50"], 2, "temperature"),
        (["--grammar", "no-such-file"], 2, "cannot be read"),
        (["--schema", "no-such-file"], 2, "cannot be read"),
    ],
)
def test_refusals(khola_says: Command, server: str, arguments: list[str], code: int, words: str) -> None:
    done = khola_says("chat", "echo", "hi there", "--server", server, *arguments)
    assert (done.code, done.out) == (code, "") and words in done.err


def test_a_key_is_read_from_the_environment(khola_says: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(tmp_path / "keys.json")
    key = keys.new(("infer",))
    with running(tmp_path, keys=keys) as address:
        refused = khola_says("chat", "echo", "hi you", "--server", address)
        assert refused.code == 5
        assert "KHOLA_KEY" in refused.err
        monkeypatch.setenv("KHOLA_KEY", key)
        assert khola_says("chat", "echo", "hi you", "--server", address).out == "hi you\n"


def test_several_models_are_named(khola_says: Command, tmp_path: Path) -> None:
    with running(tmp_path, offered=("one", "two")) as address:
        done = khola_says("chat", "hi you", "--server", address)
        assert done.code == 2 and "one, two" in done.err
        assert khola_says("chat", "two", "hi you", "--server", address).out == "hi you\n"


def test_a_server_that_is_not_there(khola_says: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = khola_says("chat", "echo", "hi you", "--server", f"127.0.0.1:{port}")
    assert done.code == 6 and "khola serve" in done.err
    assert khola_says("chat", "echo", "hi you", "--server", "ftp://x").code == 2
    assert "switched off" in khola_says("chat", "echo", "hi you", "--server", "http://example.org", "--offline").err


CHUNK = b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (CHUNK, "stopped before the answer was whole"),
        (CHUNK + b"data: [DONE]\n\n", "stopped before the answer was whole"),
        (CHUNK + b'data: {"error":{"message":"the engine died"}}\n\n', "the engine died"),
        (CHUNK + b"data: <html>\n\n", "no JSON object"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(khola_says: Command, sent: bytes, words: str) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Broken) as http:
        thread = threading.Thread(target=http.handle_request)
        thread.start()
        done = khola_says("chat", "echo", "hi you", "--server", f"http://127.0.0.1:{http.server_port}")
        thread.join(5)
    assert done.code != 0 and words in done.err and done.out.startswith("half")
