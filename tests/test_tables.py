"""Tables with other methods' folders, further checkpoints, two folders as a set, a truth, and a figure."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from net import build_model
from net.checkpoint import save_checkpoint
from tests.toy import script
from utils.data.images import read_image
from utils.metrics import measure
from utils.provenance import Provenance

EMPTY = ["ckpt=null", "test.metrics=[EN,Qabf]"]


def sides(tmp_path) -> list[Path]:
    """The folders of the toy set's sources."""
    return [tmp_path / "VLF" / "Image" / "IVF" / "Toy" / side for side in ("IR", "VI")]


@pytest.fixture
def results(prepared, tmp_path) -> Path:
    """A folder of another method: the maximum, under names of its own, in colour, with an image of no pair."""
    folder = tmp_path / "other results"
    folder.mkdir()
    a, b = sides(tmp_path)
    for path in sorted(a.iterdir()):
        other = next(b.glob(f"{path.stem}.*"))
        fused = np.maximum(read_image(path)[0], read_image(other)[0])
        cv2.imwrite(str(folder / f"fused_{path.stem}_v2.png"), cv2.cvtColor(fused, cv2.COLOR_GRAY2BGR))
    return folder


def rows(folder: Path) -> dict[tuple[str, str, str], float]:
    with open(folder / "metrics.csv", newline="") as file:
        found = {(row["method"], row["image"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    assert found
    return found


def test_another_methods_folder_is_a_row(prepared, results, tmp_path):
    words = [*prepared, "ckpt=null", "net={name: mean}", "test.metrics=[EN,Qabf]", "test.stretch=minmax"]
    output = script("test.py", *words, "--fused", f"Maximum={results}", "--compare", "--report")
    assert "images of" in output and "belong to no pair and are left out" in output  # the training pairs'
    assert "- Maximum" in output and "mean rank over images and metrics" in output
    found, folder = rows(tmp_path / "out" / "Toy"), tmp_path / "out" / "Toy"
    a, b = sides(tmp_path)
    for name in {image for _, image, _ in found}:
        expected = measure(results / f"fused_{name}_v2.png", next(a.glob(f"{name}.*")), next(b.glob(f"{name}.*")))
        assert found["Maximum", name, "Qabf"] == pytest.approx(expected["Qabf"], rel=1e-9)  # as it is: no stretch
    assert "as they are, not by minmax: Maximum; compare them with test.stretch=clamp" in output
    assert {line.split(",")[0] for line in (folder / "metrics.csv").open() if "as given" in line} == {"Maximum"}
    summary = json.loads((folder / "metrics.json").read_text())
    assert next(iter(summary["mean"])) == "mean" and "Maximum" in summary["mean"]
    assert summary["interval"]["Maximum"]["EN"][0] <= summary["mean"]["Maximum"]["EN"]
    assert "Maximum" in (folder / "table.tex").read_text() and "Maximum" in (folder / "table.md").read_text()
    assert (folder / "comparison.png").is_file() and (tmp_path / "out" / "report" / "index.html").is_file()


def test_two_splits_of_a_dataset_do_not_mix(prepared, tmp_path):
    words = [*prepared, "ckpt=null", "net={name: max}", "test.metrics=[EN]"]
    script("test.py", *words)
    before = rows(tmp_path / "out" / "Toy")
    said = script("test.py", *words, "data.test=[Toy_train]", code=1)
    assert "has the results of max on Toy_test; replace them by those of max on Toy_train with --overwrite" in said
    assert rows(tmp_path / "out" / "Toy") == before


def test_two_folders_without_a_network_and_without_an_h5(results, tmp_path):
    a, b = sides(tmp_path)
    words = ["--a", str(a), "--b", str(b), "test.metrics=[EN,Qabf]", "test.stretch=clamp"]
    words += ["--fused", f"Maximum={results}"]
    output = script("test.py", *words, f"test.output={tmp_path / 'two'}")
    assert "no network is in the table" in output
    found = rows(tmp_path / "two" / "IR+VI")
    assert {method for method, *_ in found} == {"Maximum", "mean", "max", "Laplacian"}  # the sample's config compares
    assert all(found["Maximum", image, "Qabf"] == found["max", image, "Qabf"] for _, image, _ in found)
    assert not (tmp_path / "two" / "IR+VI" / "Gray").exists()
    with_rule = script("test.py", *words[:4], "ckpt=null", "net={name: max}", f"test.output={tmp_path / 'rule'}")
    assert "written" in with_rule and len(list((tmp_path / "rule" / "IR+VI" / "RGB").iterdir())) == len(
        list(a.iterdir())
    )


def test_a_networks_guides_are_asked_for_on_folders(tmp_path, prepared):
    a, b = sides(tmp_path)
    words = ["--a", str(a), "--b", str(b), "ckpt=models/IVF.safetensors", "text.use=default", "test.metrics=[EN]"]
    assert "written" in script("test.py", *words, f"test.output={tmp_path / 'x'}")
    assert "text.use=default" in script("test.py", *words[:5], f"test.output={tmp_path / 'y'}", code=1)


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "there are no images in"),
        (lambda folder: sorted(folder.iterdir())[0].unlink(), "lacks the results of 1 of"),
        (
            lambda folder: shutil.copy(*[sorted(folder.iterdir())[0], folder / "fused_a1_v2.jpg"]),
            "two images of one name",
        ),
        (lambda folder: cv2.imwrite(str(sorted(folder.iterdir())[0]), np.zeros((9, 9), np.uint8)), "is 9 x 9 and its"),
        (lambda folder: cv2.imwrite(str(sorted(folder.iterdir())[0]), np.zeros((40, 48), np.uint16)), "are of 8 bit"),
        (lambda folder: sorted(folder.iterdir())[0].write_bytes(b"GIF89a"), "not an image that can be read"),
    ],
)
def test_a_folder_that_cannot_be_a_row_is_one_sentence(results, tmp_path, spoil, sentence):
    a, b = sides(tmp_path)
    spoil(results)
    words = ["--a", str(a), "--b", str(b), *EMPTY, "--fused", f"M={results}", f"test.output={tmp_path / 'two'}"]
    assert sentence in script("test.py", *words, code=1)
    assert not (tmp_path / "two" / "IR+VI").exists()


def test_mistakes_of_the_command_line(results, tmp_path):
    a, b = map(str, sides(tmp_path))
    fused = ["--fused", f"M={results}"]
    for words, sentence in (
        (["--a", a, *EMPTY, *fused], "--a and --b belong together"),
        (["--a", a, "--b", a, *EMPTY, *fused], "--a and --b belong together"),
        (["--a", a, "--b", b, *EMPTY, *fused, *fused], "two rows or pictures are called M"),
        (["--a", a, "--b", b, *EMPTY, "--fused", f"max={results}"], "two rows or pictures are called max"),
        (["--a", a, "--b", str(tmp_path), *EMPTY, *fused], "needs one partner of its name"),
        (["--a", a, "--b", b, *EMPTY, *fused, "--figure", "names=a1 boxes=1,2,3"], "--figure takes"),
        (["--a", a, "--b", b, *EMPTY, *fused, "--figure", "names=zz"], "there is no pair zz"),
        (["--a", a, "--b", b, *EMPTY, *fused, "--figure", "names=a1 boxes=0,0,999,9"], "is not inside a1"),
        (["--a", a, "--b", b, *EMPTY, *fused, "--with", "no/such.pth"], "no/such.pth"),
    ):
        assert sentence in script("test.py", *words, "--overwrite", f"test.output={tmp_path / 'two'}", code=1), words


def checkpoint(path: Path, seed: int, epochs: int = 1) -> Path:
    """A tiny network with weights of its own, as train.py saves it."""
    torch.manual_seed(seed)
    model = build_model("film", text_dim=12, hidden_dim=16, channels=8, heads=2, stages=1, token_grid=[8, 8])
    default = {"text": {"name": "given", "default": torch.zeros(1, 12)}}
    config = {"seed": seed, "name": f"run{seed}", "net": model.config, "train": {"epochs": epochs, "exp": "exp"}}
    save_checkpoint(path, model.checkpoint(Provenance({}, config, None, 1)) | {"guides": default})
    return path


def test_runs_that_differ_by_their_seed_are_one_row(prepared, tmp_path, monkeypatch):
    paths = [checkpoint(tmp_path / f"run{seed}.pth", seed) for seed in (1, 2, 3)]
    other = checkpoint(tmp_path / "longer.pth", 4, epochs=2)
    again = checkpoint(tmp_path / "again.pth", 4, epochs=2)  # of the same run, so no second seed
    words = [*prepared, f"ckpt={paths[0]}"]
    for word in (paths[1], paths[2], f"longer={other}", f"again={again}"):
        words += ["--with", str(word)]
    output = script("test.py", *words, "test.metrics=[EN,SF]")
    assert "FILM (3 seeds): ± EN" in output
    folder = tmp_path / "out" / "Toy"
    summary, found = json.loads((folder / "metrics.json").read_text()), rows(folder)
    assert list(summary["mean"]) == ["FILM (3 seeds)", "longer", "again"]
    runs = [
        [value for (label, _, metric), value in found.items() if label == run and metric == "SF"]
        for run in ("FILM", "FILM (run2)", "FILM (run3)")
    ]
    means = np.mean(runs, axis=1)
    assert summary["mean"]["FILM (3 seeds)"]["SF"] == pytest.approx(means.mean())
    assert summary["std"]["FILM (3 seeds)"]["SF"] == pytest.approx(means.std(ddof=1))
    assert f"{means.mean():.2f} ± {means.std(ddof=1):.2f}" in (folder / "table.md").read_text()


def test_sensitivity_and_figure(results, tmp_path):
    a, b = sides(tmp_path)
    words = [
        "--a",
        str(a),
        "--b",
        str(b),
        "ckpt=null",
        "net={name: mean}",
        "test.metrics=[SD,EN]",
        "test.stretch=clamp",
    ]
    extra = ["--fused", f"Maximum={results}", "--sensitivity", "--figure", "names=a1,a2 boxes=2,3,10,8;20,9,12,12"]
    output = script("test.py", *words, *extra, f"test.output={tmp_path / 'two'}")
    assert "rank" in output
    summary = json.loads((tmp_path / "two" / "IR+VI" / "metrics.json").read_text())
    sensitivity = summary["sensitivity"]
    assert list(sensitivity) == ["clamp", "minmax", "truncate", "round"]
    assert sensitivity["minmax"]["mean"]["SD"] > sensitivity["clamp"]["mean"]["SD"]  # a stretch raises it
    assert sensitivity["minmax"]["Maximum"] == sensitivity["clamp"]["Maximum"]  # read as it is
    figure = cv2.imread(str(tmp_path / "two" / "figure.png"))
    assert figure.shape[1] > 4 * 48 and (tmp_path / "two" / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_truth_gives_columns(toy, tmp_path):
    """`truth` of a row: the maximum is nearer to the maximum than the mean is."""
    a, b = sides(tmp_path)
    truth = a.parent / "BEST"
    truth.mkdir()
    for path in a.iterdir():
        best = np.maximum(read_image(path)[0], read_image(next(b.glob(f"{path.stem}.*")))[0])
        cv2.imwrite(str(truth / f"{path.stem}.png"), best)
    table = tmp_path / "datasets.yaml"
    table.write_text("Toy: {task: IVF, a: IR, b: VI, color: [VI], truth: BEST}")
    words = ["--config", "configs/film_ivf.yaml", *toy, f"data.datasets={table}", "ckpt=null", "net={name: mean}"]
    output = script("test.py", *words, f"test.output={tmp_path / 'out'}", "test.stretch=clamp", "--compare")
    assert "PSNR_truth" in output and "GMSD_truth↓" in output
    mean = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())["mean"]
    assert mean["mean"]["PSNR_truth"] < 60 and mean["mean"]["GMSD_truth"] > mean["max"]["GMSD_truth"] == 0
    assert mean["max"]["SSIM_truth"] == pytest.approx(1)
