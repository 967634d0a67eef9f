"""What a reader chooses on the page: columns, a file of what is shown, an address that keeps
it, and two rows beside each other. In a real browser, from the disk."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports import render, render_together
from tests.reports.pages.test_html import Visit
from tests.reports.pages.test_html import browser as browser
from tests.support.synthetic_grids import measured, ppl, write

A = {0: [1.0, 0.0, 1.0, 1.0], 1: [0.0, 0.0, 1.0, 1.0]}
B = {0: [0.0, 1.0, 1.0, 1.0], 1: [1.0, 0.0, 0.0, 1.0]}
LOSSES = {"A": 8.0, "B": 9.0}  # at the start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods at two seeds, with items, curves, and a perplexity without items."""
    pairs = [
        measured(scores, label=label, seed=seed)
        for label, by_seed in (("A", A), ("B", B))
        for seed, scores in by_seed.items()
    ]
    rows = [row for row, _ in pairs]
    rows += [ppl(label=label, seed=seed, value=9.0) for label in "AB" for seed in (0, 1)]
    curves = [
        {**{key: each[key] for key in ("cell", "label", "settings", "seed", "bits")}, **point}
        for each in rows[:4]
        for point in (
            {
                "step": step,
                "tokens": 500 * step,
                "loss": LOSSES[each["label"]] - step + each["seed"],
            }
            for step in (1, 2, 3)
        )
    ]
    folder = tmp_path_factory.mktemp("views")
    made = write(folder, rows, curves, items=[line for _, line in pairs])
    render(made, html=True)
    return made


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Visit]:
    opened = Visit(browser, folder, accept_downloads=True)
    yield opened
    opened.context.close()
    assert opened.complaints == [] and opened.requests == []


def test_columns_filters_and_order_stand_in_the_address(
    visit: Visit, browser: Any, folder: Path, tmp_path: Path
) -> None:
    page = visit.page
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label("PPL ↓").uncheck()
    page.locator("#comparison-table").get_by_role("button", name="Knowledge").first.click()
    page.locator("form.filters[data-table='comparison-table'] input").fill("B")
    page.locator(".legend").get_by_label("A").uncheck()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV of what is shown").click()
    download.value.save_as(tmp_path / "shown.csv")
    head, *lines = csv.reader((tmp_path / "shown.csv").open(newline=""))
    assert "PPL ↓" not in head and any(title.startswith("Knowledge") for title in head)
    assert [line[1] for line in lines] == ["B"]
    again = Visit(browser, folder)
    again.page.goto(page.url)
    again.page.reload()
    assert again.methods() == ["B"]
    assert again.page.locator("#comparison-table th:visible").all_inner_texts()[0] == "Bits"
    assert not again.page.locator("#comparison-table thead").get_by_text("PPL ↓").is_visible()
    assert again.page.locator("#comparison-table th[aria-sort='descending']").count() == 1
    legend = again.page.locator(".legend label:has(:checked)")
    assert legend.all_inner_texts() == ["B"]
    again.context.close()


def test_curves_are_drawn_and_read_by_hand_and_by_key(visit: Visit) -> None:
    page = visit.page
    figure = page.locator("figure[data-chart]")
    assert not figure.locator("img").is_visible()
    facet, tip = figure.locator(".facet"), figure.get_by_role("status")
    facet.focus()
    facet.press("ArrowDown")
    facet.press("ArrowRight")
    assert " ".join(tip.inner_text().split()) == (
        "A, 2 bits step 2 · 1,000 tokens mean, smoothed 6.5 seed 0 6 seed 1 7"
    )
    point_at_the_end(page, facet)
    assert tip.inner_text().startswith("B, 2 bits")
    assert "step 3" in tip.inner_text()
    figure.get_by_label("every model").check()
    point_at_the_end(page, facet)
    assert tip.locator(".chosen").inner_text().split() == ["seed", "1", "7"]
    figure.get_by_role("button", name="Switch all off").click()
    assert figure.locator(".lines path:not(.swatch path)").count() == 0


def point_at_the_end(page: Any, facet: Any) -> None:
    """Above the end of the higher curve, wherever the page has been scrolled to by now."""
    box = facet.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 5)


def test_what_is_pointed_at_stays_while_the_page_gets_no_wider(visit: Visit) -> None:
    figure = visit.page.locator("figure[data-chart]")
    facet, tip = figure.locator(".facet"), figure.get_by_role("status")
    facet.press("ArrowRight")
    told = tip.inner_text()
    figure.locator(".facets").evaluate("each => { each.style.minHeight = '600px'; }")
    wait_for_a_picture(visit.page)
    assert tip.inner_text() == told
    figure.locator(".facets").evaluate("each => { each.style.width = '400px'; }")
    wait_for_a_picture(visit.page)
    assert tip.count() == 0  # drawn anew: what was pointed at is elsewhere


def wait_for_a_picture(page: Any) -> None:
    """Until the browser has drawn twice, by when it has told whom a size concerns."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_without_the_script_the_picture_shows(browser: Any, folder: Path) -> None:
    visit = Visit(browser, folder, java_script_enabled=False)
    assert visit.page.locator("figure[data-chart] img").is_visible()
    assert visit.page.locator(".facet").count() == 0
    visit.context.close()


def test_two_grids_on_one_page_keep_their_own_view(
    browser: Any, folder: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", [measured([1.0, 0.0], label=label)[0] for label in "AB"])
    (tmp_path / "page").mkdir()
    render_together([folder, other], tmp_path / "page/index.html")
    visit = Visit(browser, tmp_path / "page")
    page = visit.page
    page.locator("form.filters[data-table='tiny-2-comparison-table'] input").fill("B")
    page.locator(".columns summary").first.click()
    page.locator(".columns").first.get_by_label("PPL ↓").uncheck()
    page.locator("details.rest summary").first.click()
    page.locator("#tiny-plots .legend").get_by_label("A").uncheck()
    again = Visit(browser, tmp_path / "page")
    again.page.goto(page.url)
    again.page.reload()
    assert again.methods("tiny-comparison-table") == ["A", "B"]
    assert again.methods("tiny-2-comparison-table") == ["B"]
    heads = [again.page.locator(f"#{name}comparison-table thead") for name in ("tiny-", "tiny-2-")]
    assert [head.get_by_text("PPL ↓").is_visible() for head in heads] == [False, False]
    assert heads[1].get_by_text("Knowledge").first.is_visible()
    again.page.locator("#tiny-2-comparison-table button.number:visible").first.click()
    assert "B, 2 bits" in again.page.get_by_role("dialog").inner_text()
    assert visit.complaints == again.complaints == [] and visit.requests == []
    for each in (visit, again):
        each.context.close()


def test_two_rows_show_the_items_that_flipped(visit: Visit) -> None:
    page = visit.page
    page.locator("select.one").select_option("A, 2 bits")
    page.locator("select.other").select_option("B, 2 bits")
    page.get_by_role("button", name="Show", exact=True).click()
    panel = page.get_by_role("dialog")
    gained = sum(b > a for s in A for a, b in zip(A[s], B[s], strict=True))
    lost = sum(b < a for s in A for a, b in zip(A[s], B[s], strict=True))
    assert f"{gained} became right, {lost} became wrong, over 2 seeds." in panel.inner_text()
    panel.get_by_text("Items that flipped").click()
    listed = panel.locator(".flipped li").all_inner_texts()
    assert listed == ["item 0: right, wrong", "item 1: right", "item 2: wrong"]
    assert "Its items are not right or wrong" in panel.inner_text()  # of the perplexity
    address = page.url
    page.keyboard.press("Escape")
    page.wait_for_function("!location.hash.includes('compare')")  # once it has closed
    page.goto("about:blank")
    page.goto(address)
    assert "became right" in page.get_by_role("dialog").inner_text()


def test_pictures_are_dark_where_the_page_is(browser: Any, folder: Path) -> None:
    visit = Visit(browser, folder, color_scheme="dark")
    style = "each => getComputedStyle(each).filter"
    assert "invert" in visit.page.locator("img").first.evaluate(style)
    visit.context.close()


def test_bits_and_method_stay_at_400_pixels(browser: Any, folder: Path) -> None:
    visit = Visit(browser, folder, viewport={"width": 400, "height": 900})
    table = visit.page.locator("#comparison-table")
    places = "each => each.getBoundingClientRect().left"
    cells = [table.locator(f"tbody tr:first-child > :nth-child({n})") for n in (1, 2)]
    table.evaluate("each => { each.style.width = '1200px'; each.parentElement.scrollLeft = 300; }")
    left = table.evaluate("each => each.parentElement.getBoundingClientRect().left")
    at = [cell.evaluate(places) for cell in cells]
    assert abs(at[0] - left) < 3 and at[0] < at[1] < 150
    visit.context.close()
