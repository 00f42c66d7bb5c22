"""Inference of whole networks, against the same network in stock PyTorch alone, in the same memory format."""

import pytest
import torch

import fastcnn.models
from bench import _stock
from bench._gate import UNIT_ROUNDOFF
from bench._layer import Comparison
from bench._rows import FORMATS, parametrize, rows

FULL = rows(_stock.NETWORKS, (1, 16), tuple(FORMATS))
SMOKE = rows(_stock.NETWORKS[:2])


@pytest.mark.network
@parametrize(FULL, SMOKE)
def test_network(row, compare):
    torch.manual_seed(0)
    memory_format = FORMATS[row.layout]
    model = fastcnn.models.get_model(row.case.name).eval().to(memory_format=memory_format)
    x = torch.randn(row.batch, *row.case.input).to(memory_format=memory_format)
    stock = getattr(_stock, row.case.name)
    parameters = dict(model.state_dict())
    if row.case.name == "lenet5":
        parameters = _stock.prepare_lenet5(parameters)
    with torch.no_grad():
        expected = stock({name: p.double() for name, p in parameters.items()}, x.double())
        # No useful bound follows from the arithmetic of so many layers: stock's own error is the yardstick. The factor
        # leaves room for another order of summation; a wrong value anywhere is orders of magnitude above it.
        stock_error = (stock(parameters, x) - expected).abs().max()
    bound = 8 * stock_error + 16 * UNIT_ROUNDOFF[torch.float32] * expected.abs().max()
    comparison = Comparison(
        lambda: (model(x),),
        lambda: (stock(parameters, x),),
        (expected,),
        (bound,),
        torch.float32,
        flops=2.0 * row.batch * row.case.macs,
    )
    compare(comparison, row, "network")
