"""docs/extending.md: every example on the page works with the scripts, as it is shown there."""

import csv
import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from net import NETWORKS, FusionNetwork, build_model, load_model
from net.base import register
from net.film import FILM
from tests import test_metrics
from tests.examples import PAGE, VARIANTS, in_place
from tests.test_export import untold  # noqa: F401
from tests.test_net import SMALL
from tests.test_scripts import only_run
from tests.toy import CONFIG, ROOT, TINY_NET, script
from utils import metrics
from utils.config import load_config
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.export import export_program
from utils.guides.guidance import GUIDES, Guidance, Guide, register_guide
from utils.loss import Loss, register_loss
from utils.provenance import GuideRecord
from utils.results.cost import cost_at

ROWS = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
MASKS = yaml.safe_load(re.search(r"`(Toy: \{.*?\}\})`", PAGE)[1])
CHOSEN = dict(re.findall(r"`net/(\w+)\.py`, chosen by `(net: .*?)`", PAGE))
MEAN = ["ckpt=null", "net={name: mean}"]


@pytest.fixture(autouse=True)
def examples(tmp_path):
    """The files of the page."""
    with in_place(tmp_path / "page", *VARIANTS, "contrast", "exposed_mean"):
        yield


def records(folder) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_one_file_and_one_line(name, prepared, tmp_path):
    chosen = yaml.safe_load(CHOSEN[name])["net"]
    words = [f"net.{key}={value}" for key, value in chosen.items()]
    words += ["loss={name: mean_edges}"] if name == "film_light" else []
    script("train.py", *prepared, *words, "train.epochs=1")
    folder = only_run(tmp_path)
    assert {path.name for path in (folder / "code").iterdir()} > {f"{name}.py", "film.py"}
    model = load_model(folder / "model" / "last.pth")
    assert model.options.items() >= (chosen.items() - {("name", name)}) | {("channels", 8)}
    assert f"\n{model.label}  " in script("test.py", *prepared, f"ckpt={folder}/model/last.pth")
    assert model.label != FILM.label
    for record in records(folder) if name == "film_light" else ():
        assert record["total"] == pytest.approx(record["mean"] + 10 * record["edges"])


def test_options_of_a_variant(tmp_path):
    """Options with None, of the base, by keyword only, and other defaults all come back from a checkpoint."""

    @register("film_optional")
    class Optional(FILM):
        def __init__(self, rank: int | None = None, *, gain: float = 1.0, channels: int = 24, **others):
            super().__init__(channels=channels, **others)
            self.rank, self.gain = rank, gain

    known = NETWORKS.defaults("film_optional")
    assert known == NETWORKS.defaults("film") | {"rank": None, "gain": 1.0, "channels": 24}
    sizes = {key: value for key, value in SMALL.items() if key != "channels"}
    for options in ({}, {"rank": 3, "gain": 0.5, "stages": 1}):
        model = build_model("film_optional", **sizes | options)
        assert model.config == {"name": "film_optional"} | known | sizes | options
        assert len(model.stages) == model.options["stages"] and model.stages[0].a.conv_in.out_channels == 24
        torch.save(model.checkpoint(), tmp_path / "x.pth")
        loaded = load_model(tmp_path / "x.pth")
        assert loaded.config == model.config and (loaded.rank, loaded.gain) == (model.rank, model.gain)
    assert Optional(5, **sizes).options["rank"] == 5  # whoever calls the constructor


def test_a_broken_file_leaves_the_other_networks(tmp_path):
    for folder in ("net", "utils"):
        shutil.copytree(ROOT / folder, tmp_path / "repo" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    film_blend = (tmp_path / "repo" / "net" / "film_blend.py").read_text()
    (tmp_path / "repo" / "net" / "broken.py").write_text(film_blend.replace("film_blend", "mine") + "import nowhere\n")
    (tmp_path / "repo" / "net" / "unread.py").write_text("import torch\nclass = 3\n")
    shutil.copy(tmp_path / "repo" / "net" / "film_instructed.py", tmp_path / "repo" / "net" / "copied.py")

    say = "import net; net.build_model('film_blend'); print(sorted(net.NETWORKS)); net.build_model('mine')"
    called = subprocess.run([sys.executable, "-c", say], cwd=tmp_path / "repo", capture_output=True, text=True)
    end = film_blend.count("\n") + 1
    broken = f"net/broken.py, line {end}, cannot be imported (ModuleNotFoundError: No module named 'nowhere')"
    unread = "net/unread.py, line 2, cannot be imported (SyntaxError: invalid syntax)"
    for reason in (broken, unread, "'film_instructed' is taken by net.copied.FILMInstructed)"):
        assert f"{reason}; what it registers is not there\n" in called.stderr
    assert {"film", "mgfusion", "max"} < set(yaml.safe_load(called.stdout)), called.stdout
    assert "mine" not in called.stdout  # although it was registered before the mistake
    assert f"net.name 'mine' is not known; {broken}; " in called.stderr and f"; {unread}; did you" in called.stderr


def test_a_loss_gets_further_maps(toy, prepared, tmp_path):
    @register_loss("masked")
    class MaskedLoss(Loss):
        maps = ("mask",)

        def forward(self, fused, image_a, image_b, mask, **batch):
            error = (fused - torch.maximum(image_a, image_b)).abs()
            return {"total": (mask * error).mean(), "all": error.mean()}

    words = [*prepared, "loss={name: masked}", "train.epochs=1"]
    output = script("train.py", *words, code=1)
    assert "holds no 'mask', which the loss or train.crop_on takes; name its folder under maps" in output
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(MASKS))
    folder = tmp_path / "VLF" / "Image" / "IVF" / "Toy" / MASKS["Toy"]["maps"]["mask"]
    folder.mkdir()
    for pair in ("a1", "a2", "a3", "a4"):
        cv2.imwrite(str(folder / f"{pair}.png"), np.full((40, 48), 51, np.uint8))  # a fifth of white
    script("data_process.py", *CONFIG, *toy, "Toy_train")
    script("train.py", *words)
    for record in records(only_run(tmp_path)):
        assert record["all"] > 0 and record["total"] == pytest.approx(record["all"] / 5, rel=1e-5)


def test_a_metric_is_a_column(prepared, tmp_path):
    output = script("test.py", *prepared, *MEAN, "test.metrics=[EN,MC]", "test.stretch=clamp", "--compare", "--report")
    assert re.search(r"\n +EN +MC\n", output)
    folder = tmp_path / "out" / "Toy"
    rows = [row for row in csv.DictReader((folder / "metrics.csv").open()) if row["method"] == "mean"]
    values = {row["image"]: float(row["value"]) for row in rows if row["metric"] == "MC"}
    for name in ("b1", "b2"):
        fused = cv2.imread(str(folder / "Gray" / f"{name}.png"), -1).astype(float)
        expected = (fused.max() - fused.min()) / (fused.max() + fused.min())
        assert values[name] == pytest.approx(expected)
    script("train.py", *prepared, "train.epochs=1", "data.val=[Toy_test]", "train.val_every=1", "train.best=MC")
    assert "MC" in torch.load(only_run(tmp_path) / "model" / "best.pth", weights_only=True)["scores"]
    test_metrics.test_every_metric_has_a_literal_form()  # of ours alone
    test_metrics.test_batch_of_n_is_n_singles("MC", torch.float32, 1e-3)


def test_a_metric_that_says_more_of_itself(monkeypatch):
    for name in ("METRICS", "LOWER_IS_BETTER", "INFRARED_ONLY"):
        monkeypatch.setattr(metrics, name, getattr(metrics, name).copy())
    metrics.register_metric("Haze", lower_is_better=True, infrared_only=True)(metrics.entropy)
    assert "Haze" in metrics.METRICS and "Haze" in metrics.LOWER_IS_BETTER and "Haze" in metrics.INFRARED_ONLY
    with pytest.raises(ValueError, match="the metric 'EN' is taken by utils.metrics.entropy"):
        metrics.register_metric("EN")(metrics.edge_intensity)
    with pytest.raises(ValueError, match="the guide 'clip' is taken"):
        register_guide("clip")(torch.add)


def place_pair(tmp_path, dataset: str) -> None:
    """One pair x, with colour, where the comment of a row says that it is, and its split file."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"{dataset}: "))
    places = re.findall(r"Image/[\w/]+\.png", line)
    for place, source in zip(places, ("IR", "VI"), strict=True):
        (tmp_path / "VLF" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "VLF" / "Image" / "IVF" / "Toy" / source / "b1.png", tmp_path / "VLF" / place)
    (tmp_path / "VLF" / "Image" / ROWS[dataset]["task"] / dataset / "test.txt").write_text("x\n")


@pytest.mark.parametrize("dataset", ROWS)
def test_rows_of_data_sets(dataset, toy, tmp_path):
    place_pair(tmp_path, dataset)
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(ROWS))
    words = [*CONFIG, *toy, *MEAN, f"data.test=[{dataset}_test]", f"test.output={tmp_path / 'out'}"]
    assert f"{dataset}_test.h5: 1 pairs" in script("data_process.py", *words, f"{dataset}_test")
    sample = PairDataset([tmp_path / "h5" / f"{dataset}_test.h5"], (), chroma=True)[0]
    assert sample["name"] == "x" and not torch.equal(sample["image_a"], sample["image_b"])
    assert bool((sample["chroma"] != 128).any()) == bool(ROWS[dataset]["color"])
    assert f"The test result of {dataset}:" in script("test.py", *words)
    assert (tmp_path / "out" / dataset / "RGB" / "x.png").is_file()


@pytest.fixture
def exposed(toy, tmp_path) -> list[str]:
    """The toy sets as H5, and a quick training of the network of the page."""
    words = [*CONFIG, *toy, "net={name: exposed_mean}"]
    script("data_process.py", *words)
    fast = ["train.crop=16", "train.epochs=1", "train.lr=0.1", "train.log_every=1"]
    fast += ["train.num_workers=0", "test.num_workers=0"]
    return [*words, *fast, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]


def test_a_guide_trains_and_tests(exposed, tmp_path):
    script("train.py", *exposed, "data.val=[Toy_test]", "train.val_every=1")
    assert "guided by exposure of both images" in (only_run(tmp_path) / "log.txt").read_text()
    ckpt = f"{only_run(tmp_path)}/model/last.pth"
    assert load_model(ckpt).provenance.guides == {"exposure": GuideRecord("both images")}
    resume = f"train.resume={ckpt}"
    script("train.py", *exposed, "data.val=[Toy_test]", "train.val_every=1", resume, "train.epochs=2")
    assert [record["epoch"] for record in records(only_run(tmp_path))] == [1, 1, 2, 2]
    output = script("test.py", *exposed, f"ckpt={ckpt}")
    assert "\nexposed_mean    " in output and "guided by exposure of both images" in output
    summary = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())
    assert summary["guides"] == {"exposure": {"name": "both images", "revision": None}}


def test_a_guide_is_part_of_no_cost():
    flops, _, _ = cost_at(build_model("exposed_mean").eval(), load_config(None), torch.device("cpu"), 24, 32)
    assert flops == 2 * (4 * 8 + 8)  # of the linear layers alone


def test_a_network_names_an_input_that_no_guide_gives(toy):
    @register("guided_by_nothing")
    class GuidedByNothing(FusionNetwork):
        inputs = ("exposur",)

    output = script("data_process.py", *CONFIG, *toy, "net={name: guided_by_nothing}", code=1)
    assert "takes the input 'exposur', which no guide gives; did you mean 'exposure'?" in output
    assert "Traceback" not in output


@pytest.mark.usefixtures("untold")
def test_an_export_computes_a_guide_itself(tmp_path):
    """A guide that is a function of the images is built in; of one that is not, a sentence says what is missing."""
    model = build_model("exposed_mean").eval()
    export_program(tmp_path / "m.onnx", model, load_config(None))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [each.name for each in session.get_inputs()] == ["image_a", "image_b"]
    a, b = torch.rand(2, 2, 1, 21, 34)
    with torch.inference_mode():
        expected = model(a, b, GUIDES["exposure"].open().encoder(a, b)).numpy()
    found = session.run(None, {"image_a": a.numpy(), "image_b": b.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)

    GUIDES["exposure"] = Guide(lambda *_: Guidance(GuideRecord("given")), make=None)
    with pytest.raises(InputError, match="takes the guide 'exposure': an .onnx needs fixed rows of it, and the option"):
        export_program(tmp_path / "m.onnx", model, load_config(None))


LINES = re.findall(r"`((?:text|net)\.\w+=[\w\[\]]+)`", PAGE[PAGE.index("## 6. Ablations") :])
SAMPLE = ["--config", "configs/demo.yaml", "data.train=[SampleIVF_train]", "data.test=[SampleIVF_test]", "data.val=[]"]


def test_ablations_train_and_test_by_their_line_alone(tmp_path):
    """On the sample; captions and texts of another folder have tests in test_describe.py and test_text.py."""
    for line in LINES[-2:]:  # of MGFusion
        assert build_model(**load_config("configs/mgfusion_ivf_small.yaml", [line]).net).options["without"]
    words = [*SAMPLE, *TINY_NET, "net.text_dim=384", f"data.h5={tmp_path / 'h5'}", "train.batch_size=2"]
    words += ["train.epochs=1", "train.lr=1e-2", "test.num_workers=0", "test.metrics=[EN]"]
    script("data_process.py", *words, "SampleIVF_train", "SampleIVF_test")
    results = {}
    for line in ["text.use=own", *(line for line in LINES[:-2] if not line.startswith("text.folder"))]:
        places = [f"train.exp={tmp_path / line}", f"test.output={tmp_path / line / 'out'}"]
        script("train.py", *words, line, *places)
        (last,) = (tmp_path / line).glob("*/model/last.pth")
        output = script("test.py", *[word for word in words if not word.startswith("net.")], *places, f"ckpt={last}")
        results[line] = next((tmp_path / line / "out").rglob("Gray/*.png")).read_bytes()
        assert ("FILM, " in output) == line.startswith("net.")
        if line != "text.use=own":
            output = script("train.py", *words, *places, "train.epochs=2", f"train.resume={last}", code=1)
            assert re.search(r"(text.use|net) is .* and was .* in the run to resume", output)
    assert len(results) == len(set(results.values())) == 7  # each is another network
