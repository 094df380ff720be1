"""MGFusion: its parts, its ablations, and CLIP through the real loading code on a tiny random model in a folder."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from net import build_model, load_model
from tests import literal
from tests.test_scripts import only_run
from tests.toy import process, script
from train import learning_rate
from utils.config import Config, Train
from utils.data.pairs import PairDataset
from utils.errors import InputError
from utils.guides import open_guides
from utils.guides.clip import ClipEncoder
from utils.provenance import GuideRecord

SMALL = dict(clip_dim=12, channels=8, heads=2, blocks=1)
NET = "net={name: mgfusion, clip_dim: 12, channels: 8, heads: 2, blocks: 1}"
MGFUSION = ["--config", "configs/mgfusion_ivf.yaml", NET]
FAST = ["train.crop=16", "train.batch_size=2", "train.epochs=2", "train.num_workers=0", "train.log_every=1"]
FAST += ["test.num_workers=0"]


def tiny_clip(width: int = 12):
    """Sizes of a CLIP, as transformers takes them."""
    from transformers import CLIPVisionConfig  # seconds to import, as below

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=width, **sizes)


def save_clip(folder, seed: int, width: int = 12) -> str:
    from transformers import CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    CLIPVisionModelWithProjection(tiny_clip(width)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    return save_clip(tmp_path_factory.mktemp("models") / "tiny-clip", seed=0)


@pytest.fixture
def sets(toy, tmp_path, clip_folder) -> list[str]:
    """The toy sets as H5 with CLIP vectors, and what a quick training takes."""
    words = [*MGFUSION, *toy, f"clip={clip_folder}"]
    script("data_process.py", *words)
    return [*words, *FAST, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]


def example(size: tuple[int, int] = (24, 20)) -> list[torch.Tensor]:
    """A and B of two pairs, and their CLIP vectors."""
    return [*torch.rand(2, 2, 1, *size), torch.randn(2, 2, 12)]


def test_ablations_take_out_their_part_alone():
    """Each is the whole network with that part made to do nothing."""
    whole = build_model("mgfusion", **SMALL).eval()
    batch = example()
    for without, parts in ((["cii"], ("cii_a", "cii_b")), (["cff"], ("cff",))):
        ablated = build_model("mgfusion", **SMALL, without=without).eval()
        kept = {name: value for name, value in whole.state_dict().items() if not name.startswith(parts)}
        ablated.load_state_dict(kept)  # strict: the same parameters but for the part's
        neutral = build_model("mgfusion", **SMALL).eval()
        neutral.load_state_dict(whole.state_dict())
        with torch.no_grad():
            assert not torch.allclose(ablated(*batch), whole(*batch))
            if without == ["cii"]:
                for cii in (neutral.cii_a, neutral.cii_b):  # adds nothing
                    cii.adapter[1].weight.zero_()
                    cii.adapter[1].bias.zero_()
            else:
                for adapter in (neutral.cff.ira, neutral.cff.via):  # channel weights of 1, no texture added
                    adapter[1].weight.zero_()
                    adapter[1].bias.fill_(1)
                neutral.cff.sawp[2].weight.zero_()
                neutral.cff.sawp[2].bias.fill_(-1e4)
            torch.testing.assert_close(ablated(*batch), neutral(*batch), atol=1e-6, rtol=0)


def test_equations_of_the_paper():
    model = build_model("mgfusion", **SMALL).double().eval()
    for value in model.state_dict().values():  # nothing at its neutral start
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
    batch = [x.double() for x in example((13, 31))]
    with torch.no_grad():
        expected = literal.mgfusion(model.state_dict(), *batch, lambda name, x: model.get_submodule(name)(x))
        torch.testing.assert_close(model(*batch), expected, atol=1e-10, rtol=0)
    assert expected.std() > 1e-3  # not saturated


@pytest.mark.parametrize("size", [(60, 97), (20, 11)])
def test_preprocessing_is_clips_own(clip_folder, size):
    from transformers import CLIPImageProcessor

    levels = torch.nn.functional.avg_pool2d(torch.rand(1, 1, size[0] + 4, size[1] + 4), 5, 1) * 255
    image = levels[0, 0].byte().numpy()
    image[: size[0] // 2] = 255 * (image[: size[0] // 2] > 127)  # edges that bicubic overshoots
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(Image.fromarray(image).convert("RGB"), return_tensors="pt")["pixel_values"]
    ours = ClipEncoder(clip_folder).preprocess(torch.from_numpy(image / np.float32(255))[None, None])
    torch.testing.assert_close(ours, expected, atol=0.03, rtol=0)  # theirs rounds to 8 bit in between: 0.015


def test_vectors_are_those_of_transformers(clip_folder):
    from transformers import CLIPVisionModelWithProjection

    a, b = torch.rand(2, 3, 1, 40, 50)
    encoder = ClipEncoder(clip_folder)
    assert encoder.dim == 12 and encoder.record.name == clip_folder
    vectors = encoder(a.requires_grad_(), b)
    assert vectors.shape == (3, 2, 12) and not vectors.requires_grad
    model = CLIPVisionModelWithProjection.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        expected = model(pixel_values=encoder.preprocess(b)).image_embeds
    torch.testing.assert_close(vectors[:, 1], expected, atol=1e-5, rtol=0)


def test_random_clip_is_the_same_every_time_and_leaves_the_seed_alone(monkeypatch):
    config = tiny_clip()
    monkeypatch.setattr("transformers.CLIPVisionConfig", lambda: config)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = ClipEncoder("random").record
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(6)
    assert ClipEncoder("random").record == first and first.name == "random"


def test_the_same_clip_elsewhere_is_the_same(sets, tmp_path, clip_folder):
    shutil.copytree(clip_folder, tmp_path / "moved")
    script("train.py", *sets, f"clip={tmp_path / 'moved'}", "data.val=[Toy_train]")
    script("test.py", *sets, f"clip={tmp_path / 'moved'}", f"ckpt={only_run(tmp_path)}/model/last.pth")
    resumed = [*sets, "data.val=[Toy_train]", f"train.resume={only_run(tmp_path)}/model/last.pth"]
    assert "train.epochs is 3 and was 2" in script("train.py", *resumed, "train.epochs=3", code=1)  # of a warm-up


def test_vectors_of_an_unknown_clip_are_refused(sets, tmp_path):
    with h5py.File(tmp_path / "h5" / "Toy_train.h5", "r+") as file:
        del file.attrs["clip_revision"]
    assert "does not say which CLIP" in script("train.py", *sets, code=1)


def test_weights_that_cannot_be_had(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="hf download .* clip=models/clip"):
        ClipEncoder(str(tmp_path / "empty"))
    path = save_clip(tmp_path / "narrow", 0, width=7)
    with pytest.raises(InputError, match="vectors 7 wide and the network takes 12"):
        open_guides(Config(clip=path), build_model("mgfusion", **SMALL), [], torch.device("cpu"))


def test_h5_vectors_equal_those_computed_on_the_fly(sets, toy, tmp_path, clip_folder):
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        assert set(file) == {"imageA", "imageB", "clip", "chroma"} and file["clip/b1"].shape == (2, 12)
        assert file.attrs["clip_name"] == clip_folder and len(file.attrs["clip_revision"]) == 16
    dataset = PairDataset([tmp_path / "h5" / "Toy_test.h5"], ["clip"])
    (record,) = dataset.features["clip"].records.values()
    assert dataset.features["clip"].width == 12 and record == ClipEncoder(clip_folder).record
    sample = dataset[0]
    fresh = ClipEncoder(clip_folder)(sample["image_a"][None], sample["image_b"][None])
    torch.testing.assert_close(sample["clip"][None], fresh, atol=1e-5, rtol=0)

    script("train.py", *sets)
    checkpoint = f"ckpt={only_run(tmp_path)}/model/last.pth"
    script("test.py", *sets, checkpoint)
    script("data_process.py", *MGFUSION, *toy, "net={name: mean}", f"data.h5={tmp_path / 'bare'}")
    script("test.py", *sets, checkpoint, f"data.h5={tmp_path / 'bare'}", f"test.output={tmp_path / 'out2'}")
    with_h5, on_the_fly = (json.loads((tmp_path / f / "Toy" / "metrics.json").read_text()) for f in ("out", "out2"))
    expected = {"name": record.name, "revision": record.revision}
    assert with_h5["guides"]["clip"] == on_the_fly["guides"]["clip"] == expected
    for image in ("b1", "b2"):
        pictures = [(tmp_path / f / "Toy" / "Gray" / f"{image}.png").read_bytes() for f in ("out", "out2")]
        assert pictures[0] == pictures[1]


def test_training_leaves_clip_out_of_the_checkpoint(sets, tmp_path, clip_folder):
    """Vectors of whole images, from the H5, and of crops train other weights; CLIP stays as it is."""
    before, weights = ClipEncoder(clip_folder).record, []
    for guide in ("image", "crop"):
        words = [f"clip_input={guide}", f"name={guide}", "data.val=[Toy_test]", "train.val_every=2"]
        script("train.py", *sets, *words, *(["clip=null"] if guide == "image" else []))  # the H5 has them
        (folder,) = tmp_path.glob(f"exp/*_{guide}")
        checkpoint = torch.load(folder / "model" / "last.pth", weights_only=True)
        assert GuideRecord(**checkpoint["guides"]["clip"]) == before == ClipEncoder(clip_folder).record
        assert not any("clip" in name and "clip_weight" not in name for name in checkpoint["model"])
        model = load_model(folder / "model" / "last.pth")
        trained = sum(len(group["params"]) for group in checkpoint["optimizer"]["param_groups"])
        assert trained == len(list(model.parameters())) and set(checkpoint["guides"]) == {"clip"}
        assert f"guided by CLIP {before.name}" in (folder / "log.txt").read_text()
        weights.append(model.cff.ira[0].weight)
    assert not torch.equal(*weights)


@pytest.mark.slow
def test_two_processes_share_the_statistics_of_batch_normalisation(sets, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    output = process(*launcher, "train.py", *sets, "data.val=[Toy_test]", "train.val_every=1", "train.best=AG")
    assert "epoch 2/2: " in output
    model = load_model(only_run(tmp_path) / "model" / "last.pth")
    alone = process("test.py", *sets, f"ckpt={only_run(tmp_path)}/model/last.pth", "test.metrics=[AG]")
    records = [json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    (score,) = (record["AG"] for record in records if record["kind"] == "val" and record["epoch"] == 2)
    summary = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())
    assert summary["mean"][model.label]["AG"] == pytest.approx(score, rel=1e-6), alone


def test_another_clip_is_refused(sets, toy, tmp_path, clip_folder):
    other = save_clip(tmp_path / "other-clip", seed=1)
    output = script("train.py", *sets, f"clip={other}", code=1)
    assert "/tiny-clip (" in output and "/other-clip (" in output
    script("train.py", *sets)
    checkpoint = f"ckpt={only_run(tmp_path)}/model/last.pth"
    images = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    own = [images / "IR" / "b1.png", images / "VI" / "b1.png", "-o", tmp_path / "fused.png", checkpoint, "device=cpu"]
    assert "/other-clip (" in script("fuse.py", *own, f"clip={other}", code=1)
    assert "/tiny-clip" in script("fuse.py", *own) and (tmp_path / "fused.png").exists()
    script("data_process.py", *MGFUSION, *toy, f"clip={other}")
    assert "/other-clip (" in script("test.py", *sets, checkpoint, "clip=null", code=1)
    resume = f"train.resume={only_run(tmp_path)}/model/last.pth"
    assert "in the run to resume" in script("train.py", *sets, f"clip={other}", resume, "train.epochs=3", code=1)


def test_a_random_clip_is_said_everywhere(sets, toy, tmp_path, monkeypatch):
    config = tiny_clip()
    monkeypatch.setattr("transformers.CLIPVisionConfig", lambda: config)
    assert "random weights" in script("data_process.py", *sets, "clip=random")
    script("train.py", *sets, "clip=random")
    assert "random weights" in (only_run(tmp_path) / "log.txt").read_text()
    output = script("test.py", *sets, "clip=random", f"ckpt={only_run(tmp_path)}/model/last.pth", "--compare")
    assert "MGFusion (random CLIP)" in output and "CLIP random (random weights)" in output
    summary = json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())
    assert summary["guides"]["clip"]["name"] == "random" and summary["network"] == "MGFusion (random CLIP)"


def test_a_set_without_vectors_needs_crops_or_clip(sets, toy, tmp_path):
    script("data_process.py", *MGFUSION, *toy, "net={name: mean}")
    assert "clip_input=image needs CLIP vectors in the H5" in script("train.py", *sets, code=1)
    script("train.py", *sets, "clip_input=crop")


def test_without_both_parts_no_clip_is_loaded(sets, tmp_path):
    script("train.py", *sets, "net.without=[cii,cff]", f"clip={tmp_path / 'none'}")
    assert torch.load(only_run(tmp_path) / "model" / "last.pth", weights_only=True)["guides"] == {}


def test_learning_rate_of_the_paper():
    rate = learning_rate(Train(epochs=100, lr=1e-3, schedule="warmup", warmup=20, lr_low=1e-4))
    assert [1e-3 * rate(epoch) for epoch in (0, 10, 20, 99)] == pytest.approx([1e-4, 5.5e-4, 1e-3, 1e-4])
    film = learning_rate(Train())
    assert [film(epoch) for epoch in (0, 49, 50, 149)] == pytest.approx([1, 1, 0.6, 0.36])
