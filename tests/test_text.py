"""Text encoders through the real loading code: tiny random models of the same classes, saved to a folder."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from net import load_model
from net.film import FILM
from tests.test_scripts import only_run
from tests.toy import CONFIG, FAST, script
from utils.data.features import check_feature
from utils.errors import InputError
from utils.files import write_file
from utils.guides.text import TextEncoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "warm", "car", "stands", "at", "the", "dark", "road", "trees", "and", "sky"]

SIZES = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def save_tokenizer(folder) -> None:
    from transformers import BertTokenizerFast

    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)


def save_bert(folder) -> str:
    """A tiny AutoModel."""
    from transformers import BertConfig, BertModel

    save_tokenizer(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def blip2(tmp_path_factory) -> str:
    """A tiny BLIP-2 with a Q-Former that takes text."""
    from transformers import Blip2Config, Blip2TextModelWithProjection

    folder = tmp_path_factory.mktemp("models") / "tiny-blip2"
    save_tokenizer(folder)
    torch.manual_seed(0)
    words = dict(vocab_size=len(WORDS), max_position_embeddings=16, use_qformer_text_input=True)
    qformer, vision = SIZES | words | {"encoder_hidden_size": 12}, SIZES | dict(image_size=8, patch_size=4)
    text = SIZES | dict(model_type="opt", ffn_dim=16, vocab_size=20, word_embed_proj_dim=12)
    config = Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text)
    Blip2TextModelWithProjection(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["auto", "blip2"])
def test_tokens_of_both_paragraphs_in_order(kind, request):
    path = request.getfixturevalue({"auto": "bert", "blip2": "blip2"}[kind])
    encoder = TextEncoder(kind, path)
    assert encoder.dim == 12 and encoder.name == f"{kind}:tiny-{'bert' if kind == 'auto' else 'blip2'}"
    a, b = "a warm car stands at the road", "dark trees"
    (feature,) = encoder.encode_pairs([(a, b)])
    alone = [encoder.encode([text])[0] for text in (a, b)]
    assert [len(x) for x in alone] == [9, 4]  # words, [CLS] and [SEP]
    assert feature.shape == (13, 12) and feature.dtype == np.float32
    np.testing.assert_allclose(feature, np.concatenate(alone), atol=1e-5)  # padding changes nothing
    many = encoder.encode_pairs([(a, b), (b, a), (b, b)], batch_size=2)
    np.testing.assert_allclose(many[0], feature, atol=1e-5)
    np.testing.assert_allclose(many[1], np.concatenate(alone[::-1]), atol=1e-5)


def test_long_paragraphs_are_cut_and_counted(bert):
    encoder = TextEncoder("auto", bert)
    features = encoder.encode(["car " * 40, "a car"])
    assert len(features[0]) == 16 and encoder.truncated == 1


def test_weights_that_cannot_be_used_are_one_sentence(bert, blip2, tmp_path):
    """Missing, of another model or damaged: not filled up with random numbers, and no traceback."""
    damaged = shutil.copytree(bert, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"123")
    for encoder, path in (("auto", tmp_path), ("blip2", tmp_path), ("blip2", bert), ("auto", blip2), ("auto", damaged)):
        with pytest.raises(InputError, match="cannot be loaded from .* give text.path"):
            TextEncoder(encoder, str(path))


def test_features_of_wrong_shape():
    assert check_feature("text", np.zeros((1, 3, 4), np.float32)).shape == (3, 4)
    for array in (np.zeros(3), np.zeros((2, 3, 4)), np.zeros((0, 4)), np.zeros((3, 4), int), np.full((2, 2), np.inf)):
        with pytest.raises(ValueError):
            check_feature("text", array)
    with pytest.raises(ValueError, match="its clip has 3 rows and not 2"):
        check_feature("clip", np.zeros((3, 4)))


@pytest.fixture
def paragraphs(toy, tmp_path, bert) -> list[str]:
    """The toy set to test on, where b1 has paragraphs and no feature: the words that make its H5."""
    base = tmp_path / "VLF"
    (base / "TextFeature" / "IVF" / "Toy" / "b1.npy").unlink()
    for folder, text in (("IR", "a warm car"), ("VI", "the dark road")):
        (base / "Text" / "IVF" / "Toy" / folder).mkdir(parents=True)
        (base / "Text" / "IVF" / "Toy" / folder / "b1.txt").write_text(text)
    return ["--config", "configs/film_ivf.yaml", *toy, "Toy_test", "text.encoder=auto", f"text.path={bert}"]


def test_data_process_encodes_where_there_is_no_feature(paragraphs, tmp_path, bert):
    given = tmp_path / "VLF" / "TextFeature" / "IVF" / "Toy" / "b2.npy"
    script("data_process.py", *paragraphs)
    expected = TextEncoder("auto", bert).encode_pairs([("a warm car", "the dark road")])[0]
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        np.testing.assert_allclose(file["text/b1"][()], expected, atol=1e-5)
        np.testing.assert_array_equal(file["text/b2"][()], np.load(given))
        assert file.attrs["text_encoder"] == "auto:tiny-bert" and file["text/b1"].attrs["rows_of_a"] == 5
    np.save(given, np.zeros((3, 13), np.float32))
    assert "'b2' is 13 wide, the rest 12" in script("data_process.py", *paragraphs, code=1)


@pytest.fixture
def words(toy, tmp_path, bert) -> list[str]:
    """The toy sets, with paragraphs and no features: what makes their H5, trains and tests quickly."""
    for image in (tmp_path / "VLF" / "Image" / "IVF" / "Toy").glob("*/*.png"):
        dark = f"the dark road {'and trees' if '1' in image.stem else ''}"
        text = "a warm car" if image.parent.name == "IR" else dark
        write_file(tmp_path / "VLF" / "Text" / "IVF" / "Toy" / image.parent.name / f"{image.stem}.txt", text)
    shutil.rmtree(tmp_path / "VLF" / "TextFeature")
    words = [*CONFIG, *toy, *FAST, "train.epochs=1", f"text.path={bert}", "text.encoder=auto"]
    return [*words, f"train.exp={tmp_path / 'exp'}", f"test.output={tmp_path / 'out'}"]


@pytest.mark.parametrize(("use", "lengths"), [("a", [5, 5]), ("b", [7, 5]), ("none", [1, 1])])
def test_a_training_with_a_part_of_the_text_is_tested_with_it(use, lengths, words, tmp_path, monkeypatch):
    """From one H5 for all uses, whatever the config says; and a user's own pair is fused with that part."""
    script("data_process.py", *words, "Toy_train")
    script("train.py", *words, f"text.use={use}")
    ckpt, seen = f"{only_run(tmp_path)}/model/last.pth", []
    assert load_model(ckpt).provenance.guides["text"].options["use"] == use

    plain = FILM.forward
    monkeypatch.setattr(
        FILM, "forward", lambda self, a, b, text, mask: seen.append(text) or plain(self, a, b, text, mask)
    )
    output = script("test.py", *words, f"ckpt={ckpt}")
    assert ("guided by no text" if use == "none" else f"guided by {use.upper()}'s text of auto:tiny-bert") in output
    assert [text.shape[1] for text in seen] == lengths and seen[0].any() == (use != "none")
    assert json.loads((tmp_path / "out" / "Toy" / "metrics.json").read_text())["text"] == use
    output = script("train.py", *words, "train.epochs=2", f"train.resume={ckpt}", code=1)
    assert f"text.use is own and was {use} in the run to resume" in output

    images = [tmp_path / "VLF" / "Image" / "IVF" / "Toy" / side / "b1.png" for side in ("IR", "VI")]
    texts = ["--text-a", "a warm car", "--text-b", "the dark road and trees"]
    output = script("fuse.py", *images, *texts, "-o", tmp_path / "f.png", f"ckpt={ckpt}", code=int(use == "none"))
    if use == "none":
        assert "reads no text, or text.use is default or none; leave out the text" in output
    else:
        torch.testing.assert_close(seen[-1], seen[0])


def test_parts_of_a_text_that_nobody_knows_are_one_sentence(prepared, tmp_path):
    """A published H5 does not say where the text of B begins, nor does a feature that somebody gave."""
    said = "Toy_train.h5 does not say which part of the text of 'a1' is A's, and text.use=a takes one part"
    assert said in script("train.py", *prepared, "text.use=a", code=1)
    with h5py.File(tmp_path / "h5" / "Toy_train.h5", "r+") as file:
        file["text/a1"].attrs["rows_of_a"] = 5  # all of them
    output = script("train.py", *prepared, "text.use=b", code=1)
    assert "sample 'a1'" in output and "of its 5 rows of text, 5 are said to be of A" in output


def test_texts_of_another_folder(words, tmp_path):
    """One set of texts for each folder and H5; the network records which, and no other is taken for it."""
    shutil.copytree(tmp_path / "VLF" / "Text", tmp_path / "VLF" / "Short")
    for text in (tmp_path / "VLF" / "Short").rglob("*.txt"):
        text.write_text("a car")
    short = ["text.folder=Short", f"data.h5={tmp_path / 'short'}"]
    script("data_process.py", *words, "Toy_train")
    output = script("train.py", *words, short[0], code=1)
    assert "Toy_train.h5 has the texts in Text/, and those in Short/ are wanted; keep a data.h5 for each" in output
    assert "2 features written" in script("data_process.py", "encode", *words, *short, "Toy_test")
    assert len(list((tmp_path / "VLF" / "ShortFeature").rglob("*.npy"))) == 2
    script("data_process.py", *words, *short, "Toy_train")
    script("train.py", *words, *short)
    ckpt = f"ckpt={only_run(tmp_path)}/model/last.pth"
    script("test.py", *words, short[1], ckpt)  # makes the H5 from the texts that it was trained with
    with h5py.File(tmp_path / "short" / "Toy_test.h5") as file:
        assert file["text/b1"].shape == (4 + 4, 12) and file.attrs["text_folder"] == "Short"
    script("data_process.py", *words, "Toy_test")
    assert "has the texts in Text/, and those in Short/ are wanted" in script("test.py", *words, ckpt, code=1)


def test_encoded_features_are_made_again_where_the_text_changes(paragraphs, tmp_path):
    folder = tmp_path / "VLF" / "TextFeature" / "IVF" / "Toy"
    given = (folder / "b2.npy").read_bytes()
    encode = ["data_process.py", "encode", *paragraphs]
    for side in ("IR", "VI"):  # the other pair has a paragraph, too, and its feature was given
        (tmp_path / "VLF" / "Text" / "IVF" / "Toy" / side / "b2.txt").write_text("dark trees")
    assert "1 features written, 1 were up to date" in script(*encode)
    note = json.loads((folder / "b1.json").read_text())
    assert note["encoder"] == "auto:tiny-bert" and not (folder / "b2.json").exists()
    np.save(folder / "b1.npy", np.load(folder / "b1.npy") + 1)  # it is read, and not encoded again
    assert "0 features written, 2 were up to date" in script(*encode)
    (folder / "b1.npy").unlink()  # a kill between the two leaves a note alone
    assert "1 features written, 1 were up to date" in script(*encode)
    (tmp_path / "VLF" / "Text" / "IVF" / "Toy" / "IR" / "b1.txt").write_text("dark trees")
    script("data_process.py", *paragraphs)
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        assert file["text/b1"].shape == (4 + 5, 12)
    assert "1 features written, 1 were up to date" in script(*encode) and (folder / "b2.npy").read_bytes() == given
    script("data_process.py", *paragraphs, "text.recompute=true")
    with h5py.File(tmp_path / "h5" / "Toy_test.h5") as file:
        assert file["text/b2"].shape == (4 + 4, 12)
