"""The page in a real browser, without a network: what it shows, and what it lets nobody do."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from statsmodels.stats.proportion import proportion_confint

import reports
from harness.core.errors import ReportError
from tests.support.synthetic_grids import TASKS, measured, ppl, quickstart, row, write

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '" onclick="window.hacked = 1" x="',
    "'; window.hacked = 1; //",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "line\u2028paragraph\u2029<b>bold</b>",
    "javascript:window.hacked=1",
]


def stages(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chain for every row: evaluation <- rounded (rebuilt) <- trained <- published model."""
    ran = {
        "code": "c0de",
        "started": 1795294735.2,
        "wall_s": 4.5,
        "peak_rss_gib": 0.53,
        "commit": "b99c5f497721e2548deb80d7e2a54e0f506c14ea",
        "packages": {"torch": "2.13.0"},
        "python": "3.11.7",
        "host": "node7",
        "device": "cuda",
        "device_name": "A100",
        "threads": 2,
        "peak_gpu_gib": 11.25,
    }
    source = {"class": "harness.models.model.Pretrained", "source": "testbed", "digest": "d1ge57"}
    lines = [{"schema": 2, "key": "published", "stage": source}]
    for model in dict.fromkeys(each["model_key"] for each in rows):
        trained = {
            "class": "methods.training.train.Train",
            "student": {"stage": "published"},
            "lr": 4e-4,
        }
        rounded = {"class": "methods.recipe.Round", "model": {"stage": f"t {model}"}}
        lines.append({"schema": 2, "key": f"t {model}", "stage": trained, **ran, "wall_s": 95.0})
        lines.append({"schema": 2, "key": model, "stage": rounded})
    for each in {each["key"]: each for each in rows}.values():
        scored = {
            "class": "harness.evaluation.evaluate.LmEval",
            "model": {"stage": each["model_key"]},
        }
        lines.append({"schema": 2, "key": each["key"], "stage": scored, **ran})
    return lines


def with_provenance(folder: Path) -> Path:
    """Gives each row of an exported grid a stage of its own, with a chain behind it."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    for each in rows:
        each["key"] = f"{each['model_key']} {each['task']}"
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    lines = "".join(json.dumps(line) + "\n" for line in stages(rows))
    (folder / "provenance.jsonl").write_text(lines)
    grid = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps({**grid, "file": "experiments/my grid.yaml"}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = with_provenance(quickstart(tmp_path_factory.mktemp("page")))
    reports.render(made, html=True)
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("needs the Debian package chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found)
        yield opened
        opened.close()


class Visit:
    """A page opened from the disk; notes each complaint, and each request that is no local file."""

    def __init__(self, browser: Any, folder: Path, **context: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        # A page that still scrolls by itself is elsewhere by the time a place on it is clicked.
        self.context = browser.new_context(reduced_motion="reduce", **context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.route("**/*", self._route)
        self.page.goto((folder / "index.html").as_uri())

    def _route(self, route: Any) -> None:
        url = route.request.url
        if url.startswith(("file:", "data:")):
            route.continue_()
        else:
            self.requests.append(url)
            route.abort()

    def methods(self, table: str = "comparison-table") -> list[str]:
        """First column of names, of the rows that are seen, in the order seen."""
        return self.page.locator(f"#{table} tbody tr:visible th").all_inner_texts()

    def number(self, name: str, bits: int, column: int) -> Any:
        line = f"#comparison-table tr[data-search='{name}'][data-bits='{bits}']"
        return self.page.locator(f"{line} button.number").nth(column)


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Visit]:
    opened = Visit(browser, folder)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    assert opened.requests == []


def test_a_column_sorts_both_ways_and_back(visit: Visit) -> None:
    before = visit.methods()
    head = visit.page.locator("#comparison-table th", has_text="Average")

    def averages(column: str = "last-child") -> list[float]:
        cells = visit.page.locator(f"#comparison-table tbody td:{column} button.number")
        return [float(words.split(" ±")[0]) for words in cells.all_inner_texts()]

    first = averages()
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"  # the best first
    assert averages() == sorted(first, reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert averages() == sorted(first)
    perplexity = visit.page.locator("#comparison-table th", has_text="PPL")
    perplexity.locator("button").click()
    assert perplexity.get_attribute("aria-sort") == "ascending"  # the lowest is best
    assert head.get_attribute("aria-sort") == "none"
    assert averages("nth-child(5)") == sorted(averages("nth-child(5)"))
    perplexity.locator("button").click()
    perplexity.locator("button").click()
    assert visit.methods() == before


def test_rows_are_filtered_by_method_bits_and_words(visit: Visit) -> None:
    page = visit.page
    form = page.locator("form[data-table='comparison-table']")
    everything = visit.methods()
    form.get_by_label("Method").select_option("RTN")
    assert visit.methods() == ["RTN", "RTN"]
    assert form.locator("output").inner_text() == "2 of 9 rows"
    form.get_by_label("Bits").select_option("3")
    assert visit.methods() == ["RTN"]
    form.get_by_role("button", name="Clear").click()
    assert visit.methods() == everything
    form.get_by_label("Search").fill("dist")
    assert visit.methods() == ["BitDistiller", "BitDistiller"]
    form.get_by_label("Search").press("Enter")  # sends nothing
    assert page.url.startswith("file:")
    below = page.locator("form[data-table='measurements-table']")
    below.get_by_label("Task").select_option(TASKS[1])
    below.get_by_label("Method").select_option("BF16")
    assert visit.methods("measurements-table") == ["BF16"]


def test_a_number_leads_to_what_stands_behind_it(visit: Visit, folder: Path) -> None:
    line = [json.loads(each) for each in (folder / "rows.jsonl").open()]
    known = next(r for r in line if r["cell"] == "BF16-16-0" and r["task"] == TASKS[0])
    number = visit.number("BF16", 16, 1)
    number.focus()
    number.press("Enter")
    panel = visit.page.get_by_role("dialog")
    assert panel.get_attribute("aria-labelledby") == "provenance-title"
    assert panel.locator("h2").inner_text() == "BF16, 16 bits · Knowledge"
    facts = dict(
        zip(
            panel.locator("dt").all_inner_texts(),
            panel.locator("dd").all_inner_texts(),
            strict=True,
        )
    )
    assert float(facts["Value, unrounded"]) == known["value"]
    assert facts["Few-shot examples"] == "5"
    assert facts["Seed"] == "0"
    assert facts["Model revision"] == "testbed at d1ge57"
    assert facts["Commit"] == "b99c5f497721e2548deb80d7e2a54e0f506c14ea"
    assert facts["Wall time"] == "4.5 s"
    assert facts["Wall time of all stages behind it"] == "1 min 39 s"
    assert facts["Peak memory of the GPU"] == "11.25 GiB"
    assert "A100" in facts["Device"]
    assert facts["Versions"] == "Python 3.11.7, torch 2.13.0"
    command = panel.locator("pre").inner_text().splitlines()
    assert command == [
        "git checkout b99c5f497721e2548deb80d7e2a54e0f506c14ea",
        "OMP_NUM_THREADS=2 bitgrid run 'experiments/my grid.yaml' --only BF16-16-0",
    ]
    chain = panel.locator(".chain li").all_inner_texts()
    assert [words.split()[0] for words in chain] == ["LmEval", "Round", "Train", "Pretrained"]
    assert "rebuilt" in chain[1] and "1 min 35 s" in chain[2]
    panel.locator(".chain summary").nth(2).click()
    assert "0.0004" in panel.locator(".chain li").nth(2).inner_text()
    for _ in range(30):  # the focus stays inside
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    visit.page.keyboard.press("Escape")
    assert panel.count() == 0
    assert number.evaluate("each => each === document.activeElement")


def test_a_mean_names_its_models_and_a_shared_model_its_seeds(visit: Visit) -> None:
    panel = visit.page.get_by_role("dialog")
    visit.number("BitDistiller", 2, 1).click()
    parts = panel.locator("details.part")
    assert [f"seed {seed}" in parts.nth(seed).inner_text() for seed in range(3)] == [True] * 3
    parts.nth(1).locator("summary").first.click()
    parts.nth(1).get_by_text("Commit", exact=True).first.wait_for()
    panel.get_by_role("button", name="Close").click()
    visit.number("RTN", 2, 1).click()
    assert "One model, the same for seeds 0, 1, 2." in panel.inner_text()
    visit.page.mouse.click(5, 5)  # beside the panel
    assert panel.count() == 0
    visit.page.locator("#comparison-table tr[data-search='RTN'] button[data-average]").last.click()
    assert panel.locator("details.part").count() == 3  # tasks of the one model


def test_what_failed_and_what_is_stale_is_listed(visit: Visit) -> None:
    below = visit.page.locator("#open").inner_text()
    assert re.search(r"failed\s+GPTQ\s+2 bits\s+0\s+0\s+failed: NaN at step 12", below)
    assert re.search(r"not run\s+GPTQ\s+3 bits", below)
    assert (
        "BitDistiller, 2 bits, testbed_arithmetic exact_match, seed 2: methods/training/train.py"
        in below
    )
    assert "1 failed, 1 not run yet" in visit.page.locator("header").inner_text()
    visit.page.locator("#measurements-table tr", has_text="stale").locator("button").click()
    assert (
        "Stale: methods/training/train.py changed" in visit.page.get_by_role("dialog").inner_text()
    )


def test_all_links_lead_to_files_that_are_there(visit: Visit, folder: Path) -> None:
    links = visit.page.locator("a[href]:not([href^='#'])").evaluate_all(
        "found => found.map(each => each.getAttribute('href'))"
    )
    assert {"table.csv", "table.tex", "plots/score_vs_bits.pdf"} <= set(links)
    assert [name for name in links if not (folder / name).is_file()] == []
    pictures = visit.page.locator("img")
    assert pictures.count() >= 3
    assert pictures.evaluate_all("found => found.every(each => each.naturalWidth > 0)")


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_but_tables_scrolls_sideways(browser: Any, folder: Path, width: int) -> None:
    visit = Visit(browser, folder, viewport={"width": width, "height": 900})
    measure = "document.documentElement.scrollWidth"
    assert visit.page.evaluate(measure) == width
    visit.number("BF16", 16, 1).click()
    assert visit.page.evaluate("document.querySelector('dialog').scrollWidth") <= width
    visit.context.close()


def test_hostile_text_stays_text(browser: Any, tmp_path: Path) -> None:
    rows = [
        row(
            label=words,
            settings={f"axis {words}": words},
            task=f"task {words}",
            protocol=words,
            stale=words,
            model=words,
            cell=words,
            value=index / 10,
        )
        for index, words in enumerate(HOSTILE)
    ]
    everything = " ".join(HOSTILE)
    hole = {"cell": "h", "label": everything, "settings": {"a": everything}, "seed": 0}
    made = write(
        tmp_path,
        rows,
        name=everything,
        question=everything,
        model=everything,
        report={"title": everything, "caption": everything, "note": everything},
        holes=[{**hole, "reason": f"failed: {everything}"}],
    )
    with_provenance(made)
    lines = [json.loads(line) for line in (made / "provenance.jsonl").open()]
    for line in lines:
        line["stage"] |= {everything: everything}
        line |= {"commit": everything, "device": everything} if "wall_s" in line else {}
    (made / "provenance.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reports.render(made, html=True)
    visit = Visit(browser, made)
    numbers = visit.page.locator("#comparison-table button.number:not([data-average])")
    assert numbers.count() == len(HOSTILE)
    for each in numbers.all():
        each.click()
        for summary in visit.page.locator("dialog summary").all():
            summary.click()
        visit.page.keyboard.press("Escape")
    for select in visit.page.locator("select").all():
        select.select_option(index=1)
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("script").count() == 2
    assert visit.page.locator("b, img").filter(has_text="bold").count() == 0
    assert visit.page.title().startswith(" ".join(everything.split())[:40])
    assert visit.complaints == []
    assert visit.requests == []
    visit.context.close()


def test_the_policy_stops_what_is_put_in_later(browser: Any, folder: Path) -> None:
    visit = Visit(browser, folder)
    visit.page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.hacked = 1';
            document.body.append(script);
            const image = document.createElement('img');
            image.src = 'https://example.org/x.png';
            document.body.append(image);
            return fetch('https://example.org/').catch(() => null);
        }"""
    )
    assert visit.page.evaluate("window.hacked") is None
    assert len(visit.complaints) >= 3 and all("Security Policy" in c for c in visit.complaints[:2])
    assert visit.requests == []
    visit.context.close()


def test_a_folder_without_provenance_says_so(browser: Any, tmp_path: Path) -> None:
    rows = [row(), ppl(value=float("nan")), ppl(label="AWQ", value=None), row(label="AWQ")]
    reports.render(write(tmp_path, rows), html=True)
    visit = Visit(browser, tmp_path)
    assert visit.number("RTN", 2, 0).inner_text() == "NaN"
    visit.number("RTN", 2, 1).click()
    panel = visit.page.get_by_role("dialog").inner_text()
    assert "not in this export" in panel
    assert "provenance.jsonl has no line for it" in panel
    assert "do not say which file" in panel
    assert visit.complaints == []
    visit.context.close()


def test_the_page_is_made_on_demand_and_then_kept_up_to_date(tmp_path: Path) -> None:
    made = write(tmp_path, [row(value=0.25)])
    assert tmp_path / "index.html" not in reports.render(made)
    assert tmp_path / "index.html" in reports.render(made, html=True)
    before = (tmp_path / "index.html").stat().st_mtime_ns
    reports.render(made, html=True)
    assert (tmp_path / "index.html").stat().st_mtime_ns == before
    write(tmp_path, [row(value=0.75)])
    reports.render(made)
    assert "75.0" in (tmp_path / "index.html").read_text()
    (tmp_path / "index.html").unlink()
    assert tmp_path / "index.html" not in reports.render(made)


def test_bad_provenance_is_one_clear_line(tmp_path: Path) -> None:
    made = write(tmp_path, [row()])
    (tmp_path / "provenance.jsonl").write_text('{"schema": 2, "key": "k", "stage": []}\n')
    with pytest.raises(ReportError, match=r"provenance.jsonl:1: stage: "):
        reports.render(made, html=True)


def test_marks_and_statistics_are_those_of_the_table(browser: Any, tmp_path: Path) -> None:
    right = [1.0] * 80 + [0.0] * 20
    scores = {"Best": right, "Near": [0.0, *right[1:]], "Far": [0.0] * 50 + right[50:]}
    made = [measured(each, label=label) for label, each in scores.items()]
    reports.render(write(tmp_path, [r for r, _ in made], items=[i for _, i in made]), html=True)
    visit = Visit(browser, tmp_path)
    best, near, far = (visit.number(name, 2, 0) for name in scores)
    look = "each => [getComputedStyle(each).fontWeight, getComputedStyle(each).textDecorationLine]"
    assert best.evaluate(look) == ["700", "none"]
    assert near.evaluate(look) == ["700", "none"]  # it cannot be told from the best
    assert far.evaluate(look) == ["400", "none"]
    far.click()
    panel = visit.page.get_by_role("dialog").inner_text()
    low, high = proportion_confint(30, 100, method="wilson")
    assert f"95 % interval over items: {100 * low:.1f} to {100 * high:.1f}." in panel
    p = float(re.findall(r"better number of its group: (\S+)\.$", panel, re.MULTILINE)[0])
    assert p == pytest.approx(3 * 2 * 0.5**50, rel=0.05)  # the smallest of three, fifty to none
    assert "Rank in its group: 3." in panel
    assert visit.complaints == []
    visit.context.close()


def test_published_figures_and_effects_stand_below(browser: Any, tmp_path: Path) -> None:
    common = {"label": "RTN", "bits": 2, "model": "LLaMA-2-7B", "caveat": None, "n": 1000}
    rows = [
        row(
            **common,
            task="piqa",
            num_fewshot=0,
            settings={"objective": objective},
            seed=seed,
            value=0.53 + gain + seed / 100,
        )
        for objective, gain in (("kl", 0.0), ("cakld", 0.02))
        for seed in (0, 1, 2)
    ]
    file = Path(__file__).parents[3] / "harness/published/bitdistiller-2402.10631.csv"
    lines = [line for line in csv.DictReader(file.open()) if line["model"] == "LLaMA-2-7B"]
    grid = {"published": lines, "published_model": "LLaMA-2-7B", "tolerance": 1.0}
    reports.render(write(tmp_path, rows, **grid), html=True)
    visit = Visit(browser, tmp_path)

    def below(heading: str) -> Any:
        title = visit.page.get_by_role("heading", name=heading, exact=True)
        return visit.page.locator("section").filter(has=title)

    beside = below("Beside the published figures").locator("tbody tr")
    assert [words.split("\t")[2] for words in beside.all_inner_texts()] == [
        "54.00 / 53.43 (+0.57) ✓",
        "56.00 / 53.43 (+2.57) ✗",
    ]
    assert below("As published").locator("tr", has_text="BitDistiller").count() == 2
    effect = below("The effect of objective").locator("tbody tr").inner_text()
    assert effect.split("\t")[:4] == ["RTN", "KL → CAKLD", "PIQA ↑", "+2.00"]
    assert visit.complaints == []
    visit.context.close()
