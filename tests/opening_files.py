"""Files made for the tests of opening: programs with something planted in them, among others."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import torch
from torch import nn

from normkit.errors import FileError


class Touch:
    """Unpickling it creates a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def touch_code(path):
    """A Python expression that creates a file."""
    return f"__import__('pathlib').Path('{path}').touch()"


class Net(nn.Module):
    """A convolution with a batch norm, a head with a layer norm, an option."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.ln = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.register_buffer("factor", torch.tensor([0.5]), persistent=False)

    def forward(self, x, mode="plain"):
        assert mode
        y = self.bn(self.conv(x)).relu().mean((2, 3))
        return {"y": self.head(self.ln(y)) * self.factor, "n": x.shape[0] + 1}


def exported():
    """A program with a dynamic batch, and its model."""
    torch.manual_seed(0)
    model = Net().eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}, "mode": None}
    return torch.export.export(
        model, (torch.randn(4, 3, 8, 8), "plain"), dynamic_shapes=shapes
    ), model


def records_of(path):
    """The records of an archive of torch's, by name."""
    reader = torch._C.PyTorchFileReader(str(path))
    return {name: reader.get_record(name) for name in reader.get_all_records()}


def write_records(path, records):
    """An archive like torch.export.save's."""
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, content in records.items():
        if not name.startswith(".data/") and name != "byteorder":
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()


def with_changes(source, target, change):
    """``change(model, records)`` may change the model's JSON and the records, in place."""
    records = records_of(source)
    model = json.loads(records["models/model.json"])
    change(model, records)
    records["models/model.json"] = json.dumps(model).encode()
    write_records(target, records)


def in_old_format(source, target):
    """The program as PyTorch before 2.8 wrote it."""
    from torch._export.serde.serialize import serialize

    artifact = serialize(torch.export.load(source))
    parts = {
        "version": b"8.8",
        "serialized_exported_program.json": artifact.exported_program,
        "serialized_state_dict.pt": artifact.state_dict,
        "serialized_constants.pt": artifact.constants,
        "serialized_example_inputs.pt": artifact.example_inputs,
    }
    write_zip(target, parts)
    return parts


def write_zip(path, parts):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def saved(value):
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def payload_config(records, folder):
    name = f"data/{folder}/model_{folder}_config.json"
    return name, json.loads(records[name])


def plant_pickled_inputs(marker):
    def change(model, records):
        records["data/sample_inputs/model.pt"] = saved(((Touch(marker),), {}))

    return change


def plant_pickled_inputs_in_capitals(marker):
    def change(model, records):
        del records["data/sample_inputs/model.pt"]
        records["data/sample_inputs/MODEL.PT"] = saved(((Touch(marker),), {}))

    return change


def plant_pickled_weight(marker):
    def change(model, records):
        name, config = payload_config(records, "weights")
        meta = config["config"]["bn.weight"]
        meta["use_pickle"] = True
        records[f"data/weights/{meta['path_name']}"] = saved(Touch(marker))
        records[name] = json.dumps(config).encode()

    return change


def plant_old_weights(marker):
    def change(model, records):
        records["data/weights/model.pt"] = saved({"bn.weight": Touch(marker)})

    return change


def plant_opaque_constant(marker):
    def change(model, records):
        name, config = payload_config(records, "constants")
        meta = dict(
            next(iter(config["config"].values())), path_name="opaque_obj_0", use_pickle=True
        )
        config["config"]["opaque"] = meta
        records["data/constants/opaque_obj_0"] = pickle.dumps(Touch(marker))
        records[name] = json.dumps(config).encode()

    return change


def plant_expression(marker):
    def change(model, records):
        for value in model["graph_module"]["graph"]["sym_int_values"].values():
            value["as_expr"]["expr_str"] = f"{touch_code(marker)} or s77"

    return change


def plant_name(marker):
    """An input's name is written into the head of a function, where a default is evaluated."""

    def change(model, records):
        inputs = model["graph_module"]["signature"]["input_specs"]
        option = next(i["constant_input"] for i in inputs if "constant_input" in i)
        option["name"] = f"mode={touch_code(marker)}"

    return change


def plant_node_name(marker):
    """A name that would end its line, if PyTorch did not mend the names of nodes."""

    def change(model, records):
        name = f"y = 1\n{touch_code(marker)}\nz"
        _call(model, "torch.ops.aten.relu.default", [{"as_tensor": {"name": "x"}}], name)

    return change


def plant_import_in_tree(marker):
    """The tree of the outputs names a module, which is imported; its code creates the file."""

    def change(model, records):
        (marker.parent / "planted_module.py").write_text(
            f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        )
        context = {
            "default_factory_module": "planted_module",
            "default_factory_name": "Path",
            "dict_context": ["y", "n"],
        }
        _replace_tree(model, "collections.defaultdict", context)

    return change


def plant_enum_in_tree(marker):
    def change(model, records):
        (marker.parent / "planted_enum.py").write_text(
            f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        )
        key = {"__enum__": True, "fqn": "planted_enum:Path", "name": "y"}
        _replace_tree(model, "builtins.dict", json.dumps([key, "n"]))

    return change


def _replace_tree(model, kind, context):
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    version, spec = json.loads(signature["out_spec"])
    signature["out_spec"] = json.dumps([version, spec | {"type": kind, "context": context}])


def plant_guard(marker):
    def change(model, records):
        model["guards_code"] = [f"{touch_code(marker)} is None"]

    return change


def plant_quoted_input(marker):
    """Text among the inputs becomes part of a guard's source."""
    code = f"plain' and {touch_code(marker)} is None and 'x"

    def change(model, records):
        text = json.dumps(model["graph_module"]).replace('"plain"', json.dumps(code))
        model["graph_module"] = json.loads(text)

    return change


def plant_parameter_name(marker):
    """Names that are no Python names are written into the source between quotes."""
    inner = touch_code(marker).replace("'", '"').replace(".", "\\x2e")  # a dot would end the name
    code = f"a b\", exec('{inner}') or \"x"

    def change(model, records):
        text = json.dumps(model["graph_module"]).replace('"bn.weight"', json.dumps(code))
        model["graph_module"] = json.loads(text)
        name, config = payload_config(records, "weights")
        config["config"][code] = config["config"].pop("bn.weight")
        records[name] = json.dumps(config).encode()

    return change


def _call(model, target, arguments, name="planted"):
    """A call before all others, whose result nobody takes."""
    graph = model["graph_module"]["graph"]
    names = ("filename", "shared", "size") if "file" in target else ("self", "other", "third")
    result = {"as_tensor": {"name": name}} if "aten" in target else {"as_none": True}
    if "aten" in target:
        graph["tensor_values"][name] = graph["tensor_values"]["relu"]
    node = {
        "target": target,
        "inputs": [
            {"name": name, "arg": argument, "kind": 1}
            for name, argument in zip(names, arguments, strict=False)
        ],
        "outputs": [result],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": name,
    }
    graph["nodes"].insert(0, node)


def plant_function(marker):
    def change(model, records):
        _call(model, "torch.os.system", [{"as_string": f"touch {marker}"}])

    return change


def plant_call_through_operator(marker):
    def change(model, records):
        arguments = [{"as_operator": "torch.os.system"}, {"as_string": f"touch {marker}"}]
        _call(model, "_operator.call", arguments)

    return change


def plant_file_operator(marker):
    def change(model, records):
        arguments = [{"as_string": str(marker)}, {"as_bool": True}, {"as_int": 4}]
        _call(model, "torch.ops.aten.from_file.default", arguments)

    return change


#: What is planted, and what raises it to life in PyTorch's own loading: loading alone, making a
#: module of the program and calling that; "never" where PyTorch stops it too.
PLANTED = {
    "pickled inputs": (plant_pickled_inputs, "load"),
    "pickled inputs in capitals": (plant_pickled_inputs_in_capitals, "load"),
    "pickled weight": (plant_pickled_weight, "load"),
    "old weights": (plant_old_weights, "load"),
    "opaque constant": (plant_opaque_constant, "load"),
    "expression": (plant_expression, "load"),
    "input's name": (plant_name, "load"),
    "node's name": (plant_node_name, "never"),
    "import in a tree": (plant_import_in_tree, "load"),
    "enum in a tree": (plant_enum_in_tree, "load"),
    "guard": (plant_guard, "call"),
    "quoted input": (plant_quoted_input, "call"),
    "parameter name": (plant_parameter_name, "call"),
    "function": (plant_function, "never"),
    "call through an operator": (plant_call_through_operator, "never"),
    "file operator": (plant_file_operator, "call"),
}


def assert_explained(error, *words):
    """The error has its four parts, and says these words."""
    assert isinstance(error, (FileError, ValueError))
    text = str(error)
    assert "received" in text
    assert "expected" in text
    assert error.remedy
    for word in words:
        assert word in text, text
