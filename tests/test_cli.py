"""The command line: what it prints, and errors without tracebacks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prunus
from prunus import cli
from prunus.cli import terminal
from prunus.cli.init import RECIPE, TASK
from prunus.tasks import demo, digits, rows, sparse


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # noqa: ANN201
    """Run `prunus ...`; (exit code, output)."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["prunus", *map(str, words)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        for console, stream in ((terminal.console, sys.stdout), (terminal.notes, sys.stderr)):
            monkeypatch.setattr(console, "file", stream)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return run


def test_scan_shows_groups_and_what_is_fixed(call) -> None:  # noqa: ANN001
    code, out = call("scan", "prunus.tasks.demo:make")
    assert code == 0
    assert "DigitsCNN: 4 groups, 320 units" in out
    assert "block2.conv2.weight[0]" in out
    assert "an output of the model" in out


WRONG = {
    "no-colon": ("scan", "nets", "not of the form"),
    "no-module": ("scan", "no_such_module:make", "no module 'no_such_module'"),
    "no-attribute": ("scan", "prunus.tasks.demo:nothing", "has no 'nothing'"),
    "no-pair": ("scan", "prunus.tasks.demo:example", "expected (model, inputs)"),
    "no-task": ("run", "numbers", "expected one of digits"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_come_without_traceback(call, name: str) -> None:  # noqa: ANN001
    command, target, message = WRONG[name]
    code, out = call(command, target)
    assert code == 2
    assert message in " ".join(out.split())
    assert "Traceback" not in out


def test_run_digits_prints_every_row_and_saves(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    for name, value in {"EPOCHS": 1, "ROUND_EPOCHS": (1,)}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(rows, "REPEATS", 5)
    code, out = call("run", "digits", "--out", tmp_path)
    assert code == 0
    for row in ("dense", "random criterion", "smaller dense", "not recovered", "pruned, recovered"):
        assert row.split(", ")[0] in out
    loaded = prunus.load(tmp_path, digits.digits_cnn)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in digits.digits_cnn().parameters()) / 2


def test_run_digits_sparse_prints_every_row_and_saves(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    for name in ("EPOCHS", "GRADUAL_EPOCHS", "RECOVER_EPOCHS"):
        monkeypatch.setattr(sparse, name, 1)
    monkeypatch.setattr(rows, "REPEATS", 5)
    code, out = call("run", "digits-sparse", "--out", tmp_path)
    assert code == 0
    for row in ("dense", "random zeros", "one shot", "not recovered", "pruned, recovered", "no dense runtime faster"):
        assert row.split(", ")[0] in " ".join(out.split())
    loaded = prunus.load(tmp_path, digits.digits_cnn)
    weights = [p for p in loaded.parameters() if p.ndim > 1]
    assert sum(int(p.count_nonzero()) for p in weights) <= 0.1 * sum(p.numel() for p in weights)


def test_brackets_in_errors_are_no_markup(call, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    def missing(_target: str) -> None:
        raise prunus.errors.RecipeError("pip install 'prunus[demo]'")

    monkeypatch.setattr("prunus.cli.scan.made", missing)
    assert "'prunus[demo]'" in call("scan", "nets:make")[1]


def test_brackets_in_names_are_no_markup() -> None:
    from rich.console import Console
    from rich.tree import Tree

    from prunus.table import _branch, fixed_table

    class Fixed:
        fixed = {"a[red]": "because [bold] it is"}  # noqa: RUF012

    tree = Tree("root")
    _branch({"": tree}, "x[red]")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(fixed_table(Fixed()))
    console.print(tree)
    shown = console.export_text()
    assert all(text in shown for text in ("a[red]", "because [bold] it is", "x[red]"))


def prunus_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user calls it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunus.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `prunus init` and `prunus run recipe.yaml`."""
    folder = tmp_path_factory.mktemp("begun")
    for words in (("init",), ("run", "recipe.yaml")):
        done = prunus_in(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


def test_init_gives_a_recipe_that_runs(begun: Path) -> None:
    saved = begun / "runs" / "recipe"
    assert {"model.safetensors", "graph.json", "plan.json", "report.json", "recipe.json"} <= {
        p.name for p in saved.iterdir()
    }
    assert not (saved / ".run").exists()


def test_init_replaces_nothing_unasked(begun: Path) -> None:
    refused = prunus_in(begun, "init")
    assert refused.returncode == 2
    assert "stay as they are" in refused.stderr


def test_a_finished_run_is_not_done_again(begun: Path) -> None:
    done = prunus_in(begun, "run", "recipe.yaml", "--resume")
    assert done.returncode == 0
    assert "nothing is left to do" in done.stderr


def test_a_dry_run_shows_the_plan_and_writes_nothing(begun: Path) -> None:
    done = prunus_in(begun, "run", "recipe.yaml", "--dry-run", "--json", "--out", "dry")
    plan = json.loads(done.stdout)
    before, after = plan["costs"]["macs"]
    assert after <= 0.5 * before
    assert plan["kept"]["3"][0] == 64
    assert not (begun / "dry").exists()


def test_measure_and_export_what_was_saved(begun: Path) -> None:
    done = prunus_in(begun, "measure", "runs/recipe", "my_task:make", "--metrics", "params,macs", "--json")
    figures = {(m["subject"], m["metric"]): m["value"] for m in json.loads(done.stdout)}
    assert figures["model", "macs"] <= 0.5 * figures["against", "macs"]
    done = prunus_in(begun, "export", "runs/recipe", "--json")
    assert json.loads(done.stdout)["worst_error"] < 1e-4
    assert (begun / "runs" / "recipe" / "model.onnx").exists()


MEASURED_WRONG = {
    "null alone": (("measure", "runs/recipe", "--null"), "name a second model"),
    "neither": (("measure", "nowhere"), "neither a saved directory nor"),
    "numbers": (("measure", "runs/recipe", "--batch", "one"), "expected whole numbers separated by commas"),
}


@pytest.mark.parametrize("name", MEASURED_WRONG)
def test_wrong_words_of_measure_are_explained(begun: Path, name: str) -> None:
    words, message = MEASURED_WRONG[name]
    done = prunus_in(begun, *words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_make_is_called_once_for_two_models_of_its_class(begun: Path) -> None:
    (begun / "counted.py").write_text("import my_task\ndef make():\n    print('made')\n    return my_task.make()\n")
    done = prunus_in(begun, "measure", "runs/recipe", "counted:make", "--metrics", "params")
    assert done.stdout.count("made") == 1


def test_a_dry_run_looks_up_every_name(begun: Path) -> None:
    (begun / "wrong.yaml").write_text(RECIPE.replace("my_task:correct", "my_task:corect"))
    done = prunus_in(begun, "run", "wrong.yaml", "--dry-run")
    assert done.returncode == 2
    assert "Did you mean 'correct'" in " ".join(done.stderr.split())


def test_scan_as_json(begun: Path) -> None:
    done = json.loads(prunus_in(begun, "scan", "my_task:make", "--json").stdout)
    assert [(g["name"], g["size"]) for g in done["groups"]] == [("0", 32), ("3", 64)]
    assert done["fixed"]["8.weight[0]"] == "an output of the model"


@pytest.mark.parametrize("moment", [1, 3])
def test_a_killed_run_ends_with_the_same_files(begun: Path, moment: int) -> None:
    """Killed once so many files of the run are finished; `benchmarks/kill.py` kills at random moments."""
    out = begun / f"killed-{moment}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunus.cli", "run", "recipe.yaml", "--out", str(out)]
    process = subprocess.Popen(
        command, cwd=begun, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len([p for p in (out / ".run").glob("*") if p.suffix != ".part"]) < moment:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert (out / ".run").exists()
    refused = prunus_in(begun, "run", "recipe.yaml", "--out", str(out))
    assert (refused.returncode, "--resume" in refused.stderr) == (2, True)
    assert prunus_in(begun, "run", "recipe.yaml", "--out", str(out), "--resume").returncode == 0
    assert contents(out) == contents(begun / "runs" / "recipe")


OWN = """
def recover(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for i in torch.randperm(512)[:64].split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(TRAIN[0][i]), TRAIN[1][i]).backward()
        optimizer.step()
    print("trained")
"""


def test_a_recovery_of_ones_own_resumes_to_the_same_files_and_json_is_clean(tmp_path: Path) -> None:
    recipe = RECIPE.replace("recover: {epochs: 3, lr: 0.001} ", "recover: my_task:recover").replace("validate:", "# v:")
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "my_task.py").write_text(TASK + OWN)
    whole = prunus_in(tmp_path, "run", "recipe.yaml", "--out", "whole", "--json")
    assert json.loads(whole.stdout)["kind"] == "result"
    assert "trained" in whole.stderr
    kept, began = tmp_path / "killed" / ".run", tmp_path / "began"
    kept.mkdir(parents=True)
    assert prunus_in(tmp_path, "run", "recipe.yaml", "--out", str(began)).returncode == 0
    # a run that was killed after its first round: as `prune` leaves it
    killed = prunus_in(tmp_path, "run", "recipe.yaml", "--out", "killed", "--resume")
    assert killed.returncode == 0, killed.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") == contents(began)


def test_a_stopped_run_of_another_recipe_is_not_gone_on_with(begun: Path) -> None:
    kept = begun / "other" / ".run"
    kept.mkdir(parents=True)
    (kept / "recipe.json").write_text((begun / "runs" / "recipe" / "recipe.json").read_text())
    refused = prunus_in(begun, "run", "recipe.yaml", "--out", "other", "--resume", "--seed", "7")
    assert refused.returncode == 2
    assert "stopped run of another recipe: seed differ" in refused.stderr


def test_a_folder_that_cannot_be_made_is_named_at_once(begun: Path) -> None:
    (begun / "file").write_text("")
    refused = prunus_in(begun, "run", "recipe.yaml", "--out", "file/out")
    assert refused.returncode == 2
    assert "cannot hold a run" in refused.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those with timings, and the exported one that another test adds."""
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ("report.json", "report.html", "model.onnx")
    }


def test_ctrl_c_says_how_to_go_on(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr("prunus.cli.run.prune_by", stopped)
    code, out = call("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert code == 130
    assert f"--out {tmp_path / 'out'} --resume" in " ".join(out.split())


def test_an_error_of_the_users_code_is_short_and_whole_with_debug(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "my_task.py").write_text(TASK.replace("return model, TRAIN[0][:16]", "return model, TRAIN[9]"))
    short = prunus_in(tmp_path, "run", "recipe.yaml")
    assert short.returncode == 1
    assert "IndexError: tuple index out of range (in make, " in " ".join(short.stderr.split())
    assert "Traceback" not in short.stderr
    assert "Traceback" in prunus_in(tmp_path, "--debug", "run", "recipe.yaml").stderr
