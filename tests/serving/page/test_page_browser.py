"""The page in a real browser: the flow, by mouse, by keyboard and on a phone, and what a user can get wrong."""

import io
import os

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from llava_stf.serving.page import EXAMPLES
from llava_stf.world import draw

DONE = "() => document.querySelector('#answers .card, #answers .problem') && !document.querySelector('#stop')"
PASTE = """(bytes) => {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""
DROP = """([bytes, name, type]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.querySelector("#image img").dispatchEvent(
    new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""
IN_SIGHT = """() => [...document.querySelectorAll("#answers .answer")].every((part) => {
  const place = part.getBoundingClientRect();
  return place.top >= 0 && place.bottom <= innerHeight && place.left >= 0 && place.right <= innerWidth;
})"""
FOCUS_IS_SEEN = """() => {
  for (let part = document.activeElement; part; part = part.parentElement) {
    const style = getComputedStyle(part);
    if (style.outlineStyle !== "none" && style.outlineWidth !== "0px") return true;
    if (part.id === "question" && style.boxShadow !== "none") return true;
  }
  return false;
}"""


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def upload(page: Page, data: bytes, name: str = "image.png", kind: str = "image/png") -> None:
    page.set_input_files("#image input[type=file]", {"name": name, "mimeType": kind, "buffer": data})


def take_example(page: Page, index: int) -> None:
    page.locator(".example").nth(index).click()
    expect(page.get_by_label("Question")).to_have_value(EXAMPLES[index][1])
    page.locator("#image img").wait_for()


def expected(llava, index: int, question: str) -> str:
    return llava.ask(draw(index, split="held_out")[1], question)


def test_an_example_is_asked_and_answered_as_by_ask(models, page):
    page.get_by_role("radio", name="25 %").check()
    for place, (index, question) in enumerate(EXAMPLES[:2]):
        take_example(page, place)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#answers .answer")).to_have_text(expected(models[0], index, question))
        page.wait_for_function(DONE)
        assert page.locator("#answers .card header").inner_text().split() == ["25", "%", "16", "vision", "tokens"]


def test_side_by_side_shows_answers_costs_and_windows_of_both(models, page, screenshots):
    take_example(page, 1)
    page.get_by_role("radio", name="Side by side").check()
    page.get_by_role("button", name="Ask", exact=True).click()
    cards = page.locator("#answers .card")
    for place, (llava, tokens) in enumerate(zip(models, (16, 64), strict=True)):
        card = cards.nth(place)
        expect(card.locator(".answer")).to_have_text(expected(llava, *EXAMPLES[1]))
        expect(card.locator("header")).to_contain_text(f"{tokens} vision tokens")
        assert card.locator("svg rect").count() == tokens
    page.wait_for_function(DONE)
    costs = page.locator("#answers .costs").all_inner_texts()
    assert len(costs) == 2
    assert all("first token" in text and "–" not in text for text in costs)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    image = screenshots / "page.png"
    page.screenshot(path=image, full_page=True)
    assert Image.open(image).width == 1180


def test_side_by_side_warms_both_models_before_the_first_figure(models, page, monkeypatch):
    asked = []
    for llava in models:
        generate = llava.generate
        monkeypatch.setattr(
            llava, "generate", lambda *args, llava=llava, generate=generate, **options: (
                asked.append((llava, options["max_new_tokens"])) or generate(*args, **options)
            )
        )  # fmt: skip
    take_example(page, 1)
    page.get_by_role("radio", name="Side by side").check()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("document.querySelectorAll('#answers .answer.done:not(:empty)').length === 2")
    page.wait_for_function(DONE)
    assert [llava for llava, _ in asked] == [*models, *models]
    assert [tokens == 1 for _, tokens in asked] == [True, True, False, False]


def test_everything_can_be_done_with_the_keyboard_alone(models, page):
    page.get_by_role("radio", name="25 %").check()
    page.locator("#head h1").click()
    focused = "document.activeElement.innerText.trim()"
    for _ in range(20):
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUS_IS_SEEN), page.evaluate("document.activeElement.outerHTML")
        if page.evaluate(focused) == EXAMPLES[0][1]:
            break
    page.keyboard.press("Enter")
    question = page.get_by_label("Question")
    expect(question).to_have_value(EXAMPLES[0][1])
    expect(question).to_be_focused()
    assert page.evaluate(FOCUS_IS_SEEN)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the second budget
    expect(page.get_by_role("radio", name="100 %")).to_be_checked()
    assert page.evaluate(FOCUS_IS_SEEN)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(question).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#answers .answer")).to_have_text(expected(models[1], *EXAMPLES[0]))
    expect(page.locator("#answers .card header")).to_contain_text("64 vision tokens")


def test_every_field_and_button_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]), textarea")]
            .filter((part) => !(part.innerText || part.ariaLabel || part.labels?.[0]?.innerText || "").trim())
            .map((part) => part.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("#answers").get_attribute("aria-live") == "polite"
    expect(page.get_by_role("radiogroup", name="Vision tokens")).to_have_count(1)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"\x89PNG\r\n\x1a\nthe rest is missing", "This image cannot be used", id="broken"),
        pytest.param(png(Image.effect_noise((64, 64), 50))[:2000], "This image cannot be used", id="cut off"),
        pytest.param(png(Image.new("1", (1500, 1000))), "more than 1,000,000 pixels", id="too many pixels"),
        pytest.param(b"", "This image cannot be used", id="empty"),
    ],
)
def test_a_bad_image_is_refused_in_a_sentence_and_the_page_lives_on(models, page, data, sentence):
    upload(page, data)
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(page.locator("#image img")).to_have_count(0)
    index, question = EXAMPLES[0]
    upload(page, png(Image.fromarray(draw(index, split="held_out")[1])))
    page.locator("#image img").wait_for()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("radio", name="25 %").check()
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator("#answers .answer")).to_have_text(expected(models[0], index, question))


def test_a_file_that_is_too_large_or_no_image_is_refused_in_our_sentence(page):
    take_example(page, 0)
    for data, name, kind, said in (
        (
            os.urandom(300_000),
            "large.png",
            "image/png",
            "large.png is too large: it has 300,000 bytes",
        ),
        (b"words", "notes.txt", "text/plain", "notes.txt is no image: expected a PNG, JPEG, WebP"),
        (b"%PDF-1.7", "paper.pdf", "application/pdf", "paper.pdf is no image"),
    ):
        upload(page, data, name, kind)
        expect(page.get_by_role("alert")).to_contain_text(said)
        page.evaluate(DROP, [list(data), name, kind])
        expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.locator("#image img")).to_have_count(1)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.wait_for_function(DONE)


def test_what_is_missing_or_does_not_fit_is_said(page):
    question, alert = page.get_by_label("Question"), page.get_by_role("alert")
    if page.locator("#image img").count():
        page.get_by_role("button", name="Remove Image").click()

    def ask(text: str, sentence: str) -> None:
        question.fill(text)
        page.keyboard.press("Enter")
        expect(alert).to_contain_text(sentence)
        page.wait_for_function(DONE)

    ask("How many shapes are there?", "There is no image yet")
    take_example(page, 0)
    ask("  ", "The question is empty")
    ask("Is there a <image> red circle? " * 60, "<image> markers")
    ask("Ж " * 2000, "ask shorter")


def test_a_copied_image_can_be_pasted_anywhere(page):
    take_example(page, 0)
    shown = page.locator("#image img")
    for colour in ("red", "blue"):
        before = shown.get_attribute("src")
        page.evaluate(PASTE, list(png(Image.new("RGB", (50, 50), colour))))
        expect(shown).not_to_have_attribute("src", before)


@pytest.mark.parametrize(("width", "height"), [(320, 568), (375, 667), (768, 1024)])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_on_small_screens_the_answer_is_in_sight_and_nothing_is_cut(
    server, open_page, screenshots, width, height, colours
):
    options = {"has_touch": True, "is_mobile": width < 640}
    page = open_page(server, viewport={"width": width, "height": height}, color_scheme=colours, **options)
    widest = "Math.max(...[...document.querySelectorAll('#main *')].map((part) => part.getBoundingClientRect().right))"
    take_example(page, 0)
    for mode, count in (("25 %", 1), ("Side by side", 2)):
        page.get_by_role("radio", name=mode).check()
        page.get_by_role("button", name="Ask", exact=True).click()
        answered = f"document.querySelectorAll('#answers .answer.done:not(:empty)').length === {count}"
        page.wait_for_function(answered)
        page.wait_for_function(DONE)
        assert page.evaluate(IN_SIGHT)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(widest) <= width
        page.screenshot(path=screenshots / f"page-{width}-{colours}-{count}.png")
    page.screenshot(path=screenshots / f"page-{width}-{colours}.png", full_page=True)
    brightness = sum(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))
    assert (brightness < 200) == (colours == "dark")
