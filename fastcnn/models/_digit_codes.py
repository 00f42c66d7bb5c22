"""Target codes of the ten digits for LeNet-5's radial basis function outputs.

The paper (section II-C) takes as the code of a class its stylised picture of 7x12 pixels, +1 for ink and -1 for
paper, so that classes that look alike have codes that are alike. The paper's own pictures are not published as data;
these are drawn for this package.
"""

import torch
from torch import Tensor

ROWS, COLUMNS = 12, 7

_PICTURES = """
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
..###..  ...#...  .#####.  .#####.  .....#.  #######  ..####.  #######  ..###..  .#####.
.##.##.  ..##...  ##...##  ##...##  ....##.  ##.....  .##....  ##...##  .##.##.  ##...##
##...##  .###...  ##...##  .....##  ...###.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ...#...  .....##  .....##  ..####.  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...#...  ....##.  ....##.  .##.##.  ######.  ##.###.  ...##..  .##.##.  .###.##
##...##  ...#...  ...##..  ..####.  ##..##.  .....##  ###..##  ...##..  ..###..  ...####
##...##  ...#...  ..##...  .....##  #######  .....##  ##...##  ..##...  .##.##.  .....##
##...##  ...#...  .##....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ...#...  ##.....  ##...##  ....##.  ##...##  ##...##  ..##...  ##...##  ....##.
..###..  .#####.  #######  .#####.  ....##.  .#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
"""


def digit_codes() -> Tensor:
    """The codes as a (10, 84) tensor of +1 and -1, each row one digit's 12x7 picture in raster order."""
    rows = [line.split() for line in _PICTURES.split("\n") if line]
    pictures = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in picture] for picture in pictures])
