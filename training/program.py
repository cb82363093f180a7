"""A module as an ONNX program: the exporter's call, its errors as ours, its notes removed."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx_ir
import torch
from torch import nn
from torch.onnx import OnnxExporterError, ONNXProgram

from service.errors import TrainingError

OPSET = 23


def to_program(
    graph: nn.Module,
    example: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    family: str,
) -> ONNXProgram:
    """`graph` as torch.export sees it on `example`; the names are those of the flattened inputs.

    No axis that is dynamic may be 0 or 1 in the example, which the exporter takes for constants,
    and no tensor may come twice, which it takes for one input. Raises TrainingError with a refusal
    of ours, or with the exporter's reason.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision; we do not
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter: axes that share a name, and its own
            program = torch.onnx.export(
                graph.eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
    except OnnxExporterError as error:
        raise _refusal(error) or TrainingError(
            f"{family} models cannot be exported: {error}"
        ) from None
    assert program is not None
    _make_anonymous(program.model)
    return program


def _refusal(error: BaseException) -> TrainingError | None:
    """Ours, where the exporter's error is around one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, TrainingError):
        cause = cause.__cause__
    return cause


def _make_anonymous(model: onnx_ir.Model) -> None:
    """Remove what the exporter notes about itself (stack traces, paths), and number nodes and their
    values in the order they have: its own names hang on the order of a set, and so on the process's
    hash seed. The same weights give the same file, wherever, whenever, from whatever line."""
    graph = model.graph
    for part in (model, graph, *graph, *graph.inputs, *graph.initializers.values()):
        part.metadata_props.clear()
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}_{number}"
        node.doc_string = None
        for place, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.name = f"{node.name}_{place}"
