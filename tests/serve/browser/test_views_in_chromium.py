"""The other views in a real Chromium, on a desk and on a phone, by keyboard, and before axe-core."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_chat_in_chromium import COMPOSER, answered, say
from xss import PAYLOADS

from khola.serve.characters.card import character, read_png, write_png

pytestmark = [pytest.mark.slow, pytest.mark.browser]

Opened = Callable[..., Any]
Shot = Callable[[Any, str], None]
VIEWS = ("chat", "models", "characters", "compare", "tree", "engine")
READY = {
    "chat": COMPOSER,
    "models": "ul.cards > li:nth-child(20)",
    "characters": "li.person",
    "compare": ".side .model-chip",
    "tree": ".node, .family-list li",
    "engine": ".curve canvas",
}


def test_models_with_licence_fit_and_a_pull(opened: Opened, shot: Shot) -> None:
    page = opened("models")
    page.get_by_role("searchbox", name="Search models").fill("r1-distill-qwen-7b")
    page.get_by_role("button", name="DeepSeek-R1-Distill-Qwen-7B").click()
    sheet = page.get_by_role("dialog")
    sheet.get_by_text("by DeepSeek, China · weights of Qwen2.5-Math-7B · taught by DeepSeek-R1").wait_for()
    assert sheet.get_by_text("Commercial use: yes").count() == 2
    sheet.get_by_role("columnheader", name="Longest context").wait_for()
    shot(page, "model-details")
    sheet.get_by_role("button", name=re.compile("^Pull")).click()
    bar = sheet.get_by_role("progressbar", name="Pull of deepseek-r1-distill-qwen-7b")
    sheet.get_by_text("of 100 MB").wait_for()
    far = int(bar.get_attribute("aria-valuenow"))
    shot(page, "pull")
    sheet.get_by_text(re.compile("^here$")).wait_for()
    assert 0 <= far < 100 == int(bar.get_attribute("aria-valuenow"))


def test_a_pull_can_be_stopped_and_models_loaded_and_unloaded(opened: Opened) -> None:
    page = opened("models")
    page.get_by_role("searchbox", name="Search models").fill("qwq-32b")
    page.get_by_role("button", name="QwQ-32B", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("^Pull")).click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_text("stopped; the next pull goes on from here").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("searchbox", name="Search models").fill("")
    mirror = page.locator("li.card", has_text="mirror")
    mirror.get_by_role("button", name="Unload").click()
    mirror.get_by_role("button", name="Load", exact=True).click()
    mirror.get_by_role("button", name="Unload").wait_for()


def test_a_character_comes_in_speaks_and_goes_out(opened: Opened, shot: Shot, tmp_path: Path) -> None:
    card = {"name": "Nabil", "description": "{{char}} mends clocks.", "first_mes": "Good evening, {{user}}.", "tags": ["clocks"],
            "extensions": {"elsewhere": {"kept": [1, 2]}}}  # fmt: skip
    file = tmp_path / "nabil.png"
    file.write_bytes(write_png(character(card), None))
    page = opened("characters")
    page.get_by_role("heading", name="রিনা").wait_for()
    page.locator("input[type=file]").set_input_files(file)
    person = page.locator("li.person", has_text="Nabil mends clocks.")
    person.locator("img.portrait").wait_for()
    shot(page, "characters")
    person.get_by_role("button", name="Talk").click()
    answered(page, "Good evening, User.")
    say(page, "What time is it?")
    answered(page, "What time is it?")
    assert page.get_by_role("heading", name="Nabil").count() == 2
    assert page.get_by_role("button", name="Memory on").get_attribute("aria-pressed") == "true"
    shot(page, "character-chat")
    page.evaluate("location.hash = '#/characters'")
    page.get_by_role("button", name="Export Nabil").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Picture (PNG)").click()
    assert read_png(saved.value.path().read_bytes())[0].data["extensions"] == card["extensions"]


def test_a_character_is_written_and_edited(opened: Opened, shot: Shot) -> None:
    page = opened("characters", lang="bn-BD")
    page.get_by_role("button", name="নতুন চরিত্র").click()
    page.get_by_label("নাম", exact=True).fill("মিতু")
    page.get_by_label("সম্ভাষণ", exact=True).fill("কেমন আছেন?")
    page.get_by_role("button", name="অংশ যোগ করুন").click()
    page.get_by_label("চাবি-শব্দ, মাঝে কমা").fill("চা, কফি")
    page.get_by_label("লেখা", exact=True).fill("মিতু চা ভালোবাসে।")
    shot(page, "character-form-bn")
    page.get_by_role("dialog").get_by_role("button", name="রাখুন").click()
    page.get_by_role("button", name="মিতু সম্পাদনা").click()
    assert page.get_by_label("চাবি-শব্দ, মাঝে কমা").input_value() == "চা, কফি"
    page.keyboard.press("Escape")
    page.locator("li.person", has_text="মিতু").get_by_role("button", name="কথা বলুন").click()
    answered(page, "কেমন আছেন?")


def test_a_card_that_is_none_is_refused_with_its_reason(opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    file.write_text(json.dumps({"spec": "chara_card_v9", "data": {}}), encoding="utf-8")
    page = opened("characters", lang="bn-BD", allow="422")
    page.locator("li.person").first.wait_for()
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text("খোলা সংস্করণ ১, ২ ও ৩ পড়ে").wait_for()


def test_fields_of_a_character_are_never_html(opened: Opened, tmp_path: Path) -> None:
    harm = "\n".join(PAYLOADS[:80])
    file = tmp_path / "harm.json"
    fields = {"description": harm, "creator": harm[:300], "tags": PAYLOADS[:6], "first_mes": harm, "personality": harm}
    file.write_text(json.dumps({"name": "<img src=x onerror=window.hacked=1>", **fields}), encoding="utf-8")
    page = opened("characters")
    page.locator("li.person").first.wait_for()
    page.locator("input[type=file]").set_input_files(file)
    person = page.locator("li.person", has_text="onerror").first
    person.get_by_role("button", name="Talk").click()
    answered(page, "onload")
    page.evaluate("location.hash = '#/models'")
    page.get_by_text('<img src=x onerror="window.hacked=1">').first.wait_for()
    page.locator("nav.rail a").first.click()
    page.locator("button.model-chip").click()
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None and page.locator("img[src='x']").count() == 0


def test_side_by_side(opened: Opened, shot: Shot) -> None:
    page = opened("compare")
    page.get_by_role("textbox", name="Question for both").fill("Which of you is quicker?")
    page.get_by_role("button", name="Ask both").click()
    page.get_by_role("table").wait_for()
    assert [side.inner_text().count("Which of you") for side in page.locator(".side .text").all()] == [1, 1]
    assert {"echo", "mirror"} <= set(re.findall(r"\w+", page.get_by_role("table").inner_text()))
    shot(page, "compare")
    phone = opened("compare", lang="bn-BD", width=360, height=740)
    phone.get_by_role("textbox", name="দুজনের জন্য প্রশ্ন").fill("think about it")
    phone.get_by_role("button", name="দুজনকে জিজ্ঞাসা").click()
    phone.get_by_role("table").wait_for()
    assert phone.locator(".side:visible").count() == 1
    assert phone.evaluate("document.scrollingElement.scrollWidth") <= 360 and page.locator(".tabs.only-phone:visible").count() == 0
    phone.get_by_role("button", name=re.compile("^B ·")).click()
    assert phone.locator(".side:visible").get_attribute("aria-label") == "পাশ B"
    shot(phone, "compare-bn-phone")


def test_the_family_tree_as_picture_and_list(opened: Opened, shot: Shot) -> None:
    page = opened("tree")
    node = page.get_by_role("button", name=re.compile(r"DeepSeek-R1-Distill-Qwen-7B DeepSeek · China MIT \+ Apache-2.0"))
    node.wait_for()
    assert page.locator("path.edge.distilled").count() >= 6
    shot(page, "tree")
    node.focus()
    page.keyboard.press("Enter")
    sheet = page.get_by_role("dialog")
    sheet.get_by_role("button", name="DeepSeek-R1", exact=True).wait_for()
    shot(page, "tree-facts")
    sheet.get_by_role("button", name="DeepSeek-R1", exact=True).click()
    page.get_by_role("dialog").get_by_role("heading", name="DeepSeek-R1", exact=True).wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="List").click()
    entry = page.locator(".family-list li", has_text="DeepSeek-R1-Distill-Qwen-7B").last
    assert "weights of Qwen2.5-Math-7B" in entry.inner_text() and "MIT" in entry.inner_text()
    page.get_by_role("combobox", name="Family").select_option("Qwen")
    page.get_by_role("button", name="QwQ-32B", exact=True).wait_for()


def test_the_engine_panel_lives(opened: Opened, shot: Shot) -> None:
    page = opened("engine")
    page.locator(READY["engine"]).first.wait_for()
    curve = page.get_by_role("img", name=re.compile("Answer tokens"))
    page.wait_for_function("() => /s (3|4)\\d/.test(document.querySelector('.curve [role=img]').getAttribute('aria-label'))")
    assert re.search(r"Answer tokens/s (3|4)\d", curve.get_attribute("aria-label"))
    page.wait_for_timeout(2500)
    assert page.get_by_role("row", name="Cache pages in use").inner_text().split()[-1] == "40"
    shot(page, "engine")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("lang", ["en-GB", "bn-BD"])
def test_a_phone_shows_everything_without_scrolling_sideways(opened: Opened, shot: Shot, view: str, lang: str) -> None:
    page = opened(view, lang=lang, width=360, height=740)
    page.locator(READY[view]).first.wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    beyond = """() => [...document.querySelectorAll('button, a, input, h1, h2, p, select')].filter((one) => {
      const box = one.getBoundingClientRect();
      return box.width && one.checkVisibility() && !one.closest('.unseen, .skip, .scroll, .canvas') && (box.right > 361 || box.left < -1);
    }).map((one) => one.outerHTML.slice(0, 120))"""
    assert page.evaluate(beyond) == []
    nav = page.locator("nav.rail a").all()
    assert all(link.bounding_box()["height"] >= 40 for link in nav) and len(nav) == 6
    shot(page, f"phone-{lang[:2]}-{view}")


def test_a_phone_opens_the_list_of_talks(opened: Opened, shot: Shot) -> None:
    page = opened(lang="bn-BD", width=360, height=740)
    say(page, "নদীর নাম কী?")
    answered(page, "নদীর নাম কী?")
    shot(page, "phone-bn-talk")
    page.get_by_role("button", name="আলাপগুলো").click()
    page.locator(".chats.open li.current").wait_for()
    shot(page, "phone-bn-talks")
    page.locator(".chats.open li.current .chat-name").click()
    assert page.locator(".chats.open").count() == 0


def test_everything_by_keyboard(opened: Opened) -> None:
    page = opened()
    page.locator(COMPOSER).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    _tab_to(page, "composer")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    answered(page, "by keyboard")
    _tab_to(page, "Answer again", back=True)
    page.keyboard.press("Enter")
    page.get_by_label("Version 2 of 2").wait_for()
    _tab_to(page, "Model:", back=True)
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    assert "model-chip" in page.evaluate("document.activeElement.className"), "the focus goes back to where it was"
    _tab_to(page, "#/tree", back=True)
    page.keyboard.press("Enter")
    page.locator(".node").first.wait_for()
    _tab_to(page, "Llama-3.1-8B ")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("heading", name="Llama-3.1-8B", exact=True).wait_for()
    assert page.evaluate("getComputedStyle(document.querySelector('dialog :focus-visible') ?? document.body).outlineStyle") == "solid"


def _tab_to(page: Any, wanted: str, *, back: bool = False) -> None:
    """Press Tab until something of this id, label or target has the focus."""
    told = "(one => one.getAttribute('aria-label') || one.id || one.getAttribute('href') || one.textContent)(document.activeElement)"
    for _ in range(120):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate(told).startswith(wanted):
            return
    raise AssertionError(f"{wanted} cannot be reached by keyboard")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("lang", ["en-GB", "bn-BD"])
def test_axe_finds_nothing_serious(opened: Opened, shot: Shot, axe: str, lang: str, dark: bool) -> None:
    page = opened(lang=lang, dark=dark)
    say(page, "long answer")
    answered(page, "A quoted line")
    found = _serious(page, axe, "talk")
    shot(page, f"desk-{lang[:2]}-{'dark' if dark else 'light'}-talk")
    for view in VIEWS[1:]:
        page.evaluate("view => { location.hash = '#/' + view; }", view)
        page.locator(READY[view]).first.wait_for()
        page.wait_for_timeout(300)
        found += _serious(page, axe, view)
        shot(page, f"desk-{lang[:2]}-{'dark' if dark else 'light'}-{view}")
    page.evaluate("() => { location.hash = '#/models'; }")
    page.get_by_role("button", name="QwQ-32B", exact=True).click()
    page.get_by_role("dialog").locator("table").wait_for()
    found += _serious(page, axe, "details")
    assert not found, "\n".join(found)


def _serious(page: Any, axe: str, where: str) -> list[str]:
    page.evaluate(axe)
    result = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    grave = [one for one in result["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{where}: {one['id']}: {one['help']}: {node['html'][:160]}" for one in grave for node in one["nodes"][:4]]
