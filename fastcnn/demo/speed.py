"""Times AlexNet on fastcnn and on stock PyTorch: whole passes, and layer by layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcnn.models.layers import Comparison, time_alternated, time_layers
from fastcnn.models.verify import loss_of

BATCH = 16


@dataclass
class Speed:
    """Medians on the machine at hand: whole passes, and the layers of an inference pass of BATCH images."""

    threads: int
    runs: int
    whole: list[Comparison]
    layers: list[Comparison]


def time_network(model: nn.Module, x: Tensor, target: Tensor, runs: int) -> Speed:
    """Times a float32 network in channels_last, the layout in which stock PyTorch is fastest, on one batch.

    Leaves the model in channels_last.
    """
    model = model.eval().to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    one = x[:1].contiguous(memory_format=torch.channels_last)

    def infer(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return model(batch)

    def train() -> None:
        model.zero_grad()
        loss_of(model, model(x), target).backward()

    whole = [
        time_alternated("inference, 1 image", lambda: infer(one), runs),
        time_alternated(f"inference, {len(x)} images", lambda: infer(x), runs),
        time_alternated(f"forward and backward, {len(x)} images", train, max(runs // 3, 2), warmup=1),
    ]
    model.zero_grad()
    return Speed(torch.get_num_threads(), runs, whole, time_layers(model, x, runs))
