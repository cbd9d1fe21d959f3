"""The page's addresses as the page asks them: conversations, characters, catalogue, pulls; each caller sees its own rows alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from khola.errors import Cancelled, NoSource
from khola.fetch.progress import Progress
from khola.serve.access.guard import Guard
from khola.serve.access.keys import Keys
from khola.serve.app import app
from khola.serve.characters.card import character as card_of
from khola.serve.characters.card import plain_picture, read_png, write_png
from khola.serve.dialects.page.persons import samples
from khola.serve.engines.echo import Echo
from khola.serve.pulls import Pulls
from khola.serve.service import Service
from khola.settings import Settings


class Site:
    """A server in this process, and who asks it."""

    def __init__(self, home: Path) -> None:
        self.keys = Keys(home / "keys.json")
        self.guard = Guard(auth="local", keys=self.keys)
        self.app = app(Service(backend=Echo(), settings=Settings(home=home, user_home=home), guard=self.guard))

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str = "", raw: bytes = b"", kind: str = "application/json"
    ) -> httpx2.Response:
        async def one() -> httpx2.Response:
            transport = httpx2.ASGITransport(self.app)
            headers = {"authorization": f"Bearer {key}"} if key else {}
            content = raw or (json.dumps(body).encode() if body is not None else None)
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:11500") as client:
                return await client.request(
                    method, path, content=content, headers={**headers, **({"content-type": kind} if content else {})}
                )

        return asyncio.run(one())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_conversation_from_its_begin_to_its_end(site: Site) -> None:
    key = site.ask("POST", "/page/conversations", {"title": "t", "model": "echo"}).json()["id"]
    path = f"/page/conversations/{key}"
    asked = site.ask("POST", f"{path}/messages", {"role": "user", "content": "নদী"}).json()
    said = site.ask("POST", f"{path}/messages", {"role": "assistant", "content": "", "parent": asked["id"]}).json()
    site.ask("PUT", f"{path}/messages/{said['id']}", {"role": "assistant", "content": "পদ্মা", "facts": {"answer_tokens": 2}})
    whole = site.ask("GET", path).json()
    assert [message["content"] for message in whole["messages"]] == ["নদী", "পদ্মা"] and whole["conversation"]["leaf"] == said["id"]
    assert site.ask("POST", f"{path}/prompt", {"leaf": asked["id"], "model": "echo"}).json() == {
        "messages": [{"role": "user", "content": "নদী"}],
        "summarised": 0,
    }
    markdown = site.ask("GET", f"{path}/export?form=markdown")
    assert "## user\n\nনদী" in markdown.text and "attachment" in markdown.headers["content-disposition"]
    assert site.ask("GET", f"{path}/export").json()["messages"] == whole["messages"]
    assert site.ask("GET", f"{path}/export?form=pdf").status_code == 400
    assert site.ask("PATCH", path, {"title": "new"}).json()["title"] == "new"
    assert site.ask("PATCH", path, {"owner": "me"}).json()["error"]["code"] == "unknown_option"
    assert site.ask("DELETE", path).json() == {"removed": True} and site.ask("GET", path).status_code == 404


def test_every_address_hides_the_rows_of_others(site: Site) -> None:
    other = site.keys.new(("infer", "admin"))
    key = site.ask("POST", "/page/conversations", {"title": "mine"}).json()["id"]
    message = site.ask("POST", f"/page/conversations/{key}/messages", {"role": "assistant", "content": "x"}).json()["id"]
    who = site.ask("GET", "/page/characters").json()[0]["id"]
    talk, person = f"/page/conversations/{key}", f"/page/characters/{who}"
    asked: list[tuple[str, str, Any]] = [
        ("GET", talk, None), ("PATCH", talk, {"title": "x"}), ("DELETE", talk, None), ("GET", f"{talk}/export", None),
        ("POST", f"{talk}/messages", {"role": "user", "content": "x"}), ("POST", f"{talk}/prompt", {"leaf": message, "model": "echo"}),
        ("PUT", f"{talk}/messages/{message}", {"role": "assistant", "content": "x"}), ("POST", "/page/conversations", {"character": who}),
        ("GET", person, None), ("PUT", person, {"data": {"name": "x"}}), ("DELETE", person, None), ("GET", f"{person}/export", None),
        ("GET", f"{person}/portrait", None),
    ]  # fmt: skip
    for method, path, body in asked:
        answer = site.ask(method, path, body, key=other)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), (method, path)
    assert site.ask("GET", "/page/conversations", key=other).json() == []
    assert site.ask("GET", talk).json()["messages"][0]["content"] == "x"


def test_the_key_of_the_page_is_the_user_of_this_machine(site: Site) -> None:
    key = site.ask("POST", "/page/conversations", {"title": "mine"}).json()["id"]
    assert [found["id"] for found in site.ask("GET", "/page/conversations", key=site.guard.page_key).json()] == [key]


def test_errors_are_told_in_both_languages(site: Site) -> None:
    error = site.ask("GET", "/page/conversations/none").json()["error"]
    assert error["message"] == "there is no 'none' here" and error["message_bn"] == "এখানে 'none' বলে কিছু নেই"


def test_characters_come_in_and_go_out(site: Site) -> None:
    assert {found["data"]["name"] for found in site.ask("GET", "/page/characters").json()} == {"রিনা", "Marlow"}
    picture = write_png(card_of({"name": "Nabil", "first_mes": "Hello {{user}}", "extensions": {"a": 1}}), None)
    taken = site.ask("POST", "/page/characters", raw=picture, kind="image/png").json()
    assert taken["pictured"] and taken["data"]["name"] == "Nabil"
    path = f"/page/characters/{taken['id']}"
    assert site.ask("GET", f"{path}/portrait").content == plain_picture("Nabil")
    assert site.ask("PUT", path, {"data": {**taken["data"], "tags": ["x"]}}).json()["data"]["tags"] == ["x"]
    assert read_png(site.ask("GET", f"{path}/export?form=png").content)[0].data["extensions"] == {"a": 1}
    assert site.ask("GET", f"{path}/export?form=v2").json()["spec"] == "chara_card_v2"
    assert site.ask("GET", f"{path}/export?form=gif").status_code == 400
    site.ask("PUT", "/page/persona", {"name": "Anna"})
    talk = site.ask("POST", "/page/conversations", {"character": taken["id"]}).json()
    assert talk["memory"] and site.ask("GET", f"/page/conversations/{talk['id']}").json()["messages"][0]["content"] == "Hello Anna"
    prompt = site.ask("POST", f"/page/conversations/{talk['id']}/prompt", {"leaf": talk["leaf"], "model": "echo"}).json()
    assert "Nabil" in prompt["messages"][0]["content"] and prompt["messages"][1] == {"role": "assistant", "content": "Hello Anna"}
    site.ask("DELETE", path)
    for known in site.ask("GET", "/page/characters").json():
        site.ask("DELETE", f"/page/characters/{known['id']}")
    assert site.ask("GET", "/page/characters").json() == [], "samples come once"
    refused = site.ask("POST", "/page/characters", raw=picture[:-5], kind="image/png")
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "truncated_file"


def test_samples_are_whole_and_ours() -> None:
    for who in samples():
        assert who.text("first_mes") and who.text("mes_example") and who.book.entries and who.data["extensions"]["khola"]["licence"]


@pytest.mark.slow
def test_the_catalogue_tells_cards_licences_and_models(site: Site) -> None:
    found = site.ask("GET", "/page/catalogue").json()
    cards = {card["name"]: card for card in found["cards"]}
    assert cards["qwq-32b"]["parents"] == [{"name": "qwen2.5-32b", "how": "fine-tuned"}]
    assert all(key in found["licences"] for card in found["cards"] for key in card["licences"])
    told = {name: (cards[name]["inherited"], cards[name]["forbidden_by"], cards[name]["name_wanted"]) for name in cards}
    assert told["deepseek-r1-distill-llama-8b"] == ([], [], "Llama") and told["llama-3.2-1b"] == ([], [], "")
    assert told["deepseek-r1-distill-qwen-7b"] == ([], [], "") and all(not forbidden for _, forbidden, _ in told.values())
    assert all(key in found["licences"] for inherited, _, _ in told.values() for key in inherited)
    assert found["models"][0]["name"] == "echo" and found["here"] == []
    plan = site.ask("GET", "/page/catalogue/smollm2-135m-instruct/fit").json()
    assert plan["fits"] and plan["choices"][0]["file_bytes"] > 1e7
    assert site.ask("GET", "/page/catalogue/..%2F..%2Fetc/fit").status_code == 404


def test_only_a_key_may_pull_load_and_unload(site: Site) -> None:
    for method, path in (
        ("POST", "/page/pulls"),
        ("DELETE", "/page/pulls/x"),
        ("POST", "/page/models/load"),
        ("POST", "/page/models/unload"),
    ):
        assert site.ask(method, path, {"model": "echo"} if method == "POST" else None).status_code in (401, 403)
    loaded = site.ask("POST", "/page/models/unload", {"model": "echo"}, key=site.guard.page_key)
    assert loaded.json()["state"] == "unloaded"


def ended(pulls: Pulls) -> Any:
    """Wait until a pull has ended."""
    for _ in range(400):
        if pulls.all()[0].state != "running":
            break
        time.sleep(0.005)
    return pulls.all()[0]


def pull_of(steps: int = 3, error: Exception | None = None) -> Callable[[str, Callable[[Progress], None]], None]:
    def fetch(model: str, tell: Callable[[Progress], None]) -> None:
        for step in range(steps):
            tell(Progress(file="f", stage="fetch", done=step, total=steps, speed=1.0, left_s=1.0))
            time.sleep(0.005)
        if error:
            raise error

    return fetch


def test_pulls_end_well_or_say_why_not() -> None:
    done, failed, long = Pulls(pull_of()), Pulls(pull_of(error=NoSource("nothing answers"))), Pulls(pull_of(steps=10_000))
    for pulls in (done, failed, long):
        pulls.start("m")
    long.start("n")
    with pytest.raises(Exception, match="2 models"):
        long.start("o")
    long.cancel("m")
    long.cancel("n")
    assert (ended(done).state, ended(done).done) == ("done", 3)
    assert (ended(failed).state, ended(failed).error) == ("failed", "nothing answers")
    assert ended(long).state == "cancelled"
    assert Cancelled.http_status == 499


def test_pulls_are_told_as_events(site: Site) -> None:
    text = site.ask("GET", "/page/pulls/events").text
    assert text == "event: end\ndata: {}\n\n"
