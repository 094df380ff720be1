"""What files of sensors hold: layouts of TIFF, depths, ranges, pages. The right gray or one sentence, never a lie."""

import gzip
import itertools
import json
import struct
import sys
import zlib

import cv2
import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.toy import CONFIG, script
from utils.data.images import as_unit, list_images, read_image
from utils.data.pairs import PairDataset
from utils.data.ranges import find_range, parse_range, pixels_of
from utils.errors import InputError

H, W = 32, 48
UNIT = np.linspace(0, 1, H * W).reshape(H, W)
COLOUR = np.stack([UNIT, UNIT[::-1], UNIT[:, ::-1]], axis=-1)  # RGB
LAYOUTS = [
    dict(photometric=photometric, kind=kind, compression=compression, byteorder=order, tile=tile, planar=planar)
    for photometric, kind, compression, order, tile, planar in itertools.product(
        ("miniswhite", "minisblack", "rgb"),
        ("1", "8", "10", "12", "16", "float32"),
        (None, "lzw", "deflate", "packbits"),
        "<>",
        (None, (16, 16)),
        ("contig", "separate"),
    )
    if (planar == "contig" or photometric == "rgb") and (kind != "1" or photometric != "rgb")
    if order == "<" or kind not in ("10", "12")  # tifffile reads packed bits of either order, and writes one right
]


def write(path, photometric, kind, compression=None, byteorder="<", tile=None, planar="contig", **more):
    """An image of UNIT, or COLOUR, in a layout; returns the gray that it should have, and how near in [0, 1]."""
    unit = COLOUR if photometric == "rgb" else UNIT
    bits = 32 if kind == "float32" else int(kind)
    if kind == "float32":
        pixels, right = unit.astype(np.float32), unit
    elif kind == "1":
        pixels, right = unit > 0.5, (unit > 0.5).astype(float)
    else:
        pixels = (unit * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
        right = pixels / (2**bits - 1)
    if bits in (10, 12):
        more["bitspersample"] = bits
    if photometric == "miniswhite":
        right = 1 - right
    pixels = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    more |= {"planarconfig": planar} if photometric == "rgb" else {}
    tifffile.imwrite(
        path, pixels, photometric=photometric, compression=compression, byteorder=byteorder, tile=tile, **more
    )
    return right @ [0.299, 0.587, 0.114] if photometric == "rgb" else right


def test_every_layout_of_tiff_is_read_right(tmp_path):
    read = 0
    for number, layout in enumerate(LAYOUTS):
        path = tmp_path / f"{number}.tif"
        try:
            right = write(path, **layout)
        except Exception:  # tifffile does not write it
            continue
        gray, chroma = read_image(path)
        np.testing.assert_allclose(as_unit(gray), right, atol=0.004, err_msg=str(layout))
        assert (chroma is not None) == (layout["photometric"] == "rgb"), layout
        read += 1
    assert read > 200


def test_what_pillow_writes_as_tiff_is_read_right_or_refused(tmp_path):
    picture = Image.fromarray(cv2.resize((COLOUR * 255).astype(np.uint8), (40, 30)))
    right = np.asarray(picture.convert("L"))
    for mode, compression, off in (
        *(("P", each, 0) for each in ("tiff_lzw", "packbits", "tiff_adobe_deflate", None)),
        *((mode, "jpeg", 12) for mode in ("L", "RGB", "YCbCr")),
        *((mode, "tiff_lzw", off) for mode, off in (("L", 0), ("LA", 0), ("RGBA", 1), ("CMYK", 1))),
        *(("1", each, 0) for each in ("tiff_ccitt", "group3", "group4")),
    ):
        shown = picture.convert("L").convert("P") if mode == "P" else picture.convert(mode)
        shown.save(tmp_path / "x.tif", compression=compression)
        expected = 255 * (np.asarray(shown).astype(int)) if mode == "1" else right.astype(int)
        assert np.abs(read_image(tmp_path / "x.tif")[0] - expected).max() <= off, (mode, compression)
    for mode, compression in (("CMYK", "jpeg"), ("LAB", "tiff_lzw"), ("YCbCr", "tiff_lzw")):
        picture.convert(mode).save(tmp_path / "x.tif", compression=compression)
        with pytest.raises(InputError, match="which is not read; save it as gray or RGB"):
            read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff(tmp_path, orientation):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, (UNIT * 255).astype(np.uint8), extratags=[(274, 3, 1, orientation, True)])
    stored = (UNIT * 255).astype(np.uint8)
    turns = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1]]
    turns += [stored.T, np.rot90(stored, -1), np.rot90(stored, 2).T, np.rot90(stored)]
    np.testing.assert_array_equal(read_image(path)[0], turns[orientation - 1])


def tiff_header(path, payload, size, compression=1, following=0, **more):
    """A TIFF by hand, which may claim what is not so."""
    tags = {256: size[1], 257: size[0], 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: size[0]}
    tags |= {279: len(payload)} | {int(key[1:]): value for key, value in more.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = struct.pack("<4sI", b"II*\0", 8 + len(payload))
    path.write_bytes(start + payload + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))


def test_hostile_tiffs_are_one_sentence_and_no_memory(tmp_path):
    path = tmp_path / "x.tif"
    jpeg = cv2.imencode(".jpg", np.zeros((300, 300), np.uint8))[1].tobytes()
    for payload, size, more, words in (
        (b"1234", (10**5, 10**5), {}, "is 100000 x 100000 pixels"),
        (b"1234", (10**4, 10**4), {"t277": 60000}, "of 60000 channels"),
        (bytes(100), (10, 10), {"t322": 10**5, "t323": 10**5}, "is 100000 x 100000 pixels"),
        (zlib.compress(bytes(10**8)), (10, 10), {"compression": 8}, "is truncated or damaged"),
        (zlib.compress(bytes(50)), (10, 10), {"compression": 8}, "is truncated or damaged"),
        (bytes(100), (10, 10), {"following": 108}, "its pages go round in a circle"),
        (bytes(100), (10, 10), {"compression": 34712}, "the compression JPEG2000, which is not read"),
        (bytes(100), (10, 10), {"compression": 999}, "the compression 999, which is not read"),
        (bytes(99), (10, 10), {"t279": 1000}, "strips or tiles are missing"),
        (jpeg, (10, 10), {"compression": 7}, "a JPEG in it"),
        (jpeg[:-90], (300, 300), {"compression": 7}, "a JPEG in it"),
    ):
        tiff_header(path, payload, size, **more)
        with pytest.raises(InputError, match=words):
            read_image(path)


def test_the_maximum_of_a_pgm_is_white(tmp_path):
    path = tmp_path / "x.pgm"
    for header, values, right in (
        (b"P5 3 1 1023\n", np.array([0, 512, 1023], ">u2").tobytes(), [0, 32800, 65535]),
        (b"P5\n# by a camera\n3 1\n100\n", bytes([0, 50, 100]), [0, 128, 255]),
        (b"P2 3 1 100\n", b"0 50 100", [0, 128, 255]),
    ):
        path.write_bytes(header + values)
        assert read_image(path)[0].tolist() == [right]
        assert read_image(path, (0, 50))[0][0, 2] == 65535  # in the units of the file
        path.write_bytes(header + values[:-1])
        if header[1:2] == b"5":
            with pytest.raises(InputError, match=r"x.pgm is truncated"):
                read_image(path)
    path.write_bytes(b"P5 1 1 100\n\x65")
    with pytest.raises(InputError, match=r"1 of 1 values, up to 101"):
        read_image(path)


def test_ranges(tmp_path):
    assert parse_range("type", "x") is None
    assert parse_range("-20,50.5", "x") == (-20, 50.5) and parse_range("1%, 99%", "x") == (1, 99)
    for nonsense in ("", "auto", "1", "5,1", "1%,2", "1%,101%", "nan,1", "1,1", "1e999,2"):
        with pytest.raises(InputError, match=r"--range-a must be type, file, two percentiles \(1%,99%\) or two values"):
            parse_range(nonsense, "--range-a")
    path, said = tmp_path / "x.tif", []
    celsius = np.linspace(-20, 60, 81, dtype=np.float32).reshape(9, 9)
    for kind in (np.float32, np.float64, np.int16, np.int8, np.int32):
        tifffile.imwrite(path, celsius.astype(kind))
        with pytest.raises(InputError, match="or --range-a file"):
            read_image(path)
        gray = read_image(path, (-20, 60))[0]
        assert gray.dtype == np.uint16
        np.testing.assert_allclose(as_unit(gray), (celsius + 20) / 80, atol=0.001)
    celsius[0, 3:5] = np.nan
    tifffile.imwrite(path, celsius)
    found = find_range(parse_range("file", ""), pixels_of([path, tmp_path / "none.png"]), 2, "A")
    assert found == (-20, 60) and read_image(path, found, lambda *each: said.append(each))[0][0, 3] == 0
    assert said == [(path, "has 2 pixels without a value (NaN): they become black")]
    assert find_range(parse_range("25%,75%", ""), [np.arange(101)], 1, "A") == (25, 75)
    assert find_range(parse_range("file", ""), [np.full((4, 4), 7)], 1, "A") == (7, 8)
    read_image(path, (100, 200), lambda *each: said.append(each))
    assert said[-1][1] == "holds -20 to 60, all of it outside the range 100 to 200"
    read_image(path, (-1000, 1000), lambda *each: said.append(each))
    assert not any("--range-a" in text for _, text in said)  # who gave a range needs no advice to give one


def thermal(folder, count=3):
    """Frames of 14-bit counts that get warmer, and visible ones."""
    for side in ("ir", "vis"):
        (folder / side).mkdir()
    for i in range(count):
        counts = 3000 + 100 * i + 1000 * UNIT
        tifffile.imwrite(folder / "ir" / f"{i}.tif", counts.astype(np.uint16))
        cv2.imwrite(str(folder / "vis" / f"{i}.png"), np.zeros((H, W), np.uint8))


def test_one_range_for_a_folder_and_one_warning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thermal(tmp_path)
    words = ["fuse.py", "ir", "vis", "-o", "out", "ckpt=null", "net={name: max}", "device=cpu"]
    said = script(*words)
    assert said.count("% of its range") == 1 and "so it is with 2 more files like ir/0.tif" in said
    said = script(*words, "--range-a", "file")
    assert "range of A, --range-a file: 3000 becomes black, 4200 white" in said and "% of its range" not in said
    first, last = (cv2.imread(f"out/{i}.png", 0).astype(float) for i in (0, 2))
    np.testing.assert_allclose(last - first, 200 / 1200 * 255, atol=1.5)  # equal counts are equal gray
    assert json.loads((tmp_path / "out" / "ranges.json").read_text()) == {"range_a": [3000, 4200]}
    script(*words, "--range-a", "-5000,5000", "--range-b", "1%,99%")
    assert abs(int(cv2.imread("out/0.png", 0)[0, 0]) - 204) <= 1
    assert "--range-b must be type, file" in script(*words, "--range-b", "all", code=1)
    words[4] = "film.avi"
    assert "3 frames fused" in script(*words, "--range-a", "file")
    assert json.loads((tmp_path / "film.ranges.json").read_text()) == {"range_a": [3000, 4200]}


def test_a_data_set_is_stored_by_its_range(tmp_path, toy):
    folder = tmp_path / "VLF" / "Image" / "IVF" / "Toy"
    for i, path in enumerate(sorted((folder / "IR").glob("*.png"))):
        kelvin = 29000 + 100 * i + cv2.imread(str(path), 0).astype(np.uint16)
        cv2.imwrite(str(path), kelvin)
    said = script("data_process.py", *CONFIG, *toy, "Toy_train")
    assert said.count("% of its range") == 1
    table = tmp_path / "mine.yaml"
    for text, ends in (("29000,30000", [29000, 30000]), ("file", None), ("x", None)):
        table.write_text(f'Toy: {{task: IVF, a: IR, b: VI, color: [VI], range_a: "{text}"}}')
        said = script("data_process.py", *CONFIG, *toy, f"data.datasets={table}", "Toy_train", code=int(text == "x"))
        if text == "x":
            assert "range_a in the row Toy of" in said and "must be type, file" in said
            continue
        assert "% of its range" not in said
        with h5py.File(tmp_path / "h5" / "Toy_train.h5") as file:
            low, high = file.attrs["rangeA"]
            assert ends in (None, [low, high]) and "rangeB" not in file.attrs
        counts = read_image(folder / "IR" / "a1.png")[0].astype(float)
        sample = PairDataset([tmp_path / "h5" / "Toy_train.h5"])[0]
        np.testing.assert_allclose(sample["image_a"][0], (counts - low) / (high - low), atol=1e-4)


def test_pages_are_fused_or_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, step in (("a.tif", 20), ("b.tif", 10)):
        tifffile.imwrite(name, np.stack([np.full((H, W), step * i, np.uint8) for i in range(12)]))
    words = ["fuse.py", "a.tif", "b.tif", "-o", "x.png", "ckpt=null", "net={name: max}", "device=cpu"]
    assert "a.tif has 12 pages: number 1 is used; a.tif#12 is the last" in script(*words)
    words[1:4] = ["a.tif#3", "b.tif#8", "-o"]
    script(*words)
    assert cv2.imread("x.png", 0)[0, 0] == 70
    words[1:5] = ["a.tif", "b.tif", "-o", "pages"]
    assert "12 of 12 fused" in script(*words)
    assert [cv2.imread(f"pages/a_{i:02d}.png", 0)[0, 0] for i in (1, 2, 12)] == [0, 20, 220]
    frames = [Image.new("L", (9, 9), 50 * i) for i in range(3)]
    frames[0].save("x.gif", save_all=True, append_images=frames[1:])
    said = []
    assert (
        read_image("x.gif#2")[0][0, 0] == 50 and read_image("x.gif", say=lambda *each: said.append(each))[0].max() == 0
    )
    assert said[0][1].startswith("has 3 pages")
    with pytest.raises(InputError, match=r"x.gif has 3 pages, and no number 4"):
        read_image("x.gif#4")


def test_the_previews_of_a_phone_are_no_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture, preview = Image.new("RGB", (W, H), (90, 90, 90)), Image.new("RGB", (8, 8))
    for name in ("a.jpg", "b.jpg"):
        picture.save(name, "MPO", save_all=True, append_images=[preview])
    said = script("fuse.py", "a.jpg", "b.jpg", "-o", "out", "ckpt=null", "net={name: max}", "device=cpu")
    assert "1 of 1 fused" in said and "a.jpg holds 2 pictures: the first is used" in said


def test_what_a_folder_holds_beside_images_is_said(tmp_path, capsys):
    for name in ("1.jfif", "2.JPG", "3.nii.gz", "4.avif", "notes.txt", "._5.png"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert [*list_images(tmp_path)] == ["1", "2", "3", "4"]
    printed = capsys.readouterr().out
    assert "holds 1 subfolders (more), which are passed over" in printed
    assert "holds 1 files that are no images by their names (notes.txt), which are passed over" in printed


def test_alpha_and_further_channels_are_said(tmp_path):
    said = []
    image = np.full((H, W, 4), 200, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    tifffile.imwrite(tmp_path / "nir.tif", image, photometric="rgb", extrasamples=["unspecified"])
    tifffile.imwrite(tmp_path / "two.tif", image[..., :2], photometric="minisblack", planarconfig="contig")
    for name in ("a.png", "nir.tif", "two.tif"):
        assert (read_image(tmp_path / name, say=lambda path, text: said.append(text))[0] == 200).all()
    parts = ["transparent in parts", "4 channels: the first 3 are used", "2 channels: the first is used"]
    assert len(said) == 3 and all(part in text for part, text in zip(parts, said))
    image[..., 3] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    read_image(tmp_path / "a.png", say=lambda *_: pytest.fail("an opaque image needs no word"))


def write_dicom(path, pixels, photometric="MONOCHROME2", **more):
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dataset.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelData = 1, photometric, pixels.tobytes()
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    for key, value in more.items():
        setattr(file, key, value)
    file.save_as(path, enforce_file_format=True)


def test_dicom(tmp_path):
    path, counts, said = tmp_path / "x.dcm", np.arange(64, dtype=np.uint16).reshape(8, 8) * 65, []
    write_dicom(path, counts)
    np.testing.assert_allclose(as_unit(read_image(path)[0]), counts / 4095, atol=1e-4)
    write_dicom(path, counts, "MONOCHROME1")
    np.testing.assert_allclose(as_unit(read_image(path)[0]), 1 - counts / 4095, atol=1e-4)
    units = {"RescaleSlope": "2", "RescaleIntercept": "-1024"}
    write_dicom(path, counts, **units, PixelPaddingValue=0)
    assert next(iter(pixels_of([path])))[1, 0] == 2 * counts[1, 0] - 1024
    assert find_range(parse_range("file", ""), pixels_of([path]), 1, "A") == (2 * 65 - 1024, 2 * 63 * 65 - 1024)
    write_dicom(path, counts, **units, WindowCenter="40", WindowWidth="400")
    shown = as_unit(read_image(path, say=lambda *each: said.append(each))[0])
    np.testing.assert_allclose(shown, ((2.0 * counts - 1024 + 160) / 400).clip(0, 1), atol=1e-4)
    assert said == [(path, "is shown by its window, -160 to 240")]
    write_dicom(path, counts, "MONOCHROME1", PixelPaddingValue=0)
    assert read_image(path, (0, 4095))[0][0, 0] == 0  # no value is black, whichever way the others run
    write_dicom(path, counts.astype(np.int16) - 100)
    with pytest.raises(InputError, match="or --range-a file"):
        read_image(path)
    write_dicom(path, np.stack([counts, counts // 2, counts]), NumberOfFrames=3)
    assert read_image(path)[0].max() == 32759 and read_image(f"{path}#3")[0].max() == 65535
    for key, value in {"Rows": 60000, "Columns": 60000}.items():
        write_dicom(path, counts, **{key: value})
        with pytest.raises(InputError, match="is truncated or damaged"):
            read_image(path)
    write_dicom(path, counts, Rows=60000, Columns=60000)
    with pytest.raises(InputError, match="60000 x 60000 pixels"):
        read_image(path)


def test_nifti(tmp_path):
    """Right is left and front is above, whichever way the axes of a file run; a bomb is not unpacked."""
    nibabel = pytest.importorskip("nibabel")
    volume = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)  # from left to right, back to front, down to up
    right = volume[::-1, ::-1, 3].T
    for name, order, flips in (("x.nii", (0, 1, 2), (1, 1, 1)), ("x.nii.gz", (2, 0, 1), (-1, 1, -1))):
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, (of, flip) in enumerate(zip(order, flips)):
            affine[of, axis] = flip
        stored = volume.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
        nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / name)
        gray = read_image(tmp_path / f"{name}#4", (0, 119))[0]
        np.testing.assert_allclose(as_unit(gray) * 119, right, atol=0.01)
        with pytest.raises(InputError, match="or --range-a file"):
            read_image(tmp_path / name)
    header = bytearray(gzip.decompress((tmp_path / "x.nii.gz").read_bytes())[:352])
    for side, words in (
        (30000, "30000 x 900000000 pixels"),
        (2000, "2000 x 4000000 pixels"),
        (200, "is truncated or damaged"),
    ):
        header[42:48] = struct.pack("<3h", side, side, side)
        (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(10**7)))
        with pytest.raises(InputError, match=words):
            read_image(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("name", ["x.dcm", "x.nii.gz", "x.heic"])
def test_a_format_names_the_package_that_it_needs(tmp_path, monkeypatch, name):
    package = {"x.dcm": "pydicom", "x.nii.gz": "nibabel", "x.heic": "pillow_heif"}[name]
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"needs the package {package.replace('_', '-')}: pip install"):
        read_image(tmp_path / name)
