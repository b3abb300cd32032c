"""What evaluation sees of an image."""

import pytest

from evaluation.preprocessing import preprocessing


@pytest.mark.parametrize(
    ("dataset", "augmentation", "image_size", "resized", "cropped"),
    [
        ("cub200", "base", 224, 256, 224),
        ("cars196", "adv", 224, 256, 224),
        ("cub200", "big", 224, 256, 256),  # the code of Roth et al., ICML 2020
        ("online_products", "big", 224, 256, 256),
        ("of my own", "big", 112, 128, 128),
        ("emoji", "base", 64, 64, 64),
        ("emoji", "big", 64, 73, 73),
    ],
)
def test_the_square_is_cut_from_the_resized_image(
    dataset, augmentation, image_size, resized, cropped
):
    flags = {"dataset": dataset, "augmentation": augmentation, "image_size": image_size}
    prepare = preprocessing(flags, (0.5,) * 3, (0.5,) * 3)
    assert (prepare.shorter_side, prepare.image_size) == (resized, cropped)
