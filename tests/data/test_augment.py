"""Augmentation against the same thing done one image at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engram.data.augment import Augmentation, brighten, crop_and_flip, cut_and_scale
from engram.data.batches import AugmentedImages, apply
from engram.data.images import ImageSet
from engram.models.normalise import Standardise, SubtractMean, mean_image


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_crop_is_one_of_the_81_and_its_mirror() -> None:
    x = torch.randn(400, 3, 8, 8, generator=generator())
    out = crop_and_flip(x.contiguous(memory_format=torch.channels_last), 0.5, True, generator())
    padded = F.pad(x, (4, 4, 4, 4))
    offsets, mirrors = set(), 0
    for image, result in zip(padded, out, strict=True):
        found = [
            (top, left, mirror)
            for top in range(9)
            for left in range(9)
            for mirror in (False, True)
            if torch.equal(
                image[:, top : top + 8, left : left + 8].flip(2)
                if mirror
                else image[:, top : top + 8, left : left + 8],
                result,
            )
        ]
        assert len(found) == 1
        offsets.add(found[0][:2])
        mirrors += found[0][2]
    assert len(offsets) > 75
    assert 150 < mirrors < 250
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_without_padding_and_flip_nothing_changes() -> None:
    x = torch.randn(5, 3, 8, 8, generator=generator())
    assert torch.equal(crop_and_flip(x, 0.0, False, generator()), x)


def test_a_rectangle_of_the_image_is_scaled_to_its_size() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    x = torch.stack([rows, columns, rows + columns]).expand(200, 3, 32, 32)
    x = x.contiguous(memory_format=torch.channels_last)
    cut = cut_and_scale(x, 0.25, generator(0), (32, 32))
    assert cut.shape == x.shape
    assert cut.is_contiguous(memory_format=torch.channels_last)
    inside = cut[:, :, 4:-4, 4:-4]
    assert torch.allclose(inside[:, 0] + inside[:, 1], inside[:, 2], atol=1e-3)
    height, width = ((inside[:, c].amax((1, 2)) - inside[:, c].amin((1, 2))) / 23 for c in (0, 1))
    area, aspect = height * width, width / height
    assert 0.2 < area.min() < 0.35
    assert 0.75 < area.max() <= 1.01
    assert 0.7 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.4
    assert torch.equal(cut, cut_and_scale(x, 0.25, generator(0), (32, 32)))


def test_a_rectangle_is_scaled_to_any_size_at_once() -> None:
    x = torch.randn(4, 3, 8, 8, generator=generator()).contiguous(memory_format=torch.channels_last)
    cut = cut_and_scale(x, 1.0, generator(0), (24, 16))
    assert cut.shape == (4, 3, 24, 16)
    assert cut.is_contiguous(memory_format=torch.channels_last)
    images = ImageSet(torch.randint(256, (9, 8, 8, 3), dtype=torch.uint8), torch.arange(9))
    for least_area in (0.5, 1.0):
        augmentation = Augmentation(padding=0.0, least_area=least_area)
        standardise = Standardise((16, 16), (0.5,) * 3, (0.5,) * 3)
        ((x, _),) = AugmentedImages(images, standardise, augmentation).batches(9, generator())
        assert x.shape == (9, 3, 16, 16)


def test_brightness_scales_each_image_by_one_factor() -> None:
    pixels = torch.full((200, 2, 2, 3), 100, dtype=torch.uint8)
    out = brighten(pixels, 0.25, generator())
    assert out.dtype == torch.uint8
    assert all(len(image.unique()) == 1 for image in out)
    assert 75 <= int(out.min()) < 80
    assert 120 < int(out.max()) <= 125
    assert int(brighten(pixels * 2 + 55, 0.25, generator()).max()) == 255


def test_the_border_holds_the_mean() -> None:
    images = ImageSet(torch.full((50, 4, 4, 3), 200, dtype=torch.uint8), torch.zeros(50).long())
    normalise = SubtractMean((4, 4))
    normalise.fit([images.pixels])
    ((x, _),) = AugmentedImages(images, normalise, Augmentation(padding=0.5)).batches(
        50, generator()
    )
    assert x.abs().max() < 1e-6


def test_an_epoch_is_a_permutation_that_the_generator_decides() -> None:
    labels = torch.arange(23)
    images = ImageSet(torch.zeros(23, 4, 4, 3, dtype=torch.uint8), labels)
    source = AugmentedImages(images, SubtractMean((4, 4)), Augmentation())
    epochs = [torch.cat([y for _, y in source.batches(5, generator(s))]) for s in (0, 0, 1)]
    assert torch.equal(epochs[0].sort().values, labels)
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


def test_the_mean_image_is_exact_for_many_images() -> None:
    pixels = torch.randint(256, (3000, 2, 2, 3), generator=generator(), dtype=torch.uint8)
    assert torch.allclose(mean_image(pixels.split(7)), (pixels.double() / 255).mean(0).float())


def test_apply_is_one_pass_in_order() -> None:
    pixels = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 1, 1, 3)
    images = ImageSet(pixels.contiguous(), torch.arange(7))
    out = apply(lambda p: p[:, 0, 0, :1].float(), images, device=torch.device("cpu"), batch_size=3)
    assert out.squeeze(1).tolist() == list(range(7))
