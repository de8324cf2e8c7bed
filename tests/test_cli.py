"""The command line: what it prints, writes and returns, with good and with bad input."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import cli_zoo

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("typer", reason="typer is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from normkit.cli import main  # noqa: E402

COMMANDS = ("audit", "recalibrate", "fold", "convert", "port", "insert", "bench", "demo")


@pytest.fixture
def run(capsys):
    def run(*words):
        status = main([str(word) for word in words])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(cli_zoo.stale().state_dict(), path)
    return path


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def one_line(text):
    return text.startswith("normkit: ") and text.count("\n") == 1 and "Traceback" not in text


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "Examples" in out
    assert f"normkit {command}" in out


def test_the_commands_start_without_a_framework():
    code = (
        "import sys\nfrom normkit.cli import main\nmain(['audit', '--help'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_nothing_is_imported_before_ctrl_c_is_caught():
    """Beside the package's own names, nothing that the console script imports comes before."""
    code = (
        "import sys\nfrom normkit.cli import main\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'typer')"
        " or m == 'normkit.cli.entry'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_ctrl_c_while_modules_are_imported(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "normkit.cli.entry":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    for name in [name for name in sys.modules if name.startswith("normkit.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["normkit.cli"], "entry", raising=False)
    assert main(["audit", "x.pt"]) == 130
    assert one_line(capsys.readouterr().err)


def test_every_public_name_is_found_when_asked_for():
    code = "import normkit\nfor name in normkit.__all__: getattr(normkit, name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_completion_is_offered():
    done = subprocess.run(
        [sys.executable, "-m", "normkit.cli", "--show-completion", "bash"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert "_NORMKIT_COMPLETE" in done.stdout + done.stderr or "complete" in done.stdout


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["audit"], ["audit", "a", "b", "c"], ["audit", "--colour"], ["fold", "only-in"],
     ["audit", "cli_zoo:net", "--fail-on", "maybe"], ["convert", "cli_zoo:net", "--to", "batch"],
     ["convert", "cli_zoo:net", "--to", "group", "--groups", "few", "--dry-run"],
     ["bench", "cli_zoo:net"], ["bench", "cli_zoo:net", "--shape", "8,x"]],
)  # fmt: skip
def test_wrong_words(run, words):
    status, out, err = run(*words)
    if words == ["audit"]:  # asks for help by saying nothing
        assert "Usage" in out
    else:
        assert one_line(err), err
        assert "--help" in err
        assert status == 2


# --- audit --------------------------------------------------------------------------------------


def test_audit_of_a_clean_model(run):
    status, out, err = run("audit", "cli_zoo:net", "--data", "cli_zoo:batches")
    assert (status, err) == (0, "")
    assert "stale" not in out.split("could not")[0]


def test_audit_finds_stale_statistics_in_weights_and_data(run, weights, tmp_path):
    report = tmp_path / "page.html"
    words = ("audit", "cli_zoo:net", "--weights", weights, "--data", "cli_zoo:batches")
    status, out, _ = run(*words, "--html", report)
    assert status == 1
    assert "stale-statistics" in out
    assert "recalibrate" in out
    assert "stale-statistics" in report.read_text()
    assert run(*words, "--ignore", "stale-statistics")[0] == 0
    assert "no such rule" in run(*words, "--ignore", "stale-statistic")[2].lower()


def test_audit_as_json(run, weights):
    words = ("audit", "cli_zoo:net", "--weights", weights, "--data", "cli_zoo:batches", "--json")
    status, out, _ = run(*words)
    found = json.loads(out)
    assert status == 1
    assert {f["rule"] for f in found["findings"]} >= {"stale-statistics"}
    assert found["findings"][0]["site"] == "1"


def test_a_model_without_norms_says_so(run):
    status, out, _ = run("audit", "cli_zoo:plain")
    assert status == 0
    assert "no norm" in out.lower()


def test_audit_of_a_checkpoint_alone(run, weights):
    status, out, _ = run("audit", weights, "--fail-on", "error")
    assert status == 0
    assert "rules could not look" in out
    assert "(--train-batch, --accumulate" in " ".join(out.split())
    assert "batch_size=" not in out
    out = run("audit", weights, "--fail-on", "error", "--verbose")[1]
    assert "Could not look:" in out
    assert "pass --train-batch" in " ".join(out.split())


def test_audit_of_a_checkpoint_with_nan_buffers(run, tmp_path):
    state = cli_zoo.net().state_dict()
    state["1.running_var"][2] = float("nan")
    path = tmp_path / "bad.pt"
    torch.save(state, path)
    status, out, _ = run("audit", path)
    assert status == 1
    assert "bad-buffers" in out


# --- recalibrate, convert, insert ---------------------------------------------------------------


def test_recalibrate_repairs(run, weights, tmp_path):
    out = tmp_path / "repaired.pt"
    before = files(tmp_path)
    words = ("recalibrate", "cli_zoo:net", "--weights", weights, "--data", "cli_zoo:batches")
    status, shown, _ = run(*words, "--layerwise", "-o", out)
    assert status == 0
    assert "1" in shown
    state = torch.load(out, weights_only=True)
    want = cli_zoo.net().state_dict()
    torch.testing.assert_close(state["1.running_mean"], want["1.running_mean"])
    torch.testing.assert_close(state["4.running_var"], want["4.running_var"])
    assert {name: before[name] for name in before} == {
        name: content for name, content in files(tmp_path).items() if name in before
    }
    assert run("audit", "cli_zoo:net", "--weights", out, "--data", "cli_zoo:batches")[0] == 0


def test_recalibrate_as_json(run, weights, tmp_path):
    words = ("recalibrate", "cli_zoo:net", "--weights", weights, "--data", "cli_zoo:batches")
    status, shown, err = run(*words, "-o", tmp_path / "repaired.pt", "--json")
    assert status == 0, err
    found = json.loads(shown)
    assert [layer["name"] for layer in found["layers"]] == ["1", "4"]
    assert found["passes"] == 1
    assert found["skipped"] == 0
    assert found["left"] == {}


@pytest.mark.parametrize("target", ["group", "layer", "instance", "normkit", "frozen"])
def test_convert_writes_weights(run, tmp_path, target):
    out = tmp_path / "converted.safetensors"
    status, shown, err = run("convert", "cli_zoo:net", "--to", target, "-o", out)
    assert status == 0, err
    names = safetensors.load_file(out)
    assert "1.weight" in names
    assert ("1.running_mean" in names) == (target in ("normkit", "frozen"))
    assert shown


def test_convert_dry_run_writes_nothing(run, tmp_path):
    status, shown, _ = run("convert", "cli_zoo:net", "--to", "group", "--dry-run", "--json")
    assert status == 0
    assert json.loads(shown)["report"]
    assert not files(tmp_path)


def test_insert_keeps_the_function(run, tmp_path):
    out = tmp_path / "with_norm.pt"
    words = ("insert", "cli_zoo:plain", "--after", "conv", "--data", "cli_zoo:batches")
    status, _, err = run(*words, "-o", out)
    assert status == 0, err
    assert any(name.endswith("running_var") for name in torch.load(out, weights_only=True))


# --- fold ---------------------------------------------------------------------------------------


def test_fold_onnx_file_to_file(run, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    source, out = tmp_path / "net.onnx", tmp_path / "folded.onnx"
    export_with_norms(source)
    status, shown, err = run("fold", source, out)
    assert status == 0, err
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert "BatchNormalization" not in kinds
    x = cli_zoo.images()[:4].numpy()
    results = [
        ort.InferenceSession(str(path)).run(None, {"x": x})[0] for path in (source, out)
    ]  # fmt: skip
    assert abs(results[0] - results[1]).max() < 1e-5 * abs(results[0]).max()
    assert "fold" in shown
    assert run("fold", source, out)[0] == 2  # exists
    assert run("fold", source, out, "--overwrite", "--json")[0] == 0
    assert run("fold", source, source)[0] == 2


def export_with_norms(path):
    """An ONNX file whose batch norms stand, as optimizing exporters do not leave them."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper, save

    model = cli_zoo.net()
    nodes, constants, value = [], [], "x"

    def constant(name, tensor):
        constants.append(numpy_helper.from_array(tensor.detach().numpy().astype(np.float32), name))
        return name

    for index in (0, 1, 3, 4):
        layer, out = model[index], f"y{index}"
        if isinstance(layer, torch.nn.Conv2d):
            pads = [layer.padding[0]] * 4
            inputs = [value, constant(f"w{index}", layer.weight)]
            nodes.append(helper.make_node("Conv", inputs, [out], pads=pads))
        else:
            words = ("weight", "bias", "running_mean", "running_var")
            inputs = [value, *(constant(f"{w}{index}", getattr(layer, w)) for w in words)]
            nodes.append(helper.make_node("BatchNormalization", inputs, [out], epsilon=layer.eps))
            nodes.append(helper.make_node("Relu", [out], [out + "r"]))
            out += "r"
        value = out
    shape = ["n", 3, 8, 8]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 8, 6, 6])],
        constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 9
    checker.check_model(proto)
    save(proto, path)


@pytest.mark.parametrize("ending", [".pt2", ".safetensors"])
def test_fold_code_to_a_file(run, tmp_path, ending):
    out = tmp_path / f"folded{ending}"
    status, _, err = run("fold", "cli_zoo:net", out, "--data", "cli_zoo:batches")
    assert status == 0, err
    if ending == ".pt2":
        folded = torch.export.load(out).module()
        x = cli_zoo.images()[:2]
        torch.testing.assert_close(folded(x), cli_zoo.net()(x), rtol=1e-4, atol=1e-5)
    else:
        assert not any("running" in name for name in safetensors.load_file(out))


def test_fold_code_to_onnx(run, tmp_path, recwarn):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    out = tmp_path / "folded.onnx"
    status, _, err = run("fold", "cli_zoo:net", out, "--data", "cli_zoo:batches")
    assert (status, err) == (0, f"folded model: {out}\n")
    assert not recwarn.list
    graph = onnx.load(out).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    x = cli_zoo.images()[:5]
    found = ort.InferenceSession(str(out)).run(None, {graph.input[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), cli_zoo.net()(x), rtol=1e-4, atol=1e-5)


def test_fold_counts_alike_in_all_formats(run, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    export_with_norms(tmp_path / "net.onnx")
    x = cli_zoo.images()[:4]
    torch.export.save(torch.export.export(cli_zoo.net(), (x,)), tmp_path / "net.pt2")
    saved = set()
    for model, out in (("cli_zoo:net", "a.pt"), (tmp_path / "net.onnx", "a.onnx"),
                       (tmp_path / "net.pt2", "a.pt2")):  # fmt: skip
        status, shown, err = run("fold", model, tmp_path / out, "--json")
        assert status == 0, err
        report = json.loads(shown)
        saved.add(report["parameters_before"] - report["parameters_after"])
    assert saved == {2 * 2 * 8 - 2 * 8}  # gamma and beta of two norms, without two new biases


def test_fold_pt2_file_to_file(run, tmp_path):
    source, out = tmp_path / "net.pt2", tmp_path / "folded.pt2"
    x = cli_zoo.images()[:4]
    torch.export.save(torch.export.export(cli_zoo.net(), (x,)), source)
    status, _, err = run("fold", source, out)
    assert status == 0, err
    folded = torch.export.load(out)
    assert not any("running" in name for name in folded.state_dict)
    torch.testing.assert_close(folded.module()(x), cli_zoo.net()(x), rtol=1e-4, atol=1e-5)


# --- what is said of the weights that are taken and written ---------------------------------------


@pytest.fixture
def training(tmp_path):
    """A checkpoint as training loops leave it: weights, their average, an optimizer's state."""
    path = tmp_path / "full.pt"
    kept = {"model": cli_zoo.stale().state_dict(), "ema": cli_zoo.net().state_dict()}
    torch.save({**kept, "epoch": 3, "optimizer": {"state": {}}}, path)
    return path


def test_which_weights_were_taken_is_said(run, training, tmp_path):
    status, _, err = run("audit", training)
    assert status == 0
    assert 'its weights "model" were taken, not ema' in err
    words = ("audit", "cli_zoo:net", "--data", "cli_zoo:batches", "--weights")
    assert run(*words, training)[0] == 1
    assert run(*words, f"{training}:ema")[::2] == (0, "")
    out = tmp_path / "repaired.pt"
    words = ("recalibrate", "cli_zoo:net", "--weights", training, "--data", "cli_zoo:batches")
    _, _, err = run(*words, "-o", out)
    assert f"weights: {out}; of full.pt not taken over: ema, epoch, optimizer" in err


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "words",
    [("convert", "cli_zoo:net", "--to", "group", "--groups", "2"),
     ("convert", "cli_zoo:net", "--to", "group", "--only", "1"),
     ("insert", "cli_zoo:plain", "--after", "conv", "--drop-bias", "--data", "cli_zoo:batches"),
     ("fold", "cli_zoo:net")],
    ids=["convert", "convert only", "insert", "fold"],
)  # fmt: skip
def test_the_line_that_loads_the_weights_again(run, tmp_path, words, ending, monkeypatch):
    out = tmp_path / f"changed{ending}"
    status, _, err = run(*words, *([out] if words[0] == "fold" else ["-o", out]))
    assert status == 0, err
    line = next(line for line in err.splitlines() if line.startswith("load: "))
    found = {}
    exec(line.removeprefix("load: "), found)
    stored = torch.load(out) if ending == ".pt" else safetensors.load_file(out)
    loaded = found["model"].state_dict()
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


# --- data that are bytes ------------------------------------------------------------------------


def test_images_say_how_they_were_scaled_and_can_be_standardized(run, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    import numpy as np

    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(path)
    words = ("recalibrate", "cli_zoo:net", "--data", tmp_path / "images", "-o")
    status, _, err = run(*words, tmp_path / "plain.pt")
    assert status == 0, err
    assert "images: 3 images, 2 classes, scaled to [0, 1]; give --mean and --std" in err
    options = ("--size", 8, "--mean", "0.5,0.4,0.3", "--std", "0.2")
    status, _, err = run(*words, tmp_path / "standard.pt", *options)
    assert status == 0, err
    assert "then standardized" in err
    assert "give --mean" not in err

    from normkit.models import open_data, recalibrate

    net = cli_zoo.net()
    recalibrate(net, open_data(tmp_path / "images", size=8, mean=[0.5, 0.4, 0.3], std=0.2))
    found = torch.load(tmp_path / "standard.pt", weights_only=True)
    torch.testing.assert_close(found["1.running_mean"], net[1].running_mean)
    for bad in (("--mean", "a"), ("--mean", "1,2"), ("--std", "0"), ("--size", 0)):
        status, _, err = run(*words, tmp_path / "bad.pt", *bad)
        assert status == 2
        assert one_line(err.split("standardized\n")[-1]), err
    assert not (tmp_path / "bad.pt").exists()


# --- the shell's words --------------------------------------------------------------------------


def test_what_a_command_takes_is_looked_at_before_its_output(run, tmp_path, weights):
    for command in ("recalibrate", "convert", "insert"):
        more = {"recalibrate": ("--data", "cli_zoo:batches"), "convert": ("--to", "group"),
                "insert": ("--after", "conv", "--data", "cli_zoo:batches")}[command]  # fmt: skip
        status, _, err = run(command, weights, *more, "--out", tmp_path / "x.onnx")
        assert status == 2
        assert "a file of weights only" in err
        assert "--weights" in err
        assert ".onnx" not in run(command, "--help")[1].split("Options")[0].split("Examples")[0]


def test_an_audit_speaks_of_options_in_its_page_too(run, weights, tmp_path):
    page = tmp_path / "page.html"
    words = ("audit", "cli_zoo:net", "--weights", weights, "--data", "cli_zoo:batches")
    _, out, _ = run(*words, "--html", page)
    command = f"normkit recalibrate cli_zoo:net --weights {weights} --data cli_zoo:batches"
    assert out.rstrip().endswith(f"In the shell: {command} --out FILE")
    text = page.read_text()
    assert command in text
    assert "--train-batch" in text
    assert "batch_size=" not in text


def test_errors_name_options(run, tmp_path):
    said = run("convert", "cli_zoo:net", "--to", "ghost", "--dry-run")[2]
    assert "--ghost 32" in said
    said = run("convert", "cli_zoo:lone", "--to", "instance", "--dry-run")[2]
    assert "--on-refused skip converts the others" in said
    assert "--to group or --to layer" in said
    skipped = ("convert", "cli_zoo:lone", "--to", "instance", "--dry-run", "--on-refused", "skip")
    assert run(*skipped)[0] == 0
    said = run("fold", "cli_zoo:net", tmp_path / "x.pt2")[2]
    assert "Pass --data, an input" in said
    said = run("audit", "cli_zoo:net", "--data", "cli_zoo:wrong_shape")[2]
    assert "Given groups=1" in said  # PyTorch's words are left alone


@pytest.mark.parametrize("path", ["runs/size=224/best.pt", "size=224.pt", "data=3/x.npz"])
def test_paths_are_no_options(path):
    from normkit.cli.shell import in_shell

    assert in_shell(f"received {path}, expected a file") == f"received {path}, expected a file"


def test_a_page_needs_a_folder_and_a_name(run, weights, tmp_path):
    _, _, err = run("audit", weights, "--html", tmp_path / "no" / "page.html")
    assert one_line(err)
    assert f"mkdir -p {tmp_path / 'no'}" in err
    assert not (tmp_path / "no").exists()
    assert "audit.html" in run("audit", weights, "--html", tmp_path)[2]
    assert ".html" in run("audit", weights, "--html", tmp_path / "page.pdf")[2]
    words = ("recalibrate", "cli_zoo:net", "--data", "cli_zoo:batches", "-o")
    assert "mkdir -p" in run(*words, tmp_path / "no" / "out.pt")[2]
    assert "weights.safetensors" in run(*words, tmp_path)[2]


# --- bad input ----------------------------------------------------------------------------------


class Harm:
    def __reduce__(self):
        return (os.mkdir, ("harmed",))


def bad_files(folder):
    """Files that are no models, by what is wrong with them."""
    good = folder / "good.safetensors"
    safetensors.save_file({"w": torch.ones(1000)}, good)
    content = good.read_bytes()
    torch.save({"w": torch.ones(1000)}, folder / "good.pt")
    made = {
        "empty.safetensors": b"",
        "truncated.safetensors": content[:200],
        "header.safetensors": (2**60).to_bytes(8, "little") + b"{}",
        "text.safetensors": b"hello, this is no model at all",
        "empty.pt": b"",
        "truncated.pt": (folder / "good.pt").read_bytes()[:300],
        "pickle.pt": pickle.dumps(Harm()),
        "empty.onnx": b"",
        "text.onnx": b"hello, this is no model at all",
        "empty.pt2": b"",
        "text.pt2": b"hello",
        "picture.jpg": b"\xff\xd8\xff",
    }
    for name, bytes_ in made.items():
        (folder / name).write_bytes(bytes_)
    good.unlink()
    (folder / "good.pt").unlink()
    return made


NAMES = ("empty.safetensors", "truncated.safetensors", "header.safetensors", "text.safetensors",
         "empty.pt", "truncated.pt", "pickle.pt", "empty.onnx", "text.onnx", "empty.pt2",
         "text.pt2", "picture.jpg", "missing.pt", "")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_model_file_is_one_line(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    bad_files(tmp_path)
    before = files(tmp_path)
    status, out, err = run("audit", tmp_path / name)
    assert status == 2
    assert out == ""
    assert one_line(err), err
    assert files(tmp_path) == before
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    "code",
    ["cli_zoo:missing", "cli_zo:net", "cli_zoo:raises", "cli_zoo:no_model", "cli_zoo:", ":x"],
)
def test_bad_code_is_one_line(run, code):
    status, out, err = run("audit", code)
    assert (status, out) == (2, "")
    assert one_line(err), err


@pytest.mark.parametrize("data", ["nothing", "wrong_shape", "dictionaries", "failing", "raises"])
@pytest.mark.parametrize("command", ["audit", "recalibrate", "insert"])
def test_bad_data_is_one_line_and_writes_nothing(run, tmp_path, command, data):
    out = tmp_path / "out.pt"
    words = {
        "audit": ("audit", "cli_zoo:net"),
        "recalibrate": ("recalibrate", "cli_zoo:net", "-o", out),
        "insert": ("insert", "cli_zoo:plain", "--after", "conv", "-o", out),
    }[command]
    status, _, err = run(*words, "--data", f"cli_zoo:{data}")
    assert status == 2
    assert one_line(err), err
    assert not files(tmp_path)


@pytest.mark.parametrize("command", ["audit", "recalibrate", "insert"])
def test_an_interrupted_run_writes_nothing(run, tmp_path, command):
    out = tmp_path / ("out.html" if command == "audit" else "out.pt")
    words = {
        "audit": ("audit", "cli_zoo:net", "--html", out),
        "recalibrate": ("recalibrate", "cli_zoo:net", "-o", out),
        "insert": ("insert", "cli_zoo:plain", "--after", "conv", "-o", out),
    }[command]
    status, _, err = run(*words, "--data", "cli_zoo:interrupted")
    assert status == 130
    assert one_line(err)
    assert not files(tmp_path)


def test_an_existing_file_is_kept(run, weights, tmp_path):
    before = weights.read_bytes()
    words = ("recalibrate", "cli_zoo:net", "--weights", weights, "--data", "cli_zoo:batches")
    status, _, err = run(*words, "-o", weights)
    assert status == 2
    assert "--overwrite" in err
    assert weights.read_bytes() == before
    assert run(*words, "-o", weights, "--overwrite")[0] == 0
    assert weights.read_bytes() != before
    assert run(*words, "-o", tmp_path / "weights.xyz")[0] == 2
    assert run(*words, "-o", tmp_path)[0] == 2


def test_debug_shows_where(run):
    _, _, err = run("audit", "cli_zoo:raises", "--debug")
    assert "Traceback" in err
    assert "no weights here" in err


def test_the_program_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "normkit.cli", "audit", "cli_zoo:plain"],
        capture_output=True, text=True, timeout=300, cwd=Path(cli_zoo.__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no norm" in done.stdout.lower()
