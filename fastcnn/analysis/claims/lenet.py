"""LeNet-5."""

from fastcnn import nn as fnn

from .. import measure
from .._claim import Values, Verdict, claim


@claim(
    55,
    "LeNet-5's layers C1, S2, C3, S4, C5 and F6 have 156, 12, 1,516, 32, 48,120 and 10,164 parameters.",
    Verdict.EXACT,
    {"C1": 156, "S2": 12, "C3": 1_516, "S4": 32, "C5": 48_120, "F6": 10_164},
    {"all": 60_000},
)
def parameters_of_lenet() -> Values:
    layers = measure.layers("lenet5")
    rows: dict[str, int] = {name.upper(): layers[name].parameters for name in ("c1", "s2", "c3", "s4", "c5", "f6")}
    return {**rows, "all": measure.summary("lenet5").parameters}


@claim(
    56,
    "LeNet-5's output layer has (84 + 1) x 10 = 850 parameters.",
    Verdict.EXACT,
    {"linear output layer": 850},
    {"radial basis functions": 0},
    remark="for a linear layer; the paper's radial basis functions have fixed codes and nothing to train",
)
def parameters_of_lenets_output() -> Values:
    linear = measure.network("lenet5", head="linear").get_submodule("out")
    codes = measure.network("lenet5").get_submodule("out")
    return {
        "linear output layer": measure.parameters(linear),
        "radial basis functions": measure.parameters(codes),
    }


@claim(
    57,
    "Each of the 16 kernels of LeNet-5's C3 is 5x5x6, so that the layer has 16 x (5 x 5 x 6 + 1) = 2,416 parameters.",
    Verdict.WRONG,
    {"parameters": 2_416},
    {"parameters": 1_516, "links between maps": 60, "parameters if every map saw all six": 2_416},
    remark="most maps of C3 see three or four of the six maps of S2; only the last sees all",
)
def parameters_of_c3() -> Values:
    sparse = measure.network("lenet5").get_submodule("c3")
    assert isinstance(sparse, fnn.SparseConv2d)
    dense = measure.network("lenet5_dense").get_submodule("c3")
    return {
        "parameters": measure.parameters(sparse),
        "links between maps": sum(len(row) for row in sparse.table),
        "parameters if every map saw all six": measure.parameters(dense),
    }


@claim(
    73,
    "LeNet-5 has seven layers: two convolutions, two subsamplings and three fully connected layers.",
    Verdict.EXACT,
    {"convolutions": 2, "subsamplings": 2, "fully connected": 3, "layers": 7},
    remark="C5 counts as fully connected: its 5x5 convolution has a 5x5 input",
)
def layers_of_lenet() -> Values:
    kinds = {"convolutions": 0, "subsamplings": 0, "fully connected": 0}
    for name, layer in measure.layers("lenet5").items():
        if layer.type == "Subsample2d":
            kinds["subsamplings"] += 1
        elif len(layer.output) == 3 and layer.output[1:] != (1, 1) and name != "act":
            kinds["convolutions"] += 1
        elif name != "act":
            kinds["fully connected"] += 1
    return {**kinds, "layers": sum(kinds.values())}
