"""Accuracy, confusion matrix, recalls and mistakes of image runs, counted by hand, and shown in a browser."""

import json
import re

import pytest

from lrlora.files import read_json, write_json
from lrlora.report.page import write_report
from lrlora.report.predictions import predicted
from lrlora.saved.results import read_run
from lrlora.statistics import mean_interval
from tests.report.planted import add_predictions, write_images, write_run
from tests.report.test_page import CHROMIUM, DRIVER, FLAGS

EVIL = '<b>&"'
CLASSES = [EVIL, "cat", "dog"]
"""In the order of their names; two held-out images each: places 0 and 1, 2 and 3, 4 and 5."""
WRONG = [
    {1: ("cat", 0.6), 2: ("dog", 0.5), 3: ("dog", 0.9)},
    {1: ("cat", 0.7), 3: (EVIL, 0.95)},
    {1: ("dog", 0.8), 5: ("cat", 0.99)},
]
"""Of three runs, by place."""


@pytest.fixture
def runs(tmp_path):
    data = write_images(tmp_path / "data", CLASSES, 2)
    made = []
    for seed, wrong in enumerate(WRONG):
        made.append(write_run(tmp_path / f"s{seed}", seed=seed))
        add_predictions(made[-1], data, lambda place, true, wrong=wrong: wrong.get(place, (true, 0.99)))
    return made


def test_it_counts_what_is_counted_by_hand(runs):
    (found,) = predicted([read_run(run) for run in runs])
    assert (found.images, found.classes, found.of_class, found.warnings) == (6, CLASSES, [2, 2, 2], [])
    # a row is a true class: of the 2 x 3 images of EVIL, 3 are right
    assert found.counts == [[3, 2, 1], [1, 3, 2], [0, 1, 5]]
    assert found.accuracy == mean_interval([3 / 6, 4 / 6, 4 / 6], bounds=(0.0, 1.0))
    # F1 of each class of the first run: 2/3, 0, 2/3 (2 right, 2 wrongly called dog)
    (first,) = predicted([read_run(runs[0])])
    assert first.macro_f1.mean == pytest.approx((2 / 3 + 0 + 2 / 3) / 3) and first.macro_f1.low is None
    assert [recall and recall.mean for recall in found.recalls] == pytest.approx([1 / 2, 1 / 2, 5 / 6])
    assert found.recalls[2] == mean_interval([1, 1, 1 / 2], bounds=(0.0, 1.0))
    assert [(pair.true, pair.predicted, pair.count) for pair in found.confused[:2]] == [
        (EVIL, "cat", 2),
        ("cat", "dog", 2),
    ]
    assert found.confused[0].share == pytest.approx(1 / 3)
    assert [pair and pair.predicted for pair in found.taken_for] == ["cat", "dog", "cat"]


def test_what_all_runs_get_wrong_comes_first_then_the_most_confident(runs):
    (found,) = predicted([read_run(run) for run in runs])
    assert [(each.place, each.wrong_in) for each in found.mistakes] == [(1, 3), (3, 2), (5, 1), (2, 1)]
    first = found.mistakes[0]
    assert first.predicted == [("cat", 2), ("dog", 1)] and first.confidence == pytest.approx(0.7)
    assert (first.true, first.file, first.row) == (EVIL, f"{EVIL}/1.png", 2)
    (alone,) = predicted([read_run(runs[0])])
    assert [each.confidence for each in alone.mistakes] == [0.9, 0.6, 0.5]


def test_runs_on_other_images_are_shown_apart(runs, tmp_path):
    other = write_images(tmp_path / "other", ["cat", "dog"], 6)
    more = write_run(tmp_path / "more", seed=3)
    add_predictions(more, other, lambda place, true: ("cat", 0.9), eval_rows=7)
    plain = write_run(tmp_path / "plain", seed=4)
    found = predicted([read_run(run) for run in (runs[0], more, runs[1], plain)])
    assert [[run.folder.name for run in each.runs] for each in found] == [["s0", "s1"], ["more"]]
    assert found[1].images == 7
    write_report([runs[0], more, plain], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "No predictions of plain:" in text and 'id="predictions2"' in text and "Means of two runs" not in text
    assert "No predictions of" not in written([runs[0]], tmp_path)
    assert "redictions" not in re.sub(r"<(script|style)>.*?</\1>", "", written([plain], tmp_path), flags=re.DOTALL)


def test_predictions_of_another_training_than_the_metrics_are_said(runs, tmp_path):
    assert "different trainings" not in written(runs, tmp_path)
    metrics = read_json(runs[1] / "metrics.json")
    write_json(runs[1] / "metrics.json", {**metrics, "accuracy": 0.9})
    assert "s1: its predictions have accuracy 0.6667, its metrics 0.9000" in written(runs, tmp_path)
    # an unfinished run has no results yet, whatever lies there
    (runs[1] / "metrics.json").unlink()
    assert read_run(runs[1]).predictions is None


def test_of_many_classes_the_most_confused_pairs_are_shown(tmp_path):
    classes = [f"class {number:02}" for number in range(31)]
    data = write_images(tmp_path / "data", classes, 3)
    run = write_run(tmp_path / "run")
    # every third image is taken for the class after its own; of class 07 all are
    follows = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    rows = add_predictions(
        run, data, lambda place, true: (follows[true], 0.5) if true == "class 07" or place % 3 == 0 else (true, 0.9)
    )
    text = written([run], tmp_path)
    assert "31 classes are too many for a matrix. 31 of 31 pairs" in text and 'class="matrix' not in text
    table = text.split('<table class="confused">')[1].split("</table>")[0]
    first = re.findall(r"<td[^>]*>(.*?)</td>", table)[:4]
    assert first == ["class 07", "class 08", "3", "100&nbsp;%"]
    wrong = sum(row["true"] != row["predicted"] for row in rows)
    assert wrong == 33 and "33 of 33 mistakes" in text
    assert 'class="matrix' in written([image_run(tmp_path / "thirty", classes[:30])], tmp_path)


def test_at_most_60_mistakes_are_shown_and_counted(tmp_path):
    run = image_run(tmp_path / "sub", ["a", "b"], 35, lambda place, true: ("ab"[true == "a"], place / 100))
    text = written([run], tmp_path)
    assert "60 of 70 mistakes" in text and text.count('<div class="picture">') == 60
    places = [float(value) for value in re.findall(r"<dt>confidence</dt><dd>([\d.]+)</dd>", text)]
    assert places == [place / 100 for place in range(69, 9, -1)]
    right = image_run(tmp_path / "right", ["a", "b"], 3, lambda place, true: (true, 0.9))
    assert "None: all 6 images are right" in written([right], tmp_path)


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium: apt-get install chromium chromium-driver")
def test_in_a_browser(runs, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    write_report(runs, tmp_path / "report.html")
    many = image_run(tmp_path / "many", [f"a long name of class {number:02}" for number in range(30)], 2)
    write_report([many], tmp_path / "many.html")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    read = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())"
    try:
        browser.get((tmp_path / "report.html").as_uri())
        # a class of this name is text, and no element
        assert browser.execute_script(read, ".matrix thead th + th") == CLASSES
        assert browser.execute_script(read, "ol.mistakes dd")[:3] == [EVIL, "cat (2), dog (1)", "0.700"]
        assert browser.find_elements(By.TAG_NAME, "b") == []
        images = browser.find_elements(By.CSS_SELECTOR, "ol.mistakes img")
        assert images[0].get_attribute("alt") == f"{EVIL}/1.png: {EVIL}, predicted cat (2), dog (1)"
        assert [image.get_property("naturalWidth") for image in images] == [12] * 4
        assert images[0].size == {"width": 96, "height": 64}
        assert images[0].value_of_css_property("image-rendering") == "pixelated"
        # the cells are coloured, in both themes
        colour = "return getComputedStyle(document.querySelector('.matrix .wrong')).backgroundColor"
        before = browser.execute_script(colour)
        browser.find_element(By.CSS_SELECTOR, "button.theme").click()
        assert len({before, browser.execute_script(colour), "rgba(0, 0, 0, 0)"}) == 3
        for page in ("report.html", "many.html"):
            size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get((tmp_path / page).as_uri())
            root = "document.documentElement"
            wide, scrolled = browser.execute_script(f"return [{root}.clientWidth, {root}.scrollWidth]")
            assert wide == scrolled and wide <= 400, page
        matrix = browser.find_element(By.CSS_SELECTOR, ".matrix")
        assert matrix.size["width"] > 400 and len(matrix.find_elements(By.CSS_SELECTOR, "tbody tr")) == 30
        assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    finally:
        browser.quit()


def image_run(folder, classes, count=1, predict=lambda place, true: (true, 0.9)):
    """A planted run on images of its own; by default everything is right."""
    data = write_images(folder / "data", classes, count)
    run = write_run(folder / "run")
    add_predictions(run, data, predict)
    return run


def written(runs, tmp_path) -> str:
    """The text of the page, without the figures."""
    write_report(runs, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert json.loads(text.split('id="figures">')[1].split("</script>")[0])
    return text
