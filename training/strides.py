"""Matrix products whose left rows do not lie 4 KiB apart. Knows ONNX graphs; knows no models.

With AVX-512 a product reads a dozen rows side by side. A multiple of 4 KiB apart they all fall into
one set of the processor's first cache, and on some processors they push each other out: over 1,024,
2,048 and 3,072 columns ONNX Runtime reached 0.72 to 0.80 of the rate that it has over 16 columns
more (`python -m loadtests.strides`, a Xeon, on both cores, 28 Nov 2026; an EPYC has the same rates,
with AVX2 and with AVX-512), and nearly every model has such widths. So the reduced axis gets those
16: rows of zeros in the weights, and columns on the left that are multiplied with them. Sums end
with zeros then, and no bit changes.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir

COLUMNS = 4096 // 4
"fp32 values in 4 KiB"
MORE = 16
"a cache line of them"
WIDE = "_wide"
"ends the name of a value that is padded"
PRODUCTS = frozenset({"MatMul", "Gemm"})
ELEMENTWISE = frozenset({"Add", "Gelu", "Mul", "Pow", "Relu", "Sigmoid", "Sub", "Swish", "Tanh"})
"operators of an MLP that give a finite value for any finite one, Pow with a positive exponent"


def widen(model: onnx_ir.Model) -> None:
    """Widen every left matrix whose rows lie a multiple of 4 KiB apart, in place.

    Where products with weights make it, through operators on single elements, these weights get
    columns of zeros; everything else is padded as the graph runs.
    """
    wide = [node for node in model.graph if _is_wide(node)]
    lefts = {id(node.inputs[0]): node.inputs[0] for node in wide}
    weights = {id(node.inputs[1]): node.inputs[1] for node in wide}
    for left in filter(None, lefts.values()):
        products = [node for node in wide if node.inputs[0] is left]
        made = _made_of(left)
        if made is None or not _only_for(made, products):
            _pad(left, products)
        else:
            for value in {id(each): each for each in made}.values():
                _extend(value, axis=-1)
    for value in filter(None, weights.values()):
        _extend(value, axis=0)


def narrow(model: onnx_ir.Model) -> None:
    """Undo `widen`, in place: products in 8 bits read their rows in blocks, and would read one
    block more (1,040 columns took 1.11 and 1.15 times as long as 1,024, 28 Nov 2026)."""
    for node in list(model.graph):
        if node.op_type == "Pad" and str(node.outputs[0].name).endswith(WIDE):
            assert node.inputs[0] is not None
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            model.graph.remove(node, safe=True)
    for value in model.graph.initializers.values():
        if _is_constant(value):
            for axis, size in enumerate(_shape(value)):
                _cut(value, axis, size)
    for value in (output for node in model.graph for output in node.outputs):
        if value.shape is not None and _is_widened(value.shape[-1] if len(value.shape) else 0):
            value.shape = None  # the runtime infers it


def _is_wide(node: onnx_ir.Node) -> bool:
    """Whether it is a product over a multiple of COLUMNS with fp32 weights that only such read."""
    weights = node.inputs[1] if _is_product(node) else None
    if weights is None or not _is_constant(weights) or len(_shape(weights)) != 2:
        return False
    users = ((user, place) for user, place in weights.uses())
    return _shape(weights)[0] % COLUMNS == 0 and all(_is_product(u) and p == 1 for u, p in users)


def _is_product(node: onnx_ir.Node) -> bool:
    transposed = (node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    return node.op_type in PRODUCTS and not any(transposed)


def _is_constant(value: onnx_ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT


def _is_own(value: onnx_ir.Value) -> bool:
    """Whether it is an fp32 constant that one node reads."""
    return _is_constant(value) and len(value.uses()) == 1


def _is_positive(value: onnx_ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and bool((tensor.numpy() > 0).all())


def _made_of(value: onnx_ir.Value) -> list[onnx_ir.Value] | None:
    """Everything that has to be as wide as this value, itself included, down to the weights that
    make it; None where something else does."""
    node = value.producer()
    if node is None:
        return None
    found = [value]
    if node.op_type == "MatMul":
        weights = node.inputs[1]
        return [*found, weights] if weights is not None and _is_own(weights) else None
    if node.op_type not in ELEMENTWISE or node.domain:
        return None
    if node.op_type == "Pow" and not _is_positive(node.inputs[1]):
        return None
    for each in node.inputs:
        if each is None or each.const_value is None:
            more = None if each is None else _made_of(each)
        elif each.const_value.size == 1:
            more = []
        else:
            more = [each] if _is_own(each) and len(_shape(each)) == 1 else None
        if more is None:
            return None
        found += more
    return found


def _only_for(made: Sequence[onnx_ir.Value], products: Sequence[onnx_ir.Node]) -> bool:
    """Whether nothing but these products, and each other, reads the values."""
    inside = {id(each.producer()) for each in made} | {id(product) for product in products}
    return all(id(user) in inside for each in made for user, _ in each.uses())


def _extend(value: onnx_ir.Value, axis: int) -> None:
    """Of a constant, add MORE zeros at the end of the axis; of another value, note its shape."""
    if value.const_value is None:
        if value.shape is not None:
            *others, last = value.shape
            value.shape = onnx_ir.Shape([*others, last + MORE if isinstance(last, int) else last])
        return
    array = value.const_value.numpy()
    after = [(0, 0)] * array.ndim
    after[axis] = (0, MORE)
    value.const_value = onnx_ir.tensor(np.pad(array, after), name=value.name)
    value.shape = onnx_ir.Shape(value.const_value.shape)


def _is_widened(size: object) -> bool:
    """Whether `widen` may have made it."""
    return isinstance(size, int) and size > MORE and (size - MORE) % COLUMNS == 0


def _cut(value: onnx_ir.Value, axis: int, size: int) -> None:
    """Take the zeros away that `_extend` added, where there are some."""
    if not _is_widened(size):
        return
    assert value.const_value is not None
    kept, added = np.split(value.const_value.numpy(), [size - MORE], axis=axis)
    if not added.any():
        value.const_value = onnx_ir.tensor(np.ascontiguousarray(kept), name=value.name)
        value.shape = onnx_ir.Shape(kept.shape)


def _pad(left: onnx_ir.Value, products: Sequence[onnx_ir.Node]) -> None:
    """Let the products read the value with MORE zeros behind each row."""
    graph = products[0].graph
    assert graph is not None and isinstance(graph, onnx_ir.Graph)
    constants = []
    for name, content in (("pads", [0, MORE]), ("axis", [-1])):
        tensor = onnx_ir.tensor(np.array(content, np.int64), name=f"{left.name}_{name}")
        constants.append(onnx_ir.Value(name=tensor.name, const_value=tensor))
        constants[-1].shape, constants[-1].dtype = onnx_ir.Shape(tensor.shape), tensor.dtype
        graph.register_initializer(constants[-1])
    node = onnx_ir.node("Pad", [left, constants[0], None, constants[1]])
    node.outputs[0].name, node.outputs[0].dtype = f"{left.name}{WIDE}", left.dtype
    if left.shape is not None:
        node.outputs[0].shape = onnx_ir.Shape(left.shape)
        _extend(node.outputs[0], axis=-1)
    graph.insert_before(products[0], node)
    for product in products:
        product.replace_input_with(0, node.outputs[0])


def _shape(value: onnx_ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape)
