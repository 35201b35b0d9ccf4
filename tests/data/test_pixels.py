"""Images of every mode become RGB rightly; random crops depend on seed, pass and row alone."""

import io
import random
import struct
import zlib

import numpy
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil

from lrlora.data.pixels import Pixels, frames_of, opened, pixel_values, random_crop, size_of

RED, WHITE = (255, 0, 0), (255, 255, 255)


def stored(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def of_array(values, dtype) -> Image.Image:
    return Image.fromarray(numpy.array(values, dtype=dtype))


def pixels_of(content: bytes) -> list:
    image = opened(content)
    assert image.mode == "RGB"
    return numpy.asarray(image).tolist()


def test_16_bits_are_scaled_and_not_cut_off():
    grey = of_array([[0, 257, 32896, 65535]], numpy.uint16)
    expected = [[[v] * 3 for v in (0, 1, 128, 255)]]
    assert pixels_of(stored(grey)) == expected
    assert pixels_of(stored(grey, "TIFF")) == expected


def test_of_16_bits_a_colour_the_upper_8_are_read():
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    # Pillow writes no PNG of 3 x 16 bits
    header, row = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0" + struct.pack(">HHH", 65535, 32896, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert pixels_of(content) == [[[255, 128, 0]]]


def test_transparency_is_laid_on_white():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (0, 0, 0, 0))
    # 255 (1 - 128/255) = 127 of white shines through
    assert pixels_of(stored(half)) == [[[255, 127, 127], [255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert pixels_of(stored(palette)) == [[[255, 0, 0], [0, 0, 255]]]
    assert pixels_of(stored(palette, transparency=1)) == [[[255, 0, 0], [255, 255, 255]]]
    assert pixels_of(stored(Image.new("LA", (1, 1), (0, 0)))) == [[[255, 255, 255]]]


def test_grey_one_bit_and_cmyk():
    assert pixels_of(stored(Image.new("L", (1, 1), 77))) == [[[77, 77, 77]]]
    assert pixels_of(stored(Image.new("1", (1, 1), 1))) == [[[255, 255, 255]]]
    (((r, g, b),),) = pixels_of(stored(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"))
    assert (r, g, b) == RED
    # Adobe's JPEGs hold it inverted
    (((r, g, b),),) = pixels_of(stored(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG", quality=95))
    assert r > 240 and g < 15 and b < 15


def test_it_stands_upright_as_exif_says():
    image = Image.new("RGB", (2, 1), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise
    assert pixels_of(stored(image, exif=exif)) == [[list(RED)], [list(WHITE)]]


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (1, 1), RED), Image.new("RGB", (1, 1), WHITE)]
    content = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert frames_of(content) == 2 and pixels_of(content) == [[list(RED)]]


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (3, 5), (1, 7), (3, 3), (40, 50)])
@pytest.mark.parametrize("processor", [ViTImageProcessorPil(), ConvNextImageProcessorPil(size={"shortest_edge": 64})])
def test_no_side_is_taken_for_the_channels(size, processor):
    values = pixel_values(Image.new("RGB", size, RED), processor)
    assert values.shape == (3, *size_of(processor))
    torch.testing.assert_close(values.mean(dim=(1, 2)), torch.tensor([1.0, -1.0, -1.0]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no image", "no format of images"),
        (stored(Image.effect_noise((64, 64), 50), "JPEG")[:-400], "truncated"),
        (stored(Image.effect_noise((64, 64), 50))[:-400], "truncated|broken"),
        (stored(of_array([[1.0]], numpy.float32), "TIFF"), "32 bits"),
        (stored(Image.new("L", (1, 201))), "1 and 201 pixels"),
    ],
)
def test_what_cannot_be_decoded_says_why(content, reason):
    for is_sketch in (False, True):
        with pytest.raises(ValueError, match=reason):
            opened(content, is_sketch)


def test_crops_lie_within_the_image_and_have_areas_and_shapes_of_torchvision_s_range():
    # every pixel holds its place, so a crop says where it was
    wide, high = 200, 120
    places = numpy.zeros((high, wide, 3), dtype="uint8")
    places[..., 0], places[..., 1] = numpy.arange(wide)[None], numpy.arange(high)[:, None]
    image, draw = Image.fromarray(places), random.Random(0)
    areas, ratios = [], []
    for _ in range(300):
        crop = numpy.asarray(random_crop(image, (32, 32), draw, Image.Resampling.NEAREST)).astype(float)
        # of n pixels 32 are seen, at the middles of 32 equal parts
        w, h = ((crop[..., n].max() - crop[..., n].min()) * 32 / 31 for n in (0, 1))
        areas.append(w * h / (wide * high))
        ratios.append(w / h)
    assert 0.06 < min(areas) < 0.15 and 0.75 < max(areas) <= 1.02
    assert 0.70 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.43


def rows_of(count: int) -> Dataset:
    draw = numpy.random.default_rng(0)
    images = [stored(of_array(draw.integers(0, 256, (12, 12, 3)), numpy.uint8)) for _ in range(count)]
    return Dataset.from_dict(
        {"file": [""] * count, "bytes": images, "label": [0] * count, "row": list(range(1, count + 1))}
    )


def test_what_is_drawn_depends_on_seed_pass_and_row_and_on_nothing_else():
    processor, rows = ViTImageProcessorPil(size={"height": 8, "width": 8}), rows_of(4)

    def drawn(seed: int, epoch: int, order: list[int], augment="crop-flip") -> dict[int, torch.Tensor]:
        found = Pixels(rows, processor, augment, seed)
        found.begin(epoch)
        return {number: found[number]["pixel_values"] for number in order}

    first = drawn(0, 1, [0, 1, 2, 3])
    random.seed(5)
    torch.manual_seed(5)
    for number, values in drawn(0, 1, [3, 1, 0, 2]).items():
        torch.testing.assert_close(values, first[number], rtol=0, atol=0)
    for other in (drawn(1, 1, [0]), drawn(0, 2, [0])):
        assert not torch.equal(other[0], first[0])
    plain = drawn(0, 1, [0], "none")[0]
    torch.testing.assert_close(plain, pixel_values(opened(rows[0]["bytes"]), processor), rtol=0, atol=0)


def test_flips_come_in_about_half_of_the_passes():
    processor, rows = ViTImageProcessorPil(size={"height": 8, "width": 8}), rows_of(1)
    crop, flipped = Pixels(rows, processor, "crop"), Pixels(rows, processor, "crop-flip")
    mirrored = 0
    for epoch in range(100):
        crop.begin(epoch)
        flipped.begin(epoch)
        a, b = crop[0]["pixel_values"], flipped[0]["pixel_values"]
        is_mirrored = torch.equal(a.flip(-1), b)
        assert is_mirrored or torch.equal(a, b)
        mirrored += is_mirrored
    assert 35 < mirrored < 65


def test_processes_of_a_data_loader_hear_of_the_pass():
    rows = Pixels(rows_of(2), ViTImageProcessorPil(size={"height": 8, "width": 8}), "crop")
    loader = torch.utils.data.DataLoader(rows, batch_size=2, num_workers=1, persistent_workers=True)
    for epoch in (3, 4):
        rows.begin(epoch)
        (batch,) = loader
        for number in (0, 1):
            torch.testing.assert_close(batch["pixel_values"][number], rows[number]["pixel_values"], rtol=0, atol=0)
