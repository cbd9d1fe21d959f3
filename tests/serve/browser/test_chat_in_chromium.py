"""Chats in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.browser]

Opened = Callable[..., Any]
Shot = Callable[[Any, str], None]
COMPOSER = "#composer"
ANSWERS = "article.message:not(.mine)"


def say(page: Any, text: str) -> None:
    """Write and send, by keyboard."""
    page.fill(COMPOSER, text)
    page.locator(".composer button:enabled").wait_for()
    page.press(COMPOSER, "Enter")


def answered(page: Any, text: str) -> Any:
    """Wait for an answer that is whole and has this text."""
    found = page.locator(f"{ANSWERS}[aria-busy=false]", has_text=text).last
    found.wait_for()
    return found


def test_a_first_visit_in_english_and_bengali(opened: Opened, shot: Shot) -> None:
    page = opened()
    page.get_by_role("heading", name="What shall we talk about?").wait_for()
    assert page.locator("html").get_attribute("lang") == "en"
    assert "key=" not in page.url
    shot(page, "first-visit-en")
    page.get_by_role("button", name="বাংলা").click()
    page.get_by_role("heading", name="কী নিয়ে কথা বলব?").wait_for()
    assert page.locator("html").get_attribute("lang") == "bn"
    assert page.evaluate("document.fonts.check('1em \"Noto Sans Bengali\"', 'আ')")
    shot(page, "first-visit-bn")
    page.reload()
    page.get_by_role("heading", name="কী নিয়ে কথা বলব?").wait_for()
    shot(opened(lang="bn-BD", width=360, height=740), "first-visit-bn-phone")


@pytest.mark.parametrize(
    ("lang", "text", "code"),
    [("en-GB", "The river is wide today", "en"), ("bn-BD", "পদ্মার স্রোত আজ খুব ক্ষিপ্র ছিল", "bn")],
)
def test_chat_streams_in_both_languages(opened: Opened, shot: Shot, lang: str, text: str, code: str) -> None:
    page = opened(lang=lang)
    say(page, text)
    answer = answered(page, text)
    assert answer.locator(".text").get_attribute("lang") == code
    assert page.locator(".mine .text").get_attribute("lang") == code
    assert page.locator(".chats li.current .chat-name span").text_content() == text
    shot(page, f"chat-{code}")


def test_stop_keeps_what_was_written(opened: Opened) -> None:
    page = opened()
    say(page, "slow please")
    page.get_by_text("word5 ").wait_for()
    page.get_by_role("button", name="Stop").click()
    answered(page, "stopped")
    text = page.locator(ANSWERS).last.locator(".text").inner_text()
    assert "word5" in text and "word190" not in text
    page.wait_for_timeout(300)
    assert page.locator(ANSWERS).last.locator(".text").inner_text() == text
    page.reload()
    answered(page, "stopped")
    assert page.locator(ANSWERS).last.locator(".text").inner_text() == text


def test_edit_regenerate_and_branches(opened: Opened, shot: Shot) -> None:
    page = opened()
    say(page, "first question")
    answered(page, "first question")
    page.get_by_role("button", name="Answer again").click()
    page.get_by_label("Version 2 of 2").wait_for()
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_role("textbox", name="Edit").fill("second question")
    page.locator(".editor").get_by_role("button", name="Send").click()
    answered(page, "second question")
    assert page.get_by_label("Version 2 of 2").count() == 1
    shot(page, "branches")
    page.get_by_role("button", name="Version before").click()
    answered(page, "first question")
    assert page.get_by_text("second question").count() == 0
    assert page.get_by_label("Version 2 of 2").count() == 1, "the branch opens where it was left"
    page.reload()
    answered(page, "first question")
    assert page.get_by_text("second question").count() == 0


def test_reload_keeps_history_also_of_an_answer_on_its_way(opened: Opened) -> None:
    page = opened()
    say(page, "slow and long")
    page.get_by_text("word45 ").wait_for()
    page.reload()
    found = answered(page, "not finished")
    assert "word5" in found.inner_text()
    say(page, "and now")
    answered(page, "and now")
    page.reload()
    answered(page, "and now")
    assert page.locator("article.message").count() == 4


def test_thoughts_are_folded_with_time_and_tokens(opened: Opened, shot: Shot) -> None:
    page = opened()
    say(page, "think hard")
    answer = answered(page, "The answer is 42.")
    assert answer.locator("strong").inner_text() == "42"
    fold = answer.locator("details.thought")
    assert fold.get_attribute("open") is None and re.search(r"\d s · 4 tokens", fold.locator("summary").inner_text())
    fold.locator("summary").click()
    assert fold.get_by_text("First I weigh it.").is_visible()
    shot(page, "thinking")


def test_a_tool_call_is_a_card_with_its_result(opened: Opened, shot: Shot) -> None:
    page = opened()
    page.locator("button.model-chip").click()
    page.get_by_label("Offer tools").check()
    shot(page, "model-sheet")
    page.keyboard.press("Escape")
    say(page, "tool please")
    answer = answered(page, "The tool said")
    card = answer.locator("details.call")
    assert "calculate" in card.inner_text() and '"expression": "6*7"' in card.inner_text() and '"value": 42' in card.inner_text()
    page.reload()
    assert '"value": 42' in answered(page, "The tool said").inner_text()
    shot(page, "tool-call")


def test_markdown_and_code_with_copy(opened: Opened, shot: Shot) -> None:
    page = opened()
    say(page, "long answer")
    answer = answered(page, "A quoted line")
    assert answer.locator("h4").inner_text() == "নদী ও নৌকা"
    assert answer.locator("ol > li").count() == 2 and answer.locator("ol > li ul > li").count() == 2
    assert answer.locator("td").first.inner_text() == "পদ্মা" and answer.locator("blockquote").count() == 1
    link = answer.locator("a")
    assert (link.get_attribute("href"), link.get_attribute("rel")) == ("https://example.org/map", "noopener noreferrer nofollow")
    answer.locator("figure.code button").click()
    assert page.evaluate("navigator.clipboard.readText()") == 'print("নমস্কার")'
    shot(page, "markdown")


def test_an_error_is_told_and_what_came_before_is_kept(opened: Opened) -> None:
    page = opened(lang="bn-BD")
    say(page, "break now")
    page.get_by_role("alert").wait_for()
    assert "so far" in page.locator(ANSWERS).last.inner_text()
    assert re.search("[ঀ-৿]", page.get_by_role("alert").inner_text())
    page.reload()
    page.get_by_role("alert").wait_for()
    page.get_by_role("button", name="আবার উত্তর").wait_for()


def test_a_server_that_is_gone_is_told_and_the_text_comes_back(opened: Opened) -> None:
    page = opened(allow="ERR_FAILED")
    page.route("**/page/conversations", lambda route: route.abort() if route.request.method == "POST" else route.fallback())
    say(page, "do not lose me")
    page.get_by_text("The server does not answer").wait_for()
    assert page.input_value(COMPOSER) == "do not lose me"


def test_a_broken_line_is_picked_up_again(opened: Opened) -> None:
    page = opened()
    page.evaluate(BREAK_ONCE)
    say(page, "slow line")
    page.wait_for_function("() => window.reconnecting")
    page.get_by_text("word30 ").wait_for()
    text = page.locator(ANSWERS).last.locator(".text").inner_text()
    words = re.findall(r"word(\d+)", text)
    assert words == [str(number) for number in range(len(words))], "nothing is lost, nothing is said twice"


BREAK_ONCE = """() => {
  const look = () => { window.reconnecting ||= document.body.innerText.includes('Reconnecting'); };
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
  const real = window.fetch;
  let broken = false;
  window.fetch = async (address, options) => {
    const answer = await real(address, options);
    if (broken || !String(address).endsWith('/v1/chat/completions')) return answer;
    broken = true;
    const reader = answer.body.getReader();
    let count = 0;
    const body = new ReadableStream({ async pull(out) {
      const { done, value } = await reader.read();
      if (done) return out.close();
      if (++count > 12) { reader.cancel().catch(() => {}); return out.error(new TypeError('line cut')); }
      out.enqueue(value);
    } });
    return new Response(body, { status: 200, headers: answer.headers });
  };
}"""


def test_long_chats_are_windowed(opened: Opened) -> None:
    page = opened()
    page.evaluate(MANY)
    page.locator("article.message").nth(30).wait_for()
    assert page.locator("article.message").count() == 60
    page.get_by_role("button", name="Show earlier messages (60)").click()
    page.locator("article.message").nth(110).wait_for()
    assert page.locator("article.message").count() == 120


MANY = """async () => {
  const headers = { authorization: `Bearer ${localStorage.getItem('khola-key')}`, 'content-type': 'application/json' };
  const ask = async (path, body) => (await fetch(path, { method: 'POST', headers, body: JSON.stringify(body) })).json();
  const { id } = await ask('/page/conversations', { title: 'many' });
  let parent = '';
  for (let n = 0; n < 120; n += 1) {
    const draft = { role: n % 2 ? 'assistant' : 'user', content: `message ${n}`, parent };
    parent = (await ask(`/page/conversations/${id}/messages`, draft)).id;
  }
  location.hash = `#/chat/${id}`;
}"""


def test_export_search_rename_and_delete(opened: Opened) -> None:
    page = opened()
    say(page, "an unusual zeppelin")
    answered(page, "an unusual zeppelin")
    page.get_by_role("searchbox", name="Search").fill("zeppelin")
    page.get_by_role("button", name=re.compile("Rename, export or delete an unusual")).first.click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Markdown, what is shown").click()
    assert "an unusual zeppelin" in saved.value.path().read_text(encoding="utf-8")
    page.get_by_role("button", name=re.compile("Rename, export or delete an unusual")).first.click()
    page.get_by_role("textbox", name="Title").fill("Airship")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name=re.compile("^Airship")).wait_for()
    page.get_by_role("button", name="Rename, export or delete Airship").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("Nothing found.").wait_for()
    page.get_by_role("heading", name="What shall we talk about?").wait_for()


def test_nothing_that_a_model_says_is_ever_html(opened: Opened, shot: Shot) -> None:
    page = opened()
    say(page, "xss now")
    answer = answered(page, "constructor")
    page.locator("details.thought summary").click()
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    inside = "script, img, svg:not(.icon), iframe, object, style, form, input, video, audio, marquee, base, meta, link"
    assert answer.locator(f".text :is({inside}), .thought div :is({inside})").count() == 0
    hrefs = answer.locator("a").evaluate_all("links => links.map(link => link.protocol)")
    assert set(hrefs) <= {"https:", "http:", "mailto:"} and hrefs
    assert "<script>window.hacked=1</script>" in answer.inner_text()
    shot(page, "xss")
