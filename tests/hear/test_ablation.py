"""Plans, cells, rows and tables. The runs through heareval are in `test_end_to_end.py`."""

import contextlib
import errno
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

from asda_core import config_io
from asda_core.audio_files.sources import find_audio
from asda_core.catalog import Catalog
from asda_core.config import PluginChoice, RunConfig
from asda_core.config_io import load_run_config, parse
from asda_core.errors import AsdaError, AudioError, ConfigError, PluginError
from asda_core.pretrain.loop import pretrain
from asda_core.statistics import mean_interval
from asda_core.system.workers import Shard, WorkerResults
from asda_hear.ablation import estimate, jobs, run
from asda_hear.ablation.cells import PlanSetup, Unit
from asda_hear.ablation.plan import labels_text, load_plan
from asda_hear.ablation.run import check_plan, prepare
from asda_hear.cli import main
from asda_hear.evaluate.task_checks import find_tasks
from asda_hear.reporting.report import plan_command
from tests.conftest import TINY


def plan_file(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "tasks" / "a-v1-full").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "a-v1-full" / "task_metadata.json").write_text('{"task_name": "a"}')
    plan = {
        "base": "base.yaml",
        "tasks": {"folder": "tasks"},
        "seeds": [0, 1],
        "axes": {"lambda": {"0.1": {}, "0.3": {"encoder.mixer.options.lambda_init": 0.3}}, "steps": [0, 2]},
        **changes,
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


def test_grid(tmp_path: Path) -> None:
    plan = load_plan(plan_file(tmp_path))
    assert len(plan.cells) == 2 * 2 * 2
    assert len({cell.name for cell in plan.cells}) == 8
    cell = plan.cells[-1]
    assert cell.labels == {"lambda": "0.3", "steps": "2"}
    assert (cell.seed, cell.config.seed, cell.config.steps) == (1, 1, 2)
    assert cell.config.encoder.mixer.options == {"lambda_init": 0.3}
    assert cell.config.encoder.dim == TINY["encoder"]["dim"]  # type: ignore[index]


def test_names_depend_on_config_and_data(tmp_path: Path, audio_folder: Path) -> None:
    without = {cell.name for cell in load_plan(plan_file(tmp_path / "a")).cells}
    assert {cell.name for cell in load_plan(plan_file(tmp_path / "b", set={"log_every": 3})).cells} == without
    trained = {cell.name for cell in load_plan(plan_file(tmp_path / "c", data=[str(audio_folder)])).cells}
    assert len(trained & without) == 4  # cells of no steps do not depend on the data


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"axis": {}}, ConfigError, "unknown config key 'axis'. Did you mean 'axes'"),
        ({"axes": {"encoder.dimm": [8]}}, ConfigError, "cell encoder.dimm 8: unknown config key 'dimm'"),
        ({"axes": {"steps": 3}}, ConfigError, "axis 'steps' must be a list"),
        ({"axes": {}}, ConfigError, "at least one axis"),
        ({"axes": {"task": {"a": {}}}}, ConfigError, "an axis cannot be named 'task'"),
        ({"seeds": [0, 0]}, ConfigError, "must differ"),
        ({"data": ["nowhere"]}, AudioError, "no folder, manifest or audio file"),
        ({"evaluation": {"grid": "fastest"}}, ConfigError, "evaluation.grid"),
    ],
)
def test_wrong_plans(tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_plan(plan_file(tmp_path, **changes))


def test_a_missing_plugin_shows_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="unknown mixer 'standrad'. Did you mean 'standard'"):
        prepare(load_plan(plan_file(tmp_path, axes={"encoder.mixer": ["standrad"]})), tmp_path / "out")


def test_positions_of_the_class_token_are_refused(tmp_path: Path) -> None:
    plan = load_plan(plan_file(tmp_path, axes={"encoder.class_token.position": ["first", "last"]}))
    with pytest.raises(ConfigError, match="are the same model"):
        prepare(plan, tmp_path / "out")


@pytest.mark.heareval
def test_dry_run(
    tmp_path: Path, audio_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are measured; evaluations only where there are few clips, or some are done."""
    monkeypatch.setattr(estimate, "PILOT_CLIPS", -1)
    plan = plan_file(tmp_path, data=[str(audio_folder)])
    assert main(["ablate", str(plan), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("  to do  ") == 8
    assert (
        "8 cells x 1 task; 8 different trainings, 8 to do; 8 of 8 trainings and baselines remain to be run "
        "or evaluated." in printed
    )
    assert "evaluation: not measured yet" in printed
    assert not (tmp_path / "out").exists()


def test_an_error_in_looking_for_what_is_done_fails_one_unit(
    tmp_path: Path, audio_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_file(tmp_path, data=[str(audio_folder)], axes={"steps": [1, 2, 3]}, seeds=[0])
    setup = prepare(load_plan(plan), tmp_path / "out", progress=False)
    broken, *others = setup.units()
    done: list[Unit] = []

    def is_done(setup: PlanSetup, unit: Unit) -> bool:
        if unit.folder == broken.folder:
            raise OSError(errno.EIO, "Input/output error", "model.safetensors")
        return False

    monkeypatch.setattr(run, "is_done", is_done)
    monkeypatch.setattr(run, "run_unit", lambda setup, unit: done.append(unit))
    monkeypatch.setattr(run, "write_all_rows", lambda setup: [])
    with pytest.raises(run.CellsFailed, match="1 of 3 trainings and baselines failed.* Input/output error"):
        run.run_plan(replace(setup, tasks={}))
    assert [unit.folder for unit in done] == [unit.folder for unit in others]


@pytest.mark.parametrize(("evaluation", "expected"), [(None, "50 min"), (3200.0, "1 h 00 min")])
def test_more_jobs_than_trainings_save_no_time(
    tmp_path: Path,
    audio_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    evaluation: float | None,
    expected: str,
) -> None:
    """Two trainings of 1,000 s and 3,000 s: at best as long as the longer, and evaluations are shared by two."""
    plan = plan_file(tmp_path, data=[str(audio_folder)], axes={"steps": [10, 30]}, seeds=[0], budget={"hours": 0.5})
    measure = estimate.estimate_remaining
    monkeypatch.setattr(estimate, "PILOT_CLIPS", -1)
    monkeypatch.setattr(estimate, "_step_seconds", lambda *_: 100.0)
    monkeypatch.setattr(estimate, "estimate_remaining", lambda *given: replace(measure(*given), evaluation=evaluation))
    assert main(["ablate", str(plan), "--out", str(tmp_path / "out"), "--dry-run", "--jobs", "8"]) == 0
    printed = capsys.readouterr().out
    assert f" in one process, {expected} with --jobs 8." in printed
    assert "this exceeds the budget of 0.5 hours." in printed


@pytest.mark.parametrize("linked", [False, True])
def test_tables_of_another_plan_are_kept(tmp_path: Path, linked: bool) -> None:
    """Also where `--out` lies behind a link to a folder at another depth, as of a larger disk."""
    (tmp_path / "disk" / "deep" / "results").mkdir(parents=True)
    results = tmp_path / "results" if linked else tmp_path / "disk" / "deep" / "results"
    if linked:
        results.symlink_to(tmp_path / "disk" / "deep" / "results")
    first, second = (load_plan(plan_file(tmp_path / name, axes={"steps": [0]}, seeds=[0])) for name in ("one", "two"))
    run.prepare_folders(replace(prepare(first, results / "plan"), tasks={}))  # without heareval
    prepare(first, results / "plan")
    with pytest.raises(ConfigError, match=r"holds the tables of .*one/plan\.yaml, which those of .*two/plan\.yaml"):
        prepare(second, results / "plan")


def test_mean_interval_is_students() -> None:
    values = [0.61, 0.65, 0.58, 0.7]
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    estimate = mean_interval(values)
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx((low, high))
    assert str(mean_interval([0.5])) == "0.500"
    assert str(mean_interval([0.5, 0.5])) == "0.500 ± 0.000"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"begins": {"x": {"init": [3]}}}}, r"cell begins x: init must name a checkpoint, not \[3\]"),
        ({"axes": {"a": {1: {}, "1": {}}}}, "axis 'a' has the label '1' twice"),
        ({"axes": {"steps": [1, 1]}}, "axis 'steps' has the label '1' twice"),
        ({"axes": {"steps": [1], "b": {"x": {"steps": 2}}}}, "the axes 'b' and 'steps' both set steps"),
        (
            {"axes": {"a": {"x": {"encoder.mixer": {"name": "standard"}}}, "encoder.mixer": ["differential"]}},
            "the axes 'a' and 'encoder.mixer' both set encoder.mixer",
        ),
        (
            {
                "axes": {
                    "a": {"x": {"encoder.mixer": {"name": "differential", "options": {"lambda_init": 0.3}}}},
                    "encoder.mixer.options.lambda_init": [0.1, 0.2],
                }
            },
            "both set encoder.mixer.options.lambda_init",
        ),
        (
            {"axes": {"a": {"x": {"optimizer": {"peak_lr": 0.1}}}, "b": {"y": {"optimizer.peak_lr": 0.2}}}},
            "the axes 'a' and 'b' both set optimizer.peak_lr",
        ),
        ({"axes": {"a": {"x": {"optimizer": {"peak_lr": 0.1}, "optimizer.peak_lr": 1}}}}, "peak_lr is set twice"),
        ({"axes": {"options.window_seconds": [1, 1.0]}}, "the labels '1' and '1.0' of the axis"),
        ({"axes": {"encoder.mixer": [{}]}}, "encoder.mixer"),
        ({"axes": {"optimizer.peak_lr": ["1e-3", 0.001, 0.01]}}, "the labels '1e-3' and '0.001' of the axis"),
        ({"axes": {"log_every": [1, 2], "steps": [0, 2]}}, r"make the same cells: what they set \(log_every\)"),
        ({"axes": {"a": {"x": {}, "y": {"steps": 6}}}}, "the labels 'x' and 'y' of the axis 'a' make the same cells"),
        ({"set": {"steps": 2}, "budget": {"steps": 3}}, "set.steps 2 and budget.steps 3 differ"),
        ({"seeds": [True]}, "expected int, got the boolean True"),
        ({"axes": {"a": {"x": {"seed": 2}}}}, "seeds are given by `seeds`"),
        ({"baselines": {"": "log_mel"}}, "a baseline cannot be named ''"),
        ({"baselines": {"../x": "log_mel"}}, "a baseline cannot be named '../x'"),
        ({"axes": {"layer": {"x": {}}}}, "an axis cannot be named 'layer'"),
        ({"axes": {"fold": {"x": {}}}}, "an axis cannot be named 'fold'"),
    ],
)
def test_strange_plans(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    file = plan_file(tmp_path)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message):
        load_plan(file)


def test_training_needs_audio(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cell lambda 0.1, steps 2: training needs audio; give data"):
        prepare(load_plan(plan_file(tmp_path)), tmp_path / "out")


def test_references(tmp_path: Path) -> None:
    assert load_plan(plan_file(tmp_path)).reference == {"lambda": "0.1", "steps": "0"}
    assert load_plan(plan_file(tmp_path, reference={"steps": 2})).reference == {"lambda": "0.1", "steps": "2"}
    given = {"reference": "log-mel", "baselines": {"log-mel": "log_mel"}}
    assert load_plan(plan_file(tmp_path, **given)).reference == "log-mel"
    for wrong, message in (
        ({"lamda": 0.1}, "unknown axis 'lamda'. Did you mean 'lambda'"),
        ({"lambda": 0.2}, "unknown label of the axis lambda '0.2'"),
        ("log-mel", "unknown reference baseline 'log-mel'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_plan(plan_file(tmp_path, reference=wrong))


@pytest.mark.heareval
def test_axes_of_options_and_of_what_cells_begin_with(tmp_path: Path, catalog: Catalog, audio_folder: Path) -> None:
    """Options are no part of a training; the checkpoint that a cell begins with is."""
    pretrain(parse(RunConfig, {**TINY, "steps": 0}), sorted(audio_folder.iterdir()), tmp_path / "first", catalog)
    axes = {
        "begins": {"random": {}, "first": {"init": "first"}},
        "options.scene_pooling": ["mean", "summary"],
    }
    plan = load_plan(plan_file(tmp_path, axes=axes, seeds=[0], data=[str(audio_folder)]))
    check_plan(plan, catalog)
    first_mean, first_summary, random_mean, random_summary = plan.cells
    assert random_mean.name == random_summary.name != first_mean.name == first_summary.name
    assert [cell.options for cell in plan.cells] == 2 * [{}, {"scene_pooling": "summary"}]  # a default asks for nothing
    assert (random_mean.init, first_mean.init) == (None, tmp_path / "first" / "model.safetensors")
    units = prepare(plan, tmp_path / "out", catalog=catalog).units()
    assert [len(unit.cells) for unit in units] == [2, 2]
    with pytest.raises(ConfigError, match=r"cell options.scene_poolin mean: .*Did you mean 'scene_pooling'"):
        check_plan(load_plan(plan_file(tmp_path, axes={"options.scene_poolin": ["mean"]})), catalog)


@pytest.mark.heareval
def test_the_first_seed_of_all_comes_before_a_second(tmp_path: Path, audio_folder: Path) -> None:
    given = plan_file(tmp_path, baselines={"log-mel": "log_mel"}, data=[str(audio_folder)])
    units = prepare(load_plan(given), tmp_path / "out").units()
    assert units[0].baseline == "log-mel"
    assert [unit.cells[0].seed for unit in units[1:]] == [0] * 4 + [1] * 4
    labels = [labels_text(unit.cells[0].labels) for unit in units[1:]]
    assert labels[:4] == labels[4:]


def test_the_base_of_a_plan_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; a file beside the plan goes first, and what is neither is told."""
    plan = plan_file(tmp_path, base="asda_tiny", axes={"steps": [0]})
    for folder in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(folder)
        assert load_plan(plan).cells[0].config.encoder.dim == load_run_config("asda_tiny").encoder.dim
    plan_file(tmp_path, base="asda_tyni", axes={"steps": [0]})
    with pytest.raises(ConfigError, match="no file at asda_tyni: unknown config 'asda_tyni'. Did you mean 'asda_tiny'"):
        load_plan(plan)


@pytest.mark.heareval
def test_shards_are_not_by_label(tmp_path: Path, audio_folder: Path) -> None:
    """Whatever the numbers of combinations and shards: the seeds of every label are in several, and shards are even."""
    for labels, shards in ((1, 2), (2, 2), (3, 2), (3, 3), (4, 2), (4, 4), (5, 3)):
        axes = {"optimizer.peak_lr": [0.001 * (1 + number) for number in range(labels)]}
        given = plan_file(tmp_path, axes=axes, seeds=list(range(6)), data=[str(audio_folder)])
        work = prepare(load_plan(given), tmp_path / "out")
        homes: dict[str, set[int]] = {}
        sizes = []
        for index in range(1, shards + 1):
            units = work.units(Shard(index, shards))
            sizes.append(len(units))
            for unit in units:
                homes.setdefault(labels_text(unit.cells[0].labels), set()).add(index)
        assert [len(home) for home in homes.values()] == [shards] * labels
        assert max(sizes) - min(sizes) <= 1


def test_plans_of_adapters(tmp_path: Path, catalog: Catalog, audio_folder: Path) -> None:
    """They need weights to begin with, which must fit every cell and name it; said before anything runs."""
    axes = {"adapter": {"none": {}, "bottleneck": {"adapter": "bottleneck"}}}
    with pytest.raises(ConfigError, match=r"cell adapter bottleneck: the adapter 'bottleneck' needs .*: give init"):
        check_plan(load_plan(plan_file(tmp_path, axes=axes)), catalog)
    files = sorted(audio_folder.iterdir())
    names = []
    for seed in (0, 1):
        run = parse(RunConfig, {**TINY, "steps": 0, "seed": seed})
        pretrain(run, files, tmp_path / f"first{seed}", catalog, progress=False)
        plan = load_plan(plan_file(tmp_path, axes=axes, init=f"first{seed}"))
        check_plan(plan, catalog)
        names += [cell.name for cell in plan.cells]
    assert len(set(names)) == len(names) == 8
    wider = {"width": {"48": {"encoder.dim": 48}}}
    with pytest.raises(ConfigError, match=r"cell width 48: .*encoder.dim 48, not 32"):
        check_plan(load_plan(plan_file(tmp_path, axes=wider, init="first0")), catalog)


def test_find_tasks(tmp_path: Path) -> None:
    plan_file(tmp_path)
    (tmp_path / "tasks" / "README.txt").write_text("heareval itself would stumble over this")
    assert [task.name for task in find_tasks(tmp_path / "tasks")] == ["a-v1-full"]
    assert find_tasks(tmp_path / "tasks", ["a"]) == find_tasks(tmp_path / "tasks", ["a-v1-full"])
    assert find_tasks(tmp_path / "tasks", ["a", "a-v1-full", "a"]) == find_tasks(tmp_path / "tasks")  # once
    for folder, names, message in (("tasks", ["b"], "unknown task 'b'"), ("none", [], "no folder of HEAR tasks")):
        with pytest.raises(AsdaError, match=message):
            find_tasks(tmp_path / folder, names)
    (tmp_path / "tasks" / "a-v1-5h").mkdir()
    (tmp_path / "tasks" / "a-v1-5h" / "task_metadata.json").write_text('{"task_name": "a"}')
    with pytest.raises(AsdaError, match="'a' is ambiguous: a-v1-5h, a-v1-full"):
        find_tasks(tmp_path / "tasks", ["a"])


def test_every_front_end_goes_into_a_plan(tmp_path: Path, catalog: Catalog) -> None:
    """Plans are checked without memory for weights, which tables of a front end are not made of."""
    axes = {"front_end": [offer.spec.name for offer in catalog.family_offers("front end")]}
    plan = load_plan(plan_file(tmp_path, axes=axes))
    assert len(plan.cells) >= 4
    check_plan(plan, catalog)


def test_a_plan_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plan_file(tmp_path / "ablations")
    monkeypatch.setattr(config_io, "CONFIG_FOLDERS", (tmp_path,))
    assert load_plan(Path("ablations/plan")).cells == load_plan(file).cells
    with pytest.raises(ConfigError, match="no file at ablations/plam: .*Did you mean 'ablations/plan'"):
        load_plan(Path("ablations/plam"))


def test_paths_of_a_plan_by_its_name(tmp_path: Path, audio_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that lead out of the package are relative to the current folder, in other processes too."""
    configs, here, commands = tmp_path / "package" / "configs", tmp_path / "here", list[list[str]]()
    configs.mkdir(parents=True)
    noise = {"audio": ["../../sounds"], "clips": 1}
    paths = {"base": "../base.yaml", "data": ["../../sounds"], "tasks": {"folder": "../../results/tasks"}}
    file = plan_file(configs / "ablations", **paths, noise_attention=noise)
    (file.parent / "base.yaml").rename(configs / "base.yaml")
    (here / "results").mkdir(parents=True)
    (file.parent / "tasks").rename(here / "results" / "tasks")
    shutil.copytree(audio_folder, here / "sounds")
    monkeypatch.setattr(config_io, "CONFIG_FOLDERS", (configs,))
    monkeypatch.chdir(here)
    plan = load_plan(Path("ablations/plan"))
    assert plan.audio == tuple(find_audio(here / "sounds"))
    assert plan.noise is not None
    assert plan.noise.files == plan.audio
    setup = prepare(plan, Path("results/plan"))
    assert plan_command(setup) == "asda-hear ablate ablations/plan"
    monkeypatch.setattr(jobs, "run_workers", lambda given, *more: commands.extend(given) or WorkerResults([], []))
    monkeypatch.setattr(run, "hear_tools", contextlib.nullcontext)
    jobs.run_jobs(setup, 1, Shard())
    assert commands[0][2] == "ablations/plan"
    with pytest.raises(AudioError, match="no folder, manifest or audio file"):
        load_plan(file)  # a file: its paths are relative to it


def test_the_switch_in_a_plan(tmp_path: Path) -> None:
    """`compat` on an axis moves the keys that it decides, in the cells of that label alone."""
    (tmp_path / "base.yaml").write_text("steps: 0\n")
    plan = {"base": "base.yaml", "tasks": {"folder": "tasks"}, "axes": {"compat": ["default", "released"]}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    default, released = load_plan(tmp_path / "plan.yaml").cells
    assert default.config.data.padding == "silence"
    assert (released.config.data.padding, released.config.optimizer.algorithm) == ("features", "fairseq_adam")


def test_axes_that_set_a_plugin_and_its_options(tmp_path: Path) -> None:
    """Whichever axis stands first, and beside `set`: both count."""
    mixers = {name: {"encoder.mixer": name} for name in ("differential", "differential_v1")}
    lambdas = {text: {"encoder.mixer.options.lambda_init": float(text)} for text in ("0.1", "0.5")}
    for axes in ({"lambda": lambdas, "mixer": mixers}, {"mixer": mixers, "lambda": lambdas}):
        cells = load_plan(plan_file(tmp_path, axes=axes)).cells
        found = {(cell.labels["mixer"], cell.labels["lambda"]): cell.config.encoder.mixer for cell in cells}
        assert len({cell.name for cell in cells}) == len(cells)
        for (mixer, text), choice in found.items():
            assert choice == PluginChoice(mixer, {"lambda_init": float(text)})
    plan = plan_file(tmp_path, axes={"mixer": mixers}, set={"encoder": {"num_heads": 2}, **lambdas["0.5"]})
    runs = [cell.config.encoder for cell in load_plan(plan).cells]
    assert {run.num_heads for run in runs} == {2}
    assert {run.dim for run in runs} == {TINY["encoder"]["dim"]}
    assert {run.mixer.options["lambda_init"] for run in runs} == {0.5}


def test_labels_go_before_what_is_set_in_every_cell(tmp_path: Path) -> None:
    """However deep their keys are; what a label does not say is as it is set."""
    mixers = {
        "a": {"encoder.mixer": {"name": "differential", "options": {"lambda_init": 0.3}}},
        "b": {"encoder.mixer": {"name": "differential", "options": {"qkv_bias": False}}},
    }
    given = plan_file(tmp_path, axes={"mixer": mixers}, set={"encoder.mixer.options.lambda_init": 0.1}, seeds=[0])
    first, second = (cell.config.encoder.mixer.options for cell in load_plan(given).cells)
    assert first == {"lambda_init": 0.3}
    assert second == {"qkv_bias": False, "lambda_init": 0.1}


def test_truth_values_as_labels(tmp_path: Path) -> None:
    given = plan_file(tmp_path, axes={"encoder.input_norm": [True, False]}, reference={"encoder.input_norm": False})
    plan = load_plan(given)
    assert {cell.labels["encoder.input_norm"] for cell in plan.cells} == {"true", "false"}
    assert plan.reference == {"encoder.input_norm": "false"}


def test_other_audio_of_the_same_names_and_sizes_is_another_cell(tmp_path: Path, audio_folder: Path) -> None:
    given = plan_file(tmp_path, data=[str(audio_folder)])
    before = {cell.labels["steps"]: cell.name for cell in load_plan(given).cells}
    assert {cell.labels["steps"]: cell.name for cell in load_plan(given).cells} == before
    file = audio_folder / "sound0.wav"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    after = {cell.labels["steps"]: cell.name for cell in load_plan(given).cells}
    assert after["0"] == before["0"], "it learns from nothing"
    assert after["2"] != before["2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"options.layers": [[0], [9]]}}, r"cell options.layers \[9\]: layers must be"),
        ({"axes": {"options.timestamp_hop_ms": [40, 7]}}, "cell options.timestamp_hop_ms 7: .*does not divide"),
        ({"axes": {"options.window_seconds": [0]}}, "window_seconds must be positive"),
        ({"options": {"weights": "teacher"}, "set": {"objective": "altered_frames"}}, "_frames' has no teacher"),
        ({"options": {"weights": "teacher"}}, "steps 0: options.weights teacher: a model without training steps"),
    ],
)
def test_options_are_tried_before_anything_is_trained(
    tmp_path: Path, catalog: Catalog, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_plan(load_plan(plan_file(tmp_path, **changes)), catalog)


def options_of(folder: Path, axes: dict[str, object], **more: object) -> list[dict[str, object]]:
    """Of the mixer, in each cell, by their labels."""
    cells = load_plan(plan_file(folder, axes=axes, **more)).cells
    return [dict(cell.config.encoder.mixer.options) for cell in sorted(cells, key=lambda cell: [*cell.labels.values()])]


def test_groups_of_keys_do_not_undo_each_other(tmp_path: Path) -> None:
    """Axes, labels and `set` are laid together value by value, however they are nested."""
    axes = {
        "rate": {"low": {"optimizer": {"peak_lr": 0.001}}, "high": {"optimizer": {"peak_lr": 0.01}}},
        "warm": {"usual": {}, "long": {"optimizer": {"warmup_steps": 7}}},
    }
    given = plan_file(tmp_path / "a", axes=axes, seeds=[0], set={"optimizer": {"peak_lr": 0.5, "floor_lr": 1e-5}})
    for cell in load_plan(given).cells:
        assert cell.config.optimizer.peak_lr == {"low": 0.001, "high": 0.01}[cell.labels["rate"]]
        assert cell.config.optimizer.warmup_steps == {"usual": 2, "long": 7}[cell.labels["warm"]]
        assert cell.config.optimizer.floor_lr == 1e-5
    named = {
        label: {"encoder.mixer": {"name": "differential", "options": {"lambda_init": value}}}
        for label, value in (("a", 0.1), ("b", 0.2))
    }
    learned = {"fixed": {}, "learned": {"encoder.mixer.options": {"lambda_learned": True}}}
    assert options_of(tmp_path / "b", {"lambda": named, "kind": learned}, seeds=[0]) == [
        {"lambda_init": 0.1}, {"lambda_init": 0.2},
        {"lambda_init": 0.1, "lambda_learned": True}, {"lambda_init": 0.2, "lambda_learned": True},
    ]  # fmt: skip
    of_all = {"encoder.mixer.options": {"lambda_init": 0.3, "qkv_bias": True}}
    assert options_of(tmp_path / "c", {"lambda": named}, seeds=[0], set=of_all) == [
        {"lambda_init": 0.1, "qkv_bias": True}, {"lambda_init": 0.2, "qkv_bias": True},
    ]  # fmt: skip


def test_another_plugin_does_not_get_the_options_of_the_usual_one(tmp_path: Path) -> None:
    usual = {"encoder.mixer": {"name": "differential", "options": {"lambda_init": 0.3}}}
    mixers = {"usual": {}, "plain": {"encoder.mixer": "standard"}}
    assert options_of(tmp_path, {"mixer": mixers}, seeds=[0], set=usual) == [{}, {"lambda_init": 0.3}]
