"""A fine-tuning from a checkpoint to a figure: it learns, chooses, stops, goes on, and is not done twice."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import asda_core.finetune.loop as loop
import asda_core.finetune.running as running
from asda_core.catalog import Catalog
from asda_core.checkpoint import Checkpoint, read_checkpoint
from asda_core.errors import AsdaError, AudioError, ConfigError, TaskError, TrainingStopped
from asda_core.finetune.evaluation import Predictions, load_predictions
from asda_core.finetune.finetune_model import load_finetune_model
from asda_core.finetune.jobs import Job, prepare_job
from asda_core.finetune.running import finetune
from asda_core.finetune_config import FinetuneConfig
from asda_core.labelled.examples import Example, LabelledData
from asda_core.labelled.reading import read_labelled
from asda_core.labelled.source import SourceConfig
from asda_core.labelled.splits import Round, rounds
from asda_core.pretrain.step import check_finite
from asda_core.system.files import file_digest
from asda_core.weights.tensor_files import read_tensors
from tests.finetune.making import small_checkpoint, small_recipe, small_run, write_tones


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledData, Round]:
    source = SourceConfig(data=str(write_tones(tmp_path_factory.mktemp("tones") / "tones")))
    data = read_labelled(source, Path())
    return data, rounds(data, source)[0]


@pytest.fixture
def start(tmp_path: Path, catalog: Catalog) -> Checkpoint:
    return small_checkpoint(tmp_path / "start", catalog)


def job_of(tones: tuple[LabelledData, Round], start: Checkpoint, recipe: FinetuneConfig) -> Job:
    data, split = tones
    return Job(recipe, start, data, split, file_digest(start.file))


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder / name).tensors)


def tell_accuracies(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the evaluations during training find these accuracies, one after another; used up ones are removed."""
    real = loop.predict

    def told(*arguments: object) -> Predictions:
        predictions = real(*arguments)  # type: ignore[arg-type]
        scores = predictions.score(resamples=0)
        found = replace(scores, values={**scores.values, "accuracy": values.pop(0)})
        object.__setattr__(predictions, "score", lambda **_: found)
        return predictions

    monkeypatch.setattr(loop, "predict", told)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_it_learns(tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path) -> None:
    """Three tones are told apart, and the files say so: predictions, scores, weights agree with each other."""
    job = job_of(
        tones,
        start,
        small_recipe(steps=150, select="last", pooling="mean", optimizer={"peak_lr": 0.005, "warmup_steps": 10}),
    )
    result = finetune(job, tmp_path / "run", catalog, progress=False)
    assert finetune(job, tmp_path / "run", catalog, progress=False) == result
    assert result["scores"]["accuracy"] == 1.0
    assert sum(result["clips"].values()) == len(tones[0].examples)
    made = load_predictions(tmp_path / "run" / "predictions.npz")
    assert (made.probabilities.argmax(1) == made.targets.argmax(1)).mean() == result["scores"]["accuracy"]
    tuned = load_finetune_model(read_checkpoint(tmp_path / "run"), catalog)
    assert tuned.classifier.config.labels == ("tone0", "tone1", "tone2")
    for name in ("confusion.png", "per_class.csv", "scores.json", "recipe.yaml", "log.jsonl"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    assert not list((tmp_path / "run").glob("step-*"))


@pytest.mark.slow
def test_stopped_at_any_step_it_ends_the_same(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small_recipe(
        augment={"roll": True, "mixup": {"probability": 0.5}, "spec_augment": {"share": 0.2}, "noise": 0.1,
                 "time_shift": 3},
        drop_path=0.2, select="valid", evaluations=3, checkpoint_every=2, average_from_epoch=0,
    )  # fmt: skip
    job = job_of(tones, start, recipe)
    whole = finetune(job, tmp_path / "whole", catalog, progress=False)
    real = loop._train_step
    for stop_at in (1, 3, 5):
        folder = tmp_path / f"stopped{stop_at}"
        steps = []

        def dying(training: loop.Training, *rest: object, stop_at: int = stop_at, steps: list[int] = steps) -> object:
            if training.step == stop_at and not steps:
                steps.append(training.step)
                raise KeyboardInterrupt  # as a kill: nothing is saved at this point
            return real(training, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "_train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            finetune(job, folder, catalog, progress=False)
        again = finetune(job, folder, catalog, progress=False)
        assert steps == [stop_at]
        assert again["scores"] == whole["scores"]
        assert again["step"] == whole["step"]
        assert equal(weights(folder), weights(tmp_path / "whole"))
        assert equal(weights(folder, "last.safetensors"), weights(tmp_path / "whole", "last.safetensors"))


def test_a_signal_saves_and_goes_on(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(tones, start, small_recipe())
    whole = finetune(job, tmp_path / "whole", catalog, progress=False)
    real = loop._train_step

    def asked(training: loop.Training, *rest: object) -> object:
        values = real(training, *rest)  # type: ignore[arg-type]
        if training.step == 2:
            training.request_stop()
        return values

    monkeypatch.setattr(loop, "_train_step", asked)
    with pytest.raises(TrainingStopped, match="stopped after step 2 of 6"):
        finetune(job, tmp_path / "run", catalog, progress=False)
    monkeypatch.setattr(loop, "_train_step", real)
    assert finetune(job, tmp_path / "run", catalog, progress=False)["scores"] == whole["scores"]
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_audio_that_disappears_costs_no_update(
    start: Checkpoint, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = write_tones(tmp_path / "tones"), tmp_path / "away"
    source = SourceConfig(data=str(folder))
    data = read_labelled(source, Path())
    recipe = small_recipe(steps=12, select="last", data={"clip_seconds": 0.335, "batch_size": 4, "cache_mebibytes": 0})
    job = job_of((data, rounds(data, source)[0]), start, recipe)
    whole = finetune(job, tmp_path / "whole", catalog, progress=False)
    real = loop._train_step

    def loses(training: loop.Training, *rest: object) -> object:
        if training.step == 2:
            folder.rename(away)
        return real(training, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_train_step", loses)
    with pytest.raises(AudioError, match="none of the .* audio files is readable"):
        finetune(job, tmp_path / "run", catalog, progress=False)
    (saved,) = (tmp_path / "run").glob("step-*")
    assert 3 <= int(saved.name.removeprefix("step-")) < 12
    away.rename(folder)
    monkeypatch.setattr(loop, "_train_step", real)
    assert finetune(job, tmp_path / "run", catalog, progress=False)["scores"] == whole["scores"]
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_another_number_of_resamples_makes_intervals_again_and_trains_nothing(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(tones, start, small_recipe(steps=1))
    first = finetune(job, tmp_path / "run", catalog, progress=False)
    monkeypatch.setattr(loop, "_train_step", lambda *_: pytest.fail("trained again"))
    few = replace(job, recipe=replace(job.recipe, bootstrap=3))
    again = finetune(few, tmp_path / "run", catalog, progress=False)
    assert again["intervals"] != first["intervals"]
    changed = {"intervals": 0, "bootstrap": 0, "notes": 0}
    assert {**again, **changed} == {**json.loads(json.dumps(first)), **changed}
    told = [json.loads((tmp_path / "run" / name).read_text())["intervals"] for name in ("result.json", "scores.json")]
    assert told == [json.loads(json.dumps(again["intervals"]))] * 2
    file = tmp_path / "run" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intervals": {}}).replace('"bootstrap": 3', '"x": 3'))
    back = finetune(job, tmp_path / "run", catalog, progress=False)  # of a version that did not tell the number
    assert json.loads(json.dumps(back["intervals"])) == json.loads(json.dumps(first["intervals"]))
    assert sorted(back["notes"]) == sorted(first["notes"])


def test_what_is_done_is_not_done_again(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(tones, start, small_recipe(steps=1))
    first = finetune(job, tmp_path / "run", catalog, progress=False)
    monkeypatch.setattr(loop, "_train_step", lambda *_: pytest.fail("trained again"))
    assert finetune(job, tmp_path / "run", catalog, progress=False) == json.loads(json.dumps(first))


def test_a_folder_of_another_run_is_refused(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(training: loop.Training) -> None:
        loop._save(training)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_average", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(job_of(tones, start, small_recipe()), tmp_path / "run", catalog, progress=False)
    with pytest.raises(ConfigError, match="another recipe, data or start"):
        finetune(job_of(tones, start, small_recipe(pooling="mean")), tmp_path / "run", catalog, progress=False)


def test_the_best_weights_are_kept(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of evaluations 0.2, 0.9, 0.9, 0.1 the first best one is chosen; the last weights stay beside."""
    tell_accuracies(monkeypatch, [0.2, 0.9, 0.9, 0.1])
    kept: dict[int, dict[str, torch.Tensor]] = {}
    write = loop.write_model
    monkeypatch.setattr(loop, "write_model", lambda file, tensors, metadata: (
        kept.setdefault(len(kept), {name: t.clone() for name, t in tensors.items()}), write(file, tensors, metadata)
    ))  # fmt: skip
    result = finetune(
        job_of(tones, start, small_recipe(steps=4, evaluations=4)), tmp_path / "run", catalog, progress=False
    )
    assert (result["select"], result["step"], result["steps"]) == ("valid", 2, 4)
    assert equal(weights(tmp_path / "run"), kept[1])
    assert not equal(weights(tmp_path / "run", "last.safetensors"), kept[1])
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["valid_accuracy"] for line in logged] == [0.2, 0.9, 0.9, 0.1]


def test_early_stop(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell_accuracies(monkeypatch, [0.5, 0.4, 0.4, 0.9])
    recipe = small_recipe(steps=20, evaluations=20, patience=2)
    result = finetune(job_of(tones, start, recipe), tmp_path / "run", catalog, progress=False)
    assert (result["step"], result["steps"]) == (1, 3)


def test_the_average_of_the_ends_of_epochs(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}
    real = loop._average

    def watched(training: loop.Training) -> None:
        seen[training.step] = {name: p.detach().clone() for name, p in training.model.trained_parameters()}
        real(training)

    monkeypatch.setattr(loop, "_average", watched)
    _, split = tones
    batch = len(split.train) // 3
    recipe = small_recipe(
        steps=12, select="last", average_from_epoch=2, data={"clip_seconds": 0.335, "batch_size": batch}
    )
    finetune(job_of(tones, start, recipe), tmp_path / "run", catalog, progress=False)
    per_epoch = len(split.train) / batch
    ends = [
        step for step in range(1, 13) if int(step / per_epoch) > int((step - 1) / per_epoch) and step >= 2 * per_epoch
    ]
    assert len(ends) >= 2
    chosen = weights(tmp_path / "run")
    for name, value in seen[12].items():
        wanted = torch.stack([seen[step][name] for step in ends]).mean(0)
        torch.testing.assert_close(chosen[name], wanted)
        assert torch.equal(weights(tmp_path / "run", "last.safetensors")[name], value)


def test_validation_clips_are_held_out(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    data, split = tones
    bare = (data, replace(split, valid=()))
    job = prepare_job(job_of(bare, start, small_recipe(valid_share=0.25)))
    assert job.recipe.select == "valid"
    assert {example.labels[0] for example in job.split.valid} == set(data.classes)
    assert not set(job.split.valid) & set(job.split.train)
    assert set(job.split.valid) | set(job.split.train) == set(split.train)
    assert prepare_job(job_of(bare, start, small_recipe())).recipe.select == "last"
    with pytest.raises(ConfigError, match="valid_share"):
        prepare_job(job_of(bare, start, small_recipe(select="valid")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no train", "train split is empty"),
        ("no test", "test split is empty"),
        ("one class", "at least two classes"),
        ("unreadable", "none of the .* audio files is readable"),
    ],
)
def test_splits_that_cannot_be(
    change: str, message: str, tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    data, split = tones
    broken = {
        "no train": replace(split, train=()),
        "no test": replace(split, test=()),
        "one class": replace(split, train=tuple(e for e in split.train if e.labels == ("tone0",))),
        "unreadable": replace(split, train=tuple(Example(tmp_path / e.file.name, e.labels) for e in split.train)),
    }[change]  # fmt: skip
    with pytest.raises(AsdaError, match=message):
        finetune(job_of((data, broken), start, small_recipe()), tmp_path / "run", catalog, progress=False)


def test_a_clip_that_cannot_be_read_is_named_and_left_out(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    data, split = tones
    for number, part in enumerate(("train", "test")):
        bad = tmp_path / f"bad{number}.wav"
        bad.write_bytes(b"RIFF nothing")
        split = replace(split, **{part: (*getattr(split, part), Example(bad, ("tone1",)))})
    result = finetune(job_of((data, split), start, small_recipe()), tmp_path / "run", catalog, progress=False)
    assert {Path(file).name for file in result["skipped"]} == {"bad0.wav", "bad1.wav"}
    assert result["clips"]["test"] == len(split.test) - 1


def test_a_fold_without_a_class_and_a_test_of_one_class(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, split = tones
    split = replace(
        split,
        train=tuple(e for e in split.train if e.labels != ("tone2",)),
        valid=(),
        test=tuple(e for e in split.test if e.labels == ("tone1",)),
    )
    result = finetune(job_of((data, split), start, small_recipe()), tmp_path / "run", catalog, progress=False)
    told = capsys.readouterr().err
    assert "tone2" in told
    assert "only the class tone1" in told
    assert result["scores"]["AUC"] is None
    assert 0 <= result["scores"]["accuracy"] <= 1


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_good(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    recipe = small_recipe(optimizer={"peak_lr": 1e30, "warmup_steps": 0, "clip_norm": 0.0}, log_every=1)
    with pytest.raises(AsdaError, match="probabilities that are not finite"):
        finetune(job_of(tones, start, recipe), tmp_path / "run", catalog, progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_at_the_first_update_is_not_called_diverged(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "batch_loss", lambda recipe, output, labels: output.sum() * math.nan)
    with pytest.raises(AsdaError, match="loss is not finite at step 1 .*the cause is in the model or its input"):
        finetune(job_of(tones, start, small_recipe()), tmp_path / "run", catalog, progress=False)


def test_weights_that_the_first_update_spoiled_did_diverge(tmp_path: Path) -> None:
    with pytest.raises(AsdaError, match=r"head is no longer finite at step 1 .*lower optimizer.peak_lr"):
        check_finite({"loss": 1.0, "head": math.inf}, 1, tmp_path, updated=True)


def test_several_labels_need_binary_cross_entropy(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    data, split = tones
    several = replace(data, single=False)
    parts = [
        [Example(e.file, tuple({*e.labels, "tone0"})) for e in part] for part in (split.train, split.valid, split.test)
    ]
    split = Round("", *map(tuple, parts))
    with pytest.raises(ConfigError, match="binary_cross_entropy"):
        finetune(job_of((several, split), start, small_recipe()), tmp_path / "run", catalog, progress=False)
    recipe = small_recipe(loss="binary_cross_entropy")
    result = finetune(job_of((several, split), start, recipe), tmp_path / "run", catalog, progress=False)
    assert result["scores"]["accuracy"] is None
    assert 0 < result["scores"]["mAP"] <= 1
    made = load_predictions(tmp_path / "run" / "predictions.npz")
    assert not np.allclose(made.probabilities.sum(1), 1)


def test_weights_are_drawn_from_the_seed_without_a_checkpoint(
    tones: tuple[LabelledData, Round], catalog: Catalog, tmp_path: Path
) -> None:
    data, split = tones
    jobs = [Job(small_recipe(seed=seed, steps=1), small_run(), data, split) for seed in (1, 1, 2)]
    found = []
    for number, job in enumerate(jobs):
        finetune(job, tmp_path / str(number), catalog, progress=False)
        found.append(weights(tmp_path / str(number)))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_epochs_and_steps() -> None:
    with pytest.raises(ConfigError, match="either steps or epochs"):
        small_recipe(steps=3, epochs=2)
    with pytest.raises(ConfigError, match="either steps or epochs"):
        small_recipe(steps=0)
    assert math.isclose(small_recipe(epochs=0.5).epochs, 0.5)


def test_no_clip_can_be_heard(
    tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path
) -> None:
    data, split = tones
    split = replace(split, test=(Example(tmp_path / "gone.wav", ("tone0",)),))
    with pytest.raises(TaskError, match="none of the 1 clips"):
        finetune(job_of((data, split), start, small_recipe()), tmp_path / "run", catalog, progress=False)


def test_a_warm_up_that_never_ends_is_told(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small_recipe(steps=2, optimizer={"peak_lr": 0.01, "warmup_steps": 2})
    finetune(job_of(tones, start, recipe), tmp_path / "run", catalog, progress=False)
    assert "warmup_steps 2 is not less than the 2 updates" in capsys.readouterr().err


def test_weights_of_an_evaluation_that_a_kill_left_are_not_taken_for_another(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.4 after update 3 and 0.6 after 6, killed before 6 is saved; gone on with, rounding makes 0.4 of the second."""
    values: list[float] = []
    tell_accuracies(monkeypatch, values)
    job = job_of(tones, start, small_recipe(steps=9, evaluations=3, checkpoint_every=5))
    wanted: dict[str, torch.Tensor] = {}
    log = loop.Reporter.log

    def dying(reporter: loop.Reporter, step: int, record: dict[str, float]) -> None:
        if step == 3:
            wanted.update(weights(tmp_path / "run", "best-00000003.safetensors"))
        if step == 6 and not values:
            raise KeyboardInterrupt
        log(reporter, step, record)

    monkeypatch.setattr(loop.Reporter, "log", dying)
    values[:] = [0.4, 0.6]
    with pytest.raises(KeyboardInterrupt):
        finetune(job, tmp_path / "run", catalog, progress=False)
    values[:] = [0.4, 0.4]
    result = finetune(job, tmp_path / "run", catalog, progress=False)
    assert result["step"] == 3
    assert equal(weights(tmp_path / "run"), wanted)
    assert not list((tmp_path / "run").glob("best-*"))


def test_what_another_process_has_just_finished_is_not_done_again(
    tones: tuple[LabelledData, Round],
    start: Checkpoint,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(tones, start, small_recipe(steps=2))
    real = running.build_finetune_model

    def meanwhile(*arguments: object) -> object:
        monkeypatch.setattr(running, "build_finetune_model", real)
        finetune(job, tmp_path / "run", catalog, progress=False)  # the other process
        monkeypatch.setattr(running, "start_training", lambda *_: pytest.fail("trained again"))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "build_finetune_model", meanwhile)
    assert finetune(job, tmp_path / "run", catalog, progress=False)["steps"] == 2


@pytest.mark.parametrize("known", [True, False])
def test_the_best_weights_of_an_earlier_version(
    known: bool, tones: tuple[LabelledData, Round], start: Checkpoint, catalog: Catalog, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They had one name, and may be of an evaluation that a kill left: then the weights are chosen anew."""
    values = [0.9, 0.1, 0.5]
    tell_accuracies(monkeypatch, values)
    job, folder = job_of(tones, start, small_recipe(steps=9, evaluations=3, checkpoint_every=5)), tmp_path / "run"
    log = loop.Reporter.log

    def dying(reporter: loop.Reporter, step: int, record: dict[str, float]) -> None:
        log(reporter, step, record)
        if step == 6 and values:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Reporter, "log", dying)
    with pytest.raises(KeyboardInterrupt):
        finetune(job, folder, catalog, progress=False)
    best = folder / "best-00000003.safetensors"
    wanted = weights(folder, best.name)
    best.rename(folder / "best.safetensors")
    if not known:
        tensors, metadata = read_tensors(folder / "best.safetensors")
        loop.write_model(folder / "best.safetensors", tensors, {**metadata, "step": "6"})
    monkeypatch.setattr(loop.Reporter, "log", log)
    values[:] = [0.1, 0.5]
    assert finetune(job, folder, catalog, progress=False)["step"] == (3 if known else 9)
    assert equal(weights(folder), wanted) == known
    assert not list(folder.glob("best*"))
