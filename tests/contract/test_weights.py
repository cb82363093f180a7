"""Weights are found wherever a graph may have them, and nothing else is taken for them."""

import onnx
import pytest
from onnx import TensorProto, helper

from service.weights import locations


def _tensor(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="4096")
    tensor.external_data.add(key="location", value=location)
    return tensor


def _graph(location: str) -> onnx.GraphProto:
    return helper.make_graph([], "g", [], [], initializer=[_tensor(location)])


def test_weights_are_found_in_every_part_of_a_model() -> None:
    sparse = [
        onnx.SparseTensorProto(values=_tensor(f"{i}v"), indices=_tensor(f"{i}i")) for i in "st"
    ]
    node = helper.make_node("If", [], ["y"], then_branch=_graph("branch"), value=_tensor("value"))
    node.attribute.append(helper.make_attribute("many", [_tensor("many")]))
    node.attribute.append(helper.make_attribute("graphs", [_graph("graphs")]))
    node.attribute.append(helper.make_attribute("sparse", sparse[0]))
    function = helper.make_function(
        "d",
        "f",
        [],
        ["y"],
        [helper.make_node("Constant", [], ["y"], value=_tensor("function"))],
        [],
        attribute_protos=[helper.make_attribute("default", _tensor("default"))],
    )
    model = helper.make_model(_graph("initializer"), functions=[function])
    model.graph.node.append(node)
    model.graph.sparse_initializer.append(sparse[1])
    model.graph.initializer.append(helper.make_tensor("inline", TensorProto.FLOAT, [2], [1.0, 2.0]))
    expected = "branch value many graphs sv si function default initializer tv ti"
    assert locations(model.SerializeToString()) == {*expected.split()}


def test_of_an_entry_that_says_it_twice_the_last_counts() -> None:
    """As in protobuf, where messages that follow one another are one."""
    tensor = _tensor("first")
    entry = tensor.external_data[1].SerializeToString()
    entry += onnx.StringStringEntryProto(value="last").SerializeToString()
    tensor.external_data[1].ParseFromString(entry)
    assert tensor.external_data[1].value == "last"
    part = b"\x6a" + bytes([len(entry)]) + entry  # field 13 of a tensor
    assert locations(_in_model(part)) == {"last"}


def _in_model(tensor: bytes) -> bytes:
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    return b"\x3a" + bytes([len(graph)]) + graph


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}", "wire type 3"), (b"\x3a\x05ab", "ends within a field"), (b"\xff", "within a number")],
)
def test_what_is_not_protobuf_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locations(content)
