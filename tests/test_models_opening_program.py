"""Programs from files: those that could run something are refused, and nothing in them runs."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("torch.export.pt2_archive", reason="this PyTorch writes older programs")

from normkit.errors import FileError  # noqa: E402
from normkit.models.opening import harmless, open_model  # noqa: E402
from opening_files import (  # noqa: E402
    PLANTED,
    Touch,
    assert_explained,
    exported,
    in_old_format,
    records_of,
    saved,
    touch_code,
    with_changes,
    write_records,
    write_zip,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A program in a file, and the model that it is of."""
    path = tmp_path_factory.mktemp("programs") / "net.pt2"
    program, model = exported()
    torch.export.save(program, path)
    return path, model


def test_program_round_trip(sound):
    path, model = sound
    before = path.read_bytes()
    opened = open_model(path)
    assert (opened.name, opened.format, opened.path) == ("net.pt2", "program", path)
    assert [(s.name, s.kind, s.channels) for s in opened.sites()] == [
        ("bn", "batch", 8),
        ("ln", "layer", 8),
    ]
    assert opened.graph() is not None
    own = {**model.state_dict(), "factor": model.factor}
    assert set(opened.tensors) == set(own)
    assert all(torch.equal(opened.tensors[name], own[name]) for name in own)
    x = torch.randn(5, 3, 8, 8)
    result = opened.program.module()(x, "plain")
    assert torch.equal(result["y"], model(x)["y"])
    assert result["n"] == 6
    assert path.read_bytes() == before


def test_program_in_memory(sound):
    program, _ = exported()
    opened = open_model(program)
    assert (opened.name, opened.format, opened.path) == ("ExportedProgram", "program", None)
    assert "bn.running_mean" in opened.tensors


def test_old_format(sound, tmp_path):
    path, model = sound
    in_old_format(path, tmp_path / "old.pt2")
    opened = open_model(tmp_path / "old.pt2")
    assert opened.format == "program"
    assert torch.equal(opened.tensors["bn.running_mean"], model.bn.running_mean)


@pytest.mark.parametrize("what", PLANTED)
def test_nothing_planted_runs(what, sound, tmp_path, monkeypatch):
    plant, when = PLANTED[what]
    monkeypatch.syspath_prepend(tmp_path)
    marker, path = tmp_path / "it_ran", tmp_path / "planted.pt2"
    with_changes(sound[0], path, plant(marker))
    before = path.read_bytes()
    with pytest.raises(FileError) as caught:
        open_model(path)
    assert not marker.exists()
    assert path.read_bytes() == before
    assert_explained(caught.value, "planted.pt2", "package.module:function", "run")

    # What was planted is alive: PyTorch's own loading wakes it, now or when the program is used.
    _load_and_call(path, call=when != "load")
    assert marker.exists() == (when != "never")


def _load_and_call(path, *, call):
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            if call:
                program.module()(torch.randn(4, 3, 8, 8), "plain")
    except Exception:  # what is planted need not leave a sound program
        pass
    finally:
        logging.disable(logging.NOTSET)
        for name in ("planted_module", "planted_enum"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("part", ["state_dict", "constants", "example_inputs"])
def test_nothing_runs_in_the_old_format(part, sound, tmp_path):
    parts = in_old_format(sound[0], tmp_path / "old.pt2")
    marker, path = tmp_path / "it_ran", tmp_path / "planted.pt2"
    write_zip(path, {**parts, f"serialized_{part}.pt": saved({"x": Touch(marker)})})
    with pytest.raises(FileError) as caught:
        open_model(path)
    assert not marker.exists()
    assert_explained(caught.value, f"serialized_{part}.pt", "posix.mkdir")
    _load_and_call(path, call=False)
    assert marker.exists()


def test_expressions_in_the_old_format(sound, tmp_path):
    parts = in_old_format(sound[0], tmp_path / "old.pt2")
    marker, path = tmp_path / "it_ran", tmp_path / "planted.pt2"
    name = "serialized_exported_program.json"
    harm = parts[name].replace(b"Integer(1)", touch_code(marker).encode())
    assert harm != parts[name]
    write_zip(path, {**parts, name: harm})
    with pytest.raises(FileError, match="known function"):
        open_model(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("record", "content", "word"),
    [
        ("data/aotinductor/model/kernel.so", b"\x7fELF", "machine code"),
        ("data/AOTINDUCTOR/model/kernel.so", b"\x7fELF", "machine code"),
        ("models/second.json", b"{", "no JSON"),
        ("models/second.json", b"[" * 100_000, "no JSON"),
        ("models/a b.json", b"{}", "no model's JSON"),
        ("models/second.json", b'{"graph_module": 3}', "it should be"),
        ("MODELS/MODEL.json", b"{}", "one name"),
    ],
)
def test_strange_records(record, content, word, sound, tmp_path):
    path = tmp_path / "strange.pt2"
    write_records(path, {**records_of(sound[0]), record: content})
    with pytest.raises(FileError) as caught:
        open_model(path)
    assert_explained(caught.value, word)


def test_a_custom_object(sound, tmp_path):
    def change(model, records):
        model["graph_module"]["graph"]["custom_obj_values"]["obj"] = {
            "name": "obj",
            "class_fqn": "__torch__.Some.Class",
        }

    with_changes(sound[0], tmp_path / "object.pt2", change)
    with pytest.raises(FileError) as caught:
        open_model(tmp_path / "object.pt2")
    assert_explained(caught.value, "a class of its own")


def test_a_weight_without_bytes_asks_for_no_memory(sound, tmp_path):
    def change(model, records):
        name = "data/weights/model_weights_config.json"
        records["data/weights/weight_0"] = b""
        records[name] = records[name].replace(b'{"as_int": 3}', b'{"as_int": 999999999999}')

    with_changes(sound[0], tmp_path / "hollow.pt2", change)
    with pytest.raises(FileError) as caught:
        open_model(tmp_path / "hollow.pt2")
    assert_explained(caught.value, "weight_0", "empty")


def test_two_programs_in_one_file(sound, tmp_path):
    records = records_of(sound[0])
    other = {n.replace("/model", "/other"): c for n, c in records.items() if "/model" in n}
    kept = {n: c for n, c in records.items() if "/model" not in n}
    write_records(tmp_path / "other.pt2", {**kept, **other})
    assert open_model(tmp_path / "other.pt2").format == "program"  # one, of another name
    third = {n.replace("other", "third"): c for n, c in other.items()}
    write_records(tmp_path / "both.pt2", {**kept, **other, **third})
    with pytest.raises(FileError, match="other, third"):
        open_model(tmp_path / "both.pt2")


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_cut_short(kept, sound, tmp_path):
    path = tmp_path / "short.pt2"
    whole = sound[0].read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(FileError) as caught:
        open_model(path)
    assert_explained(caught.value, "cut short", "short.pt2", "again")


def test_another_version(sound, tmp_path):
    def change(model, records):
        model["schema_version"]["major"] = 99

    with_changes(sound[0], tmp_path / "future.pt2", change)
    with pytest.raises(FileError) as caught:
        open_model(tmp_path / "future.pt2")
    assert_explained(caught.value, torch.__version__, "version")


def test_an_operator_that_is_not_there(sound, tmp_path):
    def change(model, records):
        model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.nonesuch.default"

    with_changes(sound[0], tmp_path / "unknown.pt2", change)
    with pytest.raises(FileError, match="no such operator"):
        open_model(tmp_path / "unknown.pt2")


def test_control_flow_and_guards_are_let_through(tmp_path):
    class Branches(torch.nn.Module):
        def forward(self, x, others):
            if x.shape[0] % 2 == 0:
                x = x.reshape(x.shape[0] // 2, -1)
            with torch.no_grad():
                y = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x.sum(1),))
            count = (y > 0).sum().item()
            torch._check(count >= 0)
            return {"y": [y * count, others["a b"][0]], "z": others["z"] * max(y.shape[0], 3)}

    model, inputs = Branches(), (torch.randn(8, 4), {"a b": (torch.ones(2),), "z": torch.ones(3)})
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}, "others": {"a b": (None,), "z": None}}
    path = tmp_path / "branches.pt2"
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), path)
    opened = open_model(path)
    expected, result = model(*inputs), opened.program.module()(*inputs)
    assert torch.equal(result["y"][0], expected["y"][0])
    assert torch.equal(result["z"], expected["z"])


@pytest.mark.parametrize(
    "text",
    [
        "s0 + 1",
        "2*s77 - 3*s0",
        "Max(1, s0//2)",
        "Pow(Symbol('s0', positive=True, integer=True), Integer(2))",
        "Pow(Symbol('s0', integer=True), Rational(1, 2))",
        "ToFloat(u0) * Float('0.5', precision=53)",
        "Eq(ModularIndexing(s0, 1, 4), 0)",
        "Piecewise(ExprCondPair(Integer(1), s0 > 3), ExprCondPair(Integer(0), true))",
        "-s0**2",
    ],
)
def test_expressions_that_sizes_need(text):
    assert harmless.expression(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "s0.__class__",
        "().__class__.__bases__",
        "lambda: s0",
        "[s0 for s0 in (1, 2)]",
        "'text'",
        "f'{s0}'",
        "exit",
        "open",
        "Max('__import__(\"os\")', 1)",
        "Symbol('s0', **{})",
        "Symbol('s0; x')",
        "Symbol(__import__('os'))",
        "Float('__import__(1)')",
        "Function('f')(s0)",
        "sympify('1')",
        "parse_expr('1')",
        "9**9**9",
        "Pow(Integer(9), Integer(999))",
        "LShift(1, 10**9)",
        "((s0**64)**64)**64**1**1",
        "1e999",
        "s0 if (x := 3) else 1",
        "s0\nimport os",
        "s0 +",
        "ｓ0",
        "9" * 30_000,
        3,
        None,
        ["s0"],
    ],
)
def test_expressions_that_they_do_not(text):
    assert harmless.expression(text) != ""


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[0] % 2 == 0",
        "3 <= L['x'].size()[2] and L['x'].size()[2] <= 10",
        "L['args'][0]['a b'].stride()[1] != max(L['x'].size()[0], 4)",
        "math.trunc(torch.sym_float(L['x'].size()[0]) ** 0.5) == 2",
        "not L['flag']",
    ],
)
def test_guards_that_sizes_need(text):
    assert harmless.guard(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "L['x'].__class__",
        "L['x'].tofile('x')",
        "math.__loader__.load_module('os')",
        "torch.load('x')",
        "torch.sym_float.__globals__",
        "L['a\"); print(1); (\"']",
        "L.__init__()",
        "True)\nimport os\n(True",
        "getattr(L, 'x')",
    ],
)
def test_guards_that_they_do_not(text):
    assert harmless.guard(text) != ""


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.save.default",
        "torch.ops.load_library",
        "torch.ops.aten.__class__.__name__",
        "torch.ops.inductor._alloc_from_pool.default",
        "torch.ops.higher_order.inline_asm_elementwise",
        "torch.ops.higher_order.call_torchbind",
        "torch.load",
        "torch.hub.load",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.__loader__.load_module",
        "#extension:op",
        "os.system",
        "",
        None,
    ],
)
def test_operators_that_do_not_only_compute(target):
    assert harmless.operator(target) != ""


@pytest.mark.parametrize(
    "text",
    [
        '[1, {"type": "builtins.dict", "context": "[\\"a\'b\\"]", "children_spec": []}]',
        '[1, {"type": "os.system", "context": "[]", "children_spec": []}]',
        '[1, {"type": "builtins.dict", "context": {"a": 1}, "children_spec": []}]',
        "[1]",
        "[" * 100_000,
        '"text"',
        3,
    ],
)
def test_trees_that_import_or_are_none(text):
    assert harmless.tree(text) != ""
