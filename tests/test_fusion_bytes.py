"""The bytes that fusion saves, against counts by hand: all in channels, of which a map's pixels are the unit."""

import pytest

from bench.static import fusion

# What is read and written, term by term. ResNet-50 layer1.1: 256 channels outside, 64 inside; T = 64.
BOTTLENECK = {
    # conv1 5T, bn 2T, relu 2T; conv2 2T, bn, relu; conv3 5T, bn 8T, sum 12T, relu 8T
    "inference": (64 * (5 + 4 + 2 + 4 + 5 + 8 + 12 + 8), 64 * (5 + 2 + 9)),
    # one read more of each z for its statistics
    "training, forward": (64 * (5 + 5 + 2 + 5 + 5 + 12 + 12 + 8), 64 * (5 + 2 + 2 + 2 + 5 + 12)),
    # relu 12T, bn 20T, conv3 10T; relu 3T, bn 5T, conv2 4T; relu 3T, bn 5T, conv1 10T; sum 12T
    "backward": (64 * (12 + 20 + 10 + 8 + 4 + 8 + 10 + 12), 64 * (12 + 20 + 10 + 5 + 4 + 5 + 10 + 12)),
}
# GoogLeNet 3a: 192 channels in, 64; 96, 128; 16, 32; 32 out of the branches.
INCEPTION = {
    "forward": (
        256 + 288 + 208 + 224 + 48 + 384 + 224 + 2 * 368 + 512,
        (192 + 176) + 224 + 48 + 384 + 224 + 2 * (64 + 128 + 32),
    ),
    "backward": (
        3 * 368 + 368 + 2 * (256 + 288 + 208 + 224 + 48 + 224) + 576 + 3 * 576,
        (352 + 192) + (320 + 384 + 224) + 352 + (384 + 448 + 128) + (96 + 96 + 32) + (256 + 256 + 64) + 576 + 576,
    ),
}
# SqueezeNet's fire2: 64 channels to 16, to 64 and 64.
FIRE = {
    "forward": (80 + 32 + 80 + 128 + 80 + 128 + 256, 80 + 80 + 80 + 128),
    "backward": (
        384 + 128 + 160 + 160 + 48 + 48 + 160 + 16,
        (144 + 144 + 128) + (192 + 160 + 64) + 48 + (96 + 96 + 32),
    ),
}
# DenseNet's second layer: 96 channels, 128 between, 32 new ones.
DENSE = {
    "inference": (192 + 192 + 224 + 256 + 256 + 160 + 256, 224 + 160 + 256),
    "training, forward": (288 + 192 + 224 + 384 + 256 + 160 + 256, 96 + 224 + 256 + 160 + 256),
    "backward": (320 + 384 + 640 + 448 + 288 + 480 + 288, 320 + 640 + 192 + 448 + 480 + 288),
}


@pytest.mark.parametrize(
    ("module", "pixels", "counts"),
    [
        ("ResNet-50 layer1.1", 56 * 56, BOTTLENECK),
        ("GoogLeNet 3a", 28 * 28, INCEPTION),
        ("SqueezeNet 1.1 fire2", 55 * 55, FIRE),
        ("DenseNet-121 denseblock1.2", 56 * 56, DENSE),
    ],
)
def test_counts_by_hand(module, pixels, counts):
    found = {way.direction: way for way in fusion.ways() if way.module == module}
    assert found.keys() == counts.keys()
    for direction, (separate, fused) in counts.items():
        way = found[direction]
        assert (fusion.moved(way.separate), fusion.moved(way.fused)) == (separate * pixels, fused * pixels), direction
        assert way.saved == (separate - fused) * pixels


def test_what_is_saved_is_a_difference():
    """A fused pass that is forgotten, or read twice, changes the number."""
    way = next(way for way in fusion.ways() if way.direction == "backward")
    shorter = fusion.Way(way.module, way.direction, way.separate, way.fused[1:])
    assert shorter.saved == way.saved + way.fused[0].read + way.fused[0].written


def test_table():
    page = fusion.table()
    assert page.startswith("## Bytes that fusion saves\n")
    # 48 and 16 times 64 channels of 3136 pixels, 2 bytes each
    assert "|ResNet-50 layer1.1|inference|10|19.27|3|6.42|67%|" in page
    assert "|SqueezeNet 1.1 fire2|backward|" in page
    assert all(line.count("|") == 8 for line in page.splitlines() if line.startswith("|"))
