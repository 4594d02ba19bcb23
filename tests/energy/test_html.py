"""The page and its pictures: complete, self-contained, and really drawn by a browser."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spikeloom.energy import figures, pictures
from spikeloom.energy.counts import Counts
from spikeloom.energy.figures import Distribution, LayerEnergy, RateMap, Ratios, StepCurve
from spikeloom.energy.html import render_page
from spikeloom.energy.report import Report

Build = Callable[..., Counts]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytest.importorskip("jinja2")


@pytest.fixture
def full(build: Build) -> Report:
    """A report with everything: accuracy, gaps, a title that is HTML."""
    return Report(
        build(N=60),
        accuracy=0.973,
        accuracy_note="58 of 60",
        accuracy_by_step=[0.7, 0.9, 0.95, 0.973],
        title="<b>net</b> & co",
    )


def test_nothing_comes_from_outside_and_nothing_runs(full: Report) -> None:
    page = render_page(full)
    assert re.findall(r"<[^>]*\s(?:src|href|xlink:href|action|data)\s*=", page) == []
    assert re.findall(r"url\(|@import|<script|<link|<iframe|<object|javascript:|<[^>]*\son\w+=", page) == []
    assert set(re.findall(r"https?://[^\s<\"]+", page)) == set()


def test_words_of_the_user_are_not_markup(full: Report) -> None:
    page = render_page(full)
    assert "<b>net</b>" not in page
    assert "&lt;b&gt;net&lt;/b&gt; &amp; co" in page


def test_the_page_has_all_parts(full: Report) -> None:
    page = render_page(full)
    assert page.count("<svg") == 7  # three models, rates, samples, steps, ratios
    for words in (
        "97.3 % accuracy (58 of 60)",
        "Energy per layer",
        "Firing rates by layer and time",
        "Synaptic operations per inference",
        "Fewer time steps",
        "prefix sums",
        "Against the ANN, by hardware model",
        "Conventions",
        "Hardware models and constants",
        "M. Horowitz, ISSCC 2014",
        "recomputed every step",
        "cannot fold",
        "prefers-color-scheme: dark",
        "@media print",
    ):
        assert words in page, words


def test_a_dear_network_is_called_dear(build: Build) -> None:
    page = render_page(Report(build(rate=0.9)))
    assert 'class="verdict more"' in page
    assert "The spiking network costs more than the same ANN" in page
    assert 'class="verdict more"' not in render_page(Report(build(rate=0.01, direct=False)))


def test_cautions_are_on_the_page(build: Build) -> None:
    page = render_page(Report(build(gaps=True)))
    assert page.count('class="warning"') == 2
    assert "aten.fft_rfft in block.mixer" in page


@pytest.mark.parametrize(
    "options", [{"N": 1}, {"T": 1}, {"T": 1, "N": 1}, {"T": 40, "N": 3}, {"rate": 0.0, "direct": False}, {"N": 25}]
)
def test_odd_runs_have_a_page(build: Build, options: dict[str, object]) -> None:
    for model in ("horowitz45_fp32", "loihi2018", "lemaire2022", "gpu_titan"):
        page = render_page(Report(build(**options), models=[model]))
        assert not re.search(r"\bnan\b|\binf\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


def test_an_empty_network_has_a_page() -> None:
    assert "0 synaptic operations" in render_page(Report(Counts(2, 3, [], [])))


def drawn(svg: str) -> ElementTree.Element:
    """The picture as XML; every coordinate is a number."""
    root = ElementTree.fromstring(svg)
    for shape in root.iter():
        for name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy"):
            if name in shape.attrib:
                assert np.isfinite(float(shape.attrib[name]))
    return root


def test_pictures_draw_their_data() -> None:
    names = [f"stages.{i}.a_rather_long_name_of_a_module.conv" for i in range(30)]
    values = list(np.linspace(0, 1e7, 30))
    root = drawn(pictures.layer_energy(LayerEnergy("m", names, values, values[::-1])))
    assert len([shape for shape in root if shape.get("class") in ("snn", "ann")]) == 60
    rates = np.linspace(0, 0.4, 30 * 16).reshape(30, 16)
    root = drawn(pictures.rate_map(RateMap(names, rates, "spikes")))
    cells = [shape for shape in root if shape.get("class") == "heat"]
    assert len(cells) == 30 * 16
    assert [cells[0].get("fill-opacity"), cells[-1].get("fill-opacity")] == ["0.0", "1.0"]
    drawn(pictures.rate_map(RateMap(["a"], np.zeros((1, 200)), "spikes")))
    drawn(pictures.step_curve(StepCurve("m", np.linspace(1, 9, 64), None, list(np.linspace(0.1, 1.0, 64)))))
    drawn(pictures.step_curve(StepCurve("m", np.zeros(2), None, [1.0, 1.0])))
    drawn(pictures.ratios(Ratios(["a", "b", "c"], [1e-6, 1.0, 3e4], ["measured"] * 3)))


@pytest.mark.parametrize("values", [[5.0, 5.0], [1e9, 1e9 + 1], list(range(500)), [0.0] * 30, [0.0] * 29 + [1e7]])
def test_distributions_of_any_shape(values: list[float]) -> None:
    array = np.array(values)
    drawn(pictures.distribution(Distribution(array, float(array.mean()), float(array.min()), float(array.max()))))
    counts, edges = figures.bins(array)
    assert counts.sum() == len(values)
    assert len(edges) == len(counts) + 1


def test_deep_networks_are_drawn_by_module(build: Build) -> None:
    counts = build()
    for i in range(40):
        layer = build().layers[1]
        layer.name = f"encoder.block{i % 8}.part{i // 8}"
        counts.layers.append(layer)
    data = figures.layer_energies(Report(counts))[0]
    assert data.grouped
    assert len(data.names) <= figures.MOST_BARS + 1
    assert sum(data.snn) == pytest.approx(Report(counts).main.mean)
    assert sum(data.ann) == pytest.approx(Report(counts).ann())


def test_jinja2_is_asked_for(full: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'spikeloom\[report\]'"):
        render_page(full)


@pytest.mark.parametrize("name", ["layers", "rates", "samples", "steps", "ratios"])
def test_matplotlib_draws_the_same(full: Report, name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from spikeloom.energy.plots import plot

    path = tmp_path / f"{name}.png"
    plot(full, name).savefig(path)
    assert path.stat().st_size > 5000


def test_matplotlib_and_pictures_that_are_not(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from spikeloom.energy.plots import plot

    with pytest.raises(ValueError, match="no picture 'pie'; expected one of layers, rates"):
        plot(Report(build()), "pie")
    with pytest.raises(ValueError, match="hold nothing for the picture 'steps'"):
        plot(Report(build(T=1)), "steps")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'spikeloom\[report\]'"):
        plot(Report(build()), "rates")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_the_page(full: Report, dark: bool, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    page, shot = full.to_html(tmp_path / "report.html"), tmp_path / "shot.png"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1200,2400",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = image.imread(shot)[..., :3]
    assert pixels.shape[:2] == (2400, 1200)
    ground = pixels[5, 5]
    assert (ground.mean() < 0.2) == dark
    differs = np.abs(pixels - ground).max(2) > 0.05
    assert 0.05 < differs.mean() < 0.98
    for top in range(0, 2400, 400):  # something is drawn all the way down
        assert differs[top : top + 400].any()
    blue = (pixels[..., 2] > 0.7) & (pixels[..., 0] < 0.5)
    assert blue.sum() > 2000  # the bars of the spiking network


def test_the_largest_of_small_rates_is_not_0(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "rate_map", lambda report: RateMap(["a"], np.array([[0.0, 5.6e-5]]), "spikes"))
    assert re.findall(r'class="ramp"></span>([^<]*)<', render_page(Report(build()))) == ["5.6e-05"]


def test_equal_samples_are_one_dot_and_near_ticks_differ() -> None:
    values = np.array([5.12003e6] * 3 + [5.12005e6])
    root = drawn(pictures.distribution(Distribution(values, float(values.mean()), float("nan"), float("nan"))))
    assert len([shape for shape in root if shape.get("class") == "snn dot"]) == 2
    words = [shape.text for shape in root if shape.get("class") == "value halo"]
    assert words == ["×3"]
    ticks = [shape.text or "" for shape in root if shape.get("class") == "tick"][:-1]
    assert len(set(ticks)) == len(ticks) > 2
    assert len({len(tick) for tick in ticks}) == 1, "as many digits on every tick"


def test_the_line_of_the_ann_lies_below_the_numbers() -> None:
    root = drawn(pictures.step_curve(StepCurve("m", np.array([1.0, 2.0, 3.0]), 1.4, None)))
    styles = [shape.get("class") for shape in root]
    assert styles.index("ann-line") < styles.index("value snn-ink halo")
    assert styles.index("ann-line") > max(i for i, style in enumerate(styles) if style and style.startswith("snn"))
