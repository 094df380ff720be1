"""The report in a real headless browser (skipped where there is none), and tables to paste."""

import html
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from tests.test_faults import files
from tests.toy import script
from utils.config import Config
from utils.results.report import Report
from utils.results.table import to_paste

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SUMMARY = {
    "set": "Toy_test",
    "dataset": "My_set",
    "network": "ours",
    "ckpt": "w.pth",
    "stretch": "minmax",
    "precision": "fp32",
    "metrics": ["EN", "CE"],
    "mean": {"ours": {"EN": 7.001, "CE": 2.0}, "max": {"EN": 6.9, "CE": 1.0}, "mean": {"EN": 7.0, "CE": float("nan")}},
    "published": {"A & B~, Table 1": {"FILM": {"EN": 7.4}}},
    "left_out": {"mean": {"CE": ["a", "b"]}},
    "marks": {"ours": {"EN": 1, "CE": 2}, "max": {"EN": 2, "CE": 1}, "mean": {"EN": 0, "CE": 0}},
    "std": {"max": {"EN": 0.123, "CE": 0.2}},
}

# what a reader does; the title holds what came of it
PLAY = """
<script>
addEventListener("load", () => {
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const names = () => all(".images tbody button").map(button => button.textContent).join(" ");
  const seen = {first: names(), chosen: document.querySelector(".viewer h3").textContent};
  seen.loaded = all(".slide img").every(image => image.complete && image.naturalWidth > 0);
  const head = text => all(".images th button").find(button => button.textContent === text);
  head("EN").click(); seen.EN = names(); head("EN").click(); seen.ENagain = names();
  head("CE\\u2193").click(); seen.CE = names(); head("image").click(); seen.image = names();
  all(".images tbody button").find(button => button.textContent === "c</script>").click();
  seen.clicked = document.querySelector(".viewer h3").textContent;
  const range = document.querySelector("input[type=range]");
  range.value = 25; range.dispatchEvent(new Event("input"));
  const over = document.querySelectorAll(".slide img")[1];
  seen.cut = over.style.clipPath;
  document.querySelector("[aria-label='zoom in']").click();
  const transforms = new Set(all(".view img").map(image => image.style.transform));
  seen.together = transforms.size; seen.scale = document.querySelector(".viewer").dataset.scale;
  const view = document.querySelector(".view"); view.focus();
  view.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true, cancelable: true}));
  seen.moved = !transforms.has(document.querySelector(".view img").style.transform);
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  seen.errors = window.problems;
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>
"""


@pytest.fixture
def page(tmp_path):
    rng, values = np.random.default_rng(0), {"a": (3.0, 1.0), "b": (1.0, 2.0), "c</script>": (2.0, None)}
    report = Report(tmp_path / "report")
    for i in range(len(values)):
        report.add_images(i, "", dict(enumerate(rng.integers(0, 256, (6, 30, 40), dtype=np.uint8))))
    report.add_numbers(SUMMARY, {"ours": {name: dict(zip(("EN", "CE"), row)) for name, row in values.items()}})
    report.write(Config(), "abc")
    return tmp_path / "report" / "index.html"


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1300, 390], ids=["desk", "phone"])
def test_report_in_a_browser(page, tmp_path, width):
    catcher = "<script>window.problems = 0; addEventListener('error', () => window.problems++);</script>"
    play = PLAY.replace("c</script>", "c<\\/script>")
    page.write_text(page.read_text().replace("<head>", "<head>" + catcher).replace("</body>", play + "</body>"))
    frame = page.with_name("frame.html")  # narrower than the narrowest window
    frame.write_text(
        f'<iframe src="index.html" width="{width}" height="900"></iframe>'
        "<script>addEventListener('message', event => document.title = event.data)</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    options += ["--window-size=1400,1000", "--virtual-time-budget=3000"]
    command = [BROWSER, *options, "--dump-dom", frame.as_uri()]
    call = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", call.stdout, re.DOTALL)[1]))
    odd = "c</script>"
    assert seen == {
        "first": f"b a {odd}",  # the worst of the last metric, where lower is better; no value comes last
        "chosen": "b",
        "EN": f"b {odd} a",
        "ENagain": f"a {odd} b",
        "CE": f"b a {odd}",
        "image": f"a b {odd}",
        "clicked": odd,
        "cut": "inset(0px 0px 0px 25%)",
        "together": 1,
        "scale": "1.50",
        "moved": True,
        "loaded": True,
        "wide": True,
        "errors": 0,
    }


def test_report_needs_no_network(page):
    text = page.read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(", text) and "fetch(" not in text


def test_report_of_a_test(prepared, tmp_path):
    """It replaces a report, and nothing else."""
    words, folder = [*prepared, "ckpt=null", "net={name: max}", "--report"], tmp_path / "out" / "report"
    assert f"open in a browser: {folder}/index.html" in script("test.py", *words)
    (folder / "thesis.tex").write_text("mine")
    pictures = {f"report/images/1/{pair}_{k}.png" for pair in range(2) for k in range(2 + 2 + 3)}
    found = {name for name in files(tmp_path / "out") if name.startswith("report/")}
    assert found == {"report/index.html", "report/thesis.tex", *pictures}  # A, B, fused, in colour, three other rules
    assert cv2.imread(str(folder / "images" / "1" / "0_2.png")) is not None
    (folder / "index.html").write_text("mine")
    assert "is there and is no report" in script("test.py", *words, code=1)


def test_tables_to_paste():
    assert (
        to_paste(SUMMARY, latex=True)
        == r"""\begin{tabular}{lcc}
\toprule
My\_set & EN & CE$\downarrow$ \\
\midrule
ours & \textbf{7.00} & \underline{2.00} \\
max & \underline{6.90} $\pm$ 0.12 & \textbf{1.00} $\pm$ 0.20 \\
mean & 7.00 & - \\
\midrule
\multicolumn{3}{l}{published: A \& B\textasciitilde{}, Table 1} \\
FILM & 7.40 & - \\
\bottomrule
\end{tabular}
% left out of the mean CE of mean, undefined there: 2 (a, b)
"""
    )
    assert (
        to_paste(SUMMARY, latex=False)
        == """| My_set | EN | CE↓ |
| --- | ---: | ---: |
| ours | **7.00** | <u>2.00</u> |
| max | <u>6.90</u> ± 0.12 | **1.00** ± 0.20 |
| mean | 7.00 | - |
| published: A & B~, Table 1 | | |
| FILM | 7.40 | - |
<!-- left out of the mean CE of mean, undefined there: 2 (a, b) -->
"""
    )
