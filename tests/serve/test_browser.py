"""The page in a headless Chromium: every tab does what it says, and the browser asks no other machine for anything.

Skipped without a Chromium of the system: `make chromium` installs Debian's, where it can.
"""

import re
import shutil

import pytest
from half_run import served

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def address(run_dir):
    with served(run_dir) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        # as root, which containers are, Chromium runs without its own sandbox only
        yield play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def tab(address, browser):
    """Opens a tab of the page by its name; afterwards, nothing may have gone wrong, or elsewhere."""
    asked, wrong = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def open_(name):
        page.goto(f"{address}/#{name}")
        page.wait_for_selector(f'nav a[href="#{name}"][aria-selected="true"]')
        return page

    yield open_
    assert page.locator("#error").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.close()
    assert wrong == []
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


def test_a_hovered_point_shows_its_image_and_its_reconstruction(tab):
    page = tab("map")
    canvas = page.locator("canvas").nth(1)
    canvas.wait_for()
    assert "matched: its stage evaluate is not finished" in page.locator("#map .missing").inner_text()
    box = canvas.bounding_box()
    for i in range(200):  # row by row, over some points
        page.mouse.move(box["x"] + box["width"] * (i % 20) / 20, box["y"] + box["height"] * (i // 20) / 10)
    page.wait_for_selector("#map-point img[alt='kl: reconstruction']")
    assert page.locator("#map-point img").count() == 2
    assert page.locator("#map-point img").evaluate_all("all => all.every((image) => image.naturalWidth === 12)")


def test_the_arrow_keys_go_through_the_points(tab):
    page = tab("map")
    page.locator("canvas").nth(1).focus()
    seen = set()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_timeout(1000)
        seen.add(page.locator("#map-point h3").inner_text())
    assert len(seen) == 3


def test_a_tab_that_failed_is_tried_again_and_no_picture_computes_for_ever(tab):
    page = tab("results")
    page.route("**/api/copies*", lambda route: route.fulfill(body="no JSON"))
    page.evaluate("location.hash = 'copies'")
    page.wait_for_selector("#error:visible")
    assert page.locator("#copies-tiles .note", has_text="computes").count() == 0
    page.unroute("**/api/copies*")
    page.evaluate("location.hash = 'results'")
    page.wait_for_selector("#error", state="hidden")
    page.evaluate("location.hash = 'copies'")
    page.wait_for_selector("#copies-tiles .wipe")


def test_the_slider_moves_every_method_from_one_image_to_the_other(tab):
    page = tab("between")
    frames = page.locator("#between-tiles .frame")
    playwright.expect(page.locator("#between-tiles .note").nth(0)).to_have_text("after stage tokenizer")
    playwright.expect(page.locator("#between-tiles .note").nth(1)).to_have_text("")
    place = lambda: frames.nth(1).evaluate("frame => getComputedStyle(frame).backgroundPositionX")
    assert place() == "50%"
    page.locator("#between-share").fill("16")
    assert place() == "100%"
    assert page.locator("#between-text").inner_text() == "100 % of the way"


def test_the_line_follows_the_pointer(tab):
    page = tab("copies")
    frame = page.locator("#copies-tiles .wipe").nth(1)
    frame.wait_for()
    assert re.fullmatch(r"PSNR \d+\.\d\d dB", page.locator("#copies-tiles .note").nth(1).inner_text())
    box = frame.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 10)
    assert page.locator("#copies-wipe").input_value() == "25"
    assert "25%" in frame.locator("img").nth(1).evaluate("image => getComputedStyle(image).clipPath")


def test_samples_are_drawn_as_the_form_asks(tab):
    page = tab("samples")
    images = page.locator("#samples-rows img")
    playwright.expect(images).to_have_count(8)
    page.locator("#samples-count").fill("3")
    page.locator("#samples-seed").fill("7")
    page.locator("#samples-label").select_option("no class")
    page.locator("#samples-draw").click()
    playwright.expect(images).to_have_count(3)
    page.locator("#samples-steps").fill("1000")
    page.locator("#samples-draw").click()
    page.wait_for_selector("#samples-rows progress[value]")
    page.locator("#samples-stop").click()
    assert images.count() == 0


def test_curves_and_states_of_a_run_that_goes_on(tab):
    page = tab("training")
    page.wait_for_selector("#training-curves svg")
    assert "step 4 of 8" in page.locator("#training-stages").inner_text()
    assert page.locator("#training-choice .chosen").inner_text() == "matching"
    page.locator("#training-choice button", has_text="tokenizer").click()
    page.wait_for_selector("#training-curves figcaption:has-text('reconstruction/pixel')")


def test_the_page_goes_on_looking_after_a_request_that_failed_and_keeps_what_another_tab_tells(tab):
    page = tab("training")
    page.wait_for_selector("#training-curves svg")
    page.route("**/api/progress*", lambda route: route.fulfill(json={}))
    page.wait_for_selector("#error:visible")
    page.unroute("**/api/progress*")
    page.wait_for_selector("#error", state="hidden")
    page.route("**/api/copies*", lambda route: route.fulfill(body="no JSON"))
    page.evaluate("location.hash = 'copies'")
    page.wait_for_selector("#error:visible")
    page.wait_for_timeout(6000)
    assert "JSON" in page.locator("#error").inner_text()
    page.unroute("**/api/copies*")
    page.locator("#copies-index").dispatch_event("change")
    page.wait_for_selector("#error", state="hidden")


def test_the_table(tab):
    page = tab("results")
    page.wait_for_selector("#results-table table")
    assert "PSNR" in page.locator("#results-table").inner_text()
