"""Writes every node test of the installed `onnx` package to files that the Rust tests read.

    python export_node_tests.py OUT

OUT/<case>/model.onnx                     ModelProto
OUT/<case>/data_set_<i>/input_<j>.pb      TensorProto, SequenceProto or OptionalProto, in the order
OUT/<case>/data_set_<i>/output_<j>.pb     of the graph's inputs and outputs
OUT/index.json                            a list of the cases; see `describe`

OUT is replaced as a whole, and only once everything has been written.
"""

import argparse
import collections
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

WRITERS = {
    "sequence": numpy_helper.from_list,
    "optional": numpy_helper.from_optional,
    "map": numpy_helper.from_dict,
}


def kind_of(info):
    """`tensor`, `sequence`, `optional` or `map`, by the declared type of a graph input or output."""
    return info.type.WhichOneof("value").removesuffix("_type")


def to_proto(value, info):
    """The message that holds `value`, named after the graph input or output `info`."""
    kind = kind_of(info)
    if kind in WRITERS:
        return WRITERS[kind](value, info.name)
    if isinstance(value, TensorProto):
        return value
    return numpy_helper.from_array(np.asarray(value), info.name)


def op_types(graph):
    """Operator types of a graph and of the graphs inside its nodes, with the domain when it isn't ONNX's own."""
    found = set()
    for node in graph.node:
        found.add(f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found |= op_types(attribute.g)
            elif attribute.type == AttributeProto.GRAPHS:
                for inner in attribute.graphs:
                    found |= op_types(inner)
    return found


def write_values(folder, prefix, values, infos):
    """Writes one file per value and returns what the index says of them."""
    if len(values) != len(infos):
        raise ValueError(f"{folder}: {len(values)} {prefix} values for {len(infos)} declared ones")
    entries = []
    for j, (value, info) in enumerate(zip(values, infos)):
        name = f"{prefix}_{j}.pb"
        (folder / name).write_bytes(to_proto(value, info).SerializeToString(deterministic=True))
        entries.append({"name": info.name, "kind": kind_of(info), "file": f"{folder.name}/{name}"})
    return entries


def describe(case, out):
    """Writes a case and returns its entry in the index; files are relative to the case's folder."""
    folder = out / case.name
    folder.mkdir()
    (folder / "model.onnx").write_bytes(case.model.SerializeToString(deterministic=True))
    graph = case.model.graph
    data_sets = []
    for i, (inputs, outputs) in enumerate(case.data_sets):
        data = folder / f"data_set_{i}"
        data.mkdir()
        data_sets.append(
            {
                "inputs": write_values(data, "input", inputs, graph.input),
                "outputs": write_values(data, "output", outputs, graph.output),
            }
        )
    return {
        "name": case.name,
        "op_types": sorted(op_types(graph)),
        "opset_imports": {opset.domain: opset.version for opset in case.model.opset_import},
        "rtol": case.rtol,
        "atol": case.atol,
        "model": "model.onnx",
        "data_sets": data_sets,
    }


def collect():
    """All node tests, ordered by name."""
    from onnx.backend.test.case.node import collect_testcases

    # Making the cases computes overflows and invalid casts on purpose.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases()
    return sorted(cases, key=lambda case: case.name)


def export(out):
    """Writes all cases under `out` and returns the index."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh = Path(scratch) / out.name
        fresh.mkdir()
        index = [describe(case, fresh) for case in collect()]
        (fresh / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return index


def main():
    parser = argparse.ArgumentParser(description="Export the node tests of the onnx package.")
    parser.add_argument("out", type=Path, help="folder to (re)place")
    parser.add_argument("--counts", action="store_true", help="also print the number of cases per operator type")
    args = parser.parse_args()
    begun = time.monotonic()
    index = export(args.out.resolve())
    if args.counts:
        counts = collections.Counter(op for case in index for op in case["op_types"])
        for op, count in sorted(counts.items()):
            print(f"{op:40} {count:5}")
    seconds = time.monotonic() - begun
    print(f"{len(index)} node tests of onnx {onnx.__version__} in {args.out} ({seconds:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
