"""Curves and bars: what is drawn where; the report, opened in a browser; HParams."""

import dataclasses
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from deberta_jax.report.hparams import write_hparams
from deberta_jax.report.page import write_page
from deberta_jax.report.sweep_results import NOT_STARTED
from deberta_jax.report.variant_curves import plot_differences, plot_variants
from deberta_jax.schema import Config
from tests.report.made import make_sweep

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture
def results(tmp_path, seed):
    return make_sweep(tmp_path, seed)


def workdirs(results):
    found = {}
    for result in results:
        found.setdefault(result.variant, []).append(result.workdir)
    return found


def configs(results):
    base = Config()
    changed = {}
    for result in results:
        given = result.changes.get("model.pos_att_type", base.model.pos_att_type)
        model = dataclasses.replace(base.model, pos_att_type=given)
        changed[result.variant] = dataclasses.replace(base, model=model)
    return changed


def test_every_variant_has_a_line_and_a_span(results, tmp_path):
    plot_variants(workdirs(results), tmp_path / "a.svg")
    tree = ElementTree.parse(tmp_path / "a.svg")
    ids = {element.get("id") for element in tree.iter()}
    assert {f"variant-{i}-{what}" for i in range(3) for what in ("line", "span")} <= ids
    again = (tmp_path / "a.svg").read_bytes()
    plot_variants(workdirs(results), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == again


def test_what_nobody_measured_is_not_drawn(results, tmp_path):
    assert plot_variants(workdirs(results), tmp_path / "a.png", "eval/no_such_metric") is None
    unstarted = [dataclasses.replace(r, state=NOT_STARTED, metrics={}) for r in results]
    assert plot_differences(unstarted, tmp_path / "b.png") is None
    assert not list(tmp_path.glob("*.png"))
    assert plot_differences(results, tmp_path / "b.png") == tmp_path / "b.png"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


class Tables(HTMLParser):
    """The words of every cell, row by row; and whatever is to be fetched."""

    def __init__(self):
        super().__init__()
        self.rows, self.fetched, self._cell = [], [], False

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.fetched += [given[key] for key in ("src", "href") if given.get(key, "#")[0] != "#"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data.strip()


def test_the_report_says_all_and_needs_nothing_else(results, tmp_path):
    path = tmp_path / "report.html"
    write_page(results, configs(results), path, "made up", "A sweep & its title")
    text = path.read_text()
    tables = Tables()
    tables.feed(text)
    assert not tables.fetched and "@import" not in text and "fetch(" not in text
    assert "<b>odd</b>" not in text and "&lt;no&gt; such &amp; thing" in text
    words = {row[0]: row for row in tables.rows}
    assert words["model.pos_att_type"][1:] == ["('c2p', 'p2c')", "()", "('c2p',)"]
    for result in results:
        assert words[result.name][1] == result.state
        if result.metrics:
            assert words[result.name][3] == f"{result.metrics['eval/loss']:.4f}"
    ids = re.findall(r'\bid="([^"]+)"', text)
    twice = {i for i in ids if ids.count(i) > 1 and not i.startswith("variant-")}
    assert not twice


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_report_works_in_a_browser(results, tmp_path):
    """Its own script unticks a variant, turns to another curve, and sorts by the loss."""
    path = tmp_path / "report.html"
    write_page(results, configs(results), path, "made up")
    act = """<script>
      document.querySelectorAll("#variants input")[1].click();
      document.querySelectorAll("nav.tabs button")[2].click();
      const head = document.querySelectorAll("#variants th")[2]; head.click(); head.click();
      window.addEventListener("error", event => document.title = "broken: " + event.message);
    </script></body>"""
    path.write_text(path.read_text().replace("</body>", act))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    dom = done.stdout
    assert "<title>made up</title>" in dom
    tables = Tables()
    tables.feed(dom)
    order = [row[0] for row in tables.rows[1:4]]
    assert order == ["<b>odd</b>", "better", "plain"]  # the worst first
    hidden = re.findall(r'<g id="variant-(\d)-\w+" style="visibility: hidden;">', dom)
    assert hidden and set(hidden) == {"1"}
    assert re.findall(r'class="curve shown" data-curve="(\d)"', dom) == ["2"]


def events(path):
    """The events of a file: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_hparams_stand_beside_each_finished_run(results):
    write_hparams(results)
    write_hparams(results)  # a second time, in the place of the first
    for result in results:
        files = list((result.workdir / "tensorboard").glob("*.hparams"))
        assert len(files) == bool(result.metrics)
        if not files:
            continue
        told = {}
        for event in events(files[0]):
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "hparams"
                told[value.tag] = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        start = told["_hparams_/session_start_info"].session_start_info
        assert start.hparams["variant"].string_value == result.variant
        assert start.hparams["seed"].number_value == result.seed
        metrics = told["_hparams_/experiment"].experiment.metric_infos
        assert {m.name.tag for m in metrics} == {"eval/loss", "eval/mlm_accuracy"}
        assert "_hparams_/session_end_info" in told
