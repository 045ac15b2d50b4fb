"""Compatibility of the unmodified heareval 2021.1.3 and hearvalidator with current packages.

Patches, each active only inside `hear_tools()` and undone after it:

| what breaks | why | what is done |
|---|---|---|
| `import tensorflow` | both tools only check whether a model is a `tf.Module` | a stub with that class |
| `torch.load` of its own checkpoints | since torch 2.6 only tensors are loaded; it saves classes too | an allow-list |
| event tasks (KeyError) | it sets `fit_loop.current_epoch`, removed in lightning 1.6 | a property that sets it |
| NVML device names | they are text now | not decoded again |
| `numpy.Inf` | removed in NumPy 2.0 | restored |
| labels such as `01`, `NA`, `true` (KeyError) | pandas parses them as numbers, missing, booleans | read as text |

In addition: `ResumableTrainer`, with which an interrupted task does not repeat its finished trainings. The tools set
seeds, environment variables and deterministic algorithms for the whole process; these too are as before afterwards.
"""

import importlib
import importlib.machinery
import importlib.util
import json
import logging
import pickle
import random
import sys
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from asda_core.errors import AsdaError
from asda_core.system.files import read_json, write_atomically, write_text
from asda_hear.evaluate.process_state import keep_process_state
from asda_hear.evaluate.task_checks import VOCABULARY_FILE

INSTALL = 'pip install ".[hear]" && pip install --no-deps heareval==2021.1.3 hearvalidator==2021.0.2'
"""Command to install the tools; heareval's version pins cannot be satisfied on Python 3.11."""
RESUME_FOLDER = "trainings"
READ_ERRORS = (
    OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""Exceptions from reading a missing, truncated or changed training file."""
CURRENT_EPOCH = property(
    lambda loop: loop.epoch_progress.current.completed,
    lambda loop, epoch: setattr(loop.epoch_progress.current, "completed", epoch),
)
"""Property that heareval expects on lightning's fit loop."""


class ToolMissing(AsdaError):
    """heareval, hearvalidator or one of their dependencies is not installed."""


@contextmanager
def hear_tools() -> Iterator[None]:
    """Context in which heareval and hearvalidator can be imported and run.

    Raises:
        ToolMissing: one is not installed; the message has the command that installs them.
    """
    numpy_inf = mock.patch.object(np, "Inf", np.inf, create=True)
    stub = _module_replaced("tensorflow", _tensorflow_stub())
    with keep_process_state(), warnings.catch_warnings(), stub, numpy_inf:
        warnings.simplefilter("ignore")  # their warnings are about their own code
        _import("hearvalidator")
        lightning = _import("pytorch_lightning")
        loop = importlib.import_module("pytorch_lightning.loops").FitLoop
        predictions = _import("heareval.predictions.task_predictions")
        memory = _import("heareval.gpu_max_mem")
        safe_classes: list[Any] = [torch.nn.Identity, torch.nn.BatchNorm1d, torch.optim.Adam]
        safe_classes += [torch.nn.init.xavier_uniform_, torch.nn.init.xavier_normal_]
        with (
            mock.patch.object(loop, "current_epoch", CURRENT_EPOCH, create=True),
            mock.patch.object(memory, "device_name", device_name),
            mock.patch.object(predictions, "pl", _with_trainer(lightning)),
            mock.patch.object(predictions, "label_vocab_nlabels", _vocabulary),
            torch.serialization.safe_globals(safe_classes),
            _errors_only("pytorch_lightning"),  # importing it has set its level
            _errors_only("lightning_fabric"),
        ):
            yield


@contextmanager
def temporary_handlers(name: str) -> Iterator[None]:
    """Remove on exit the handlers that heareval adds to a task's logger at every call.

    They would also write the lines of the next model on that task to the log of this one.
    """
    logger = logging.getLogger(name)
    existing = list(logger.handlers)
    try:
        yield
    finally:
        for handler in [added for added in logger.handlers if added not in existing]:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def _module_replaced(name: str, stub: types.ModuleType) -> Iterator[None]:
    """Temporarily replace a module by another; other modules that are imported meanwhile stay."""
    original = sys.modules.get(name)
    sys.modules[name] = stub
    try:
        yield
    finally:
        del sys.modules[name]
        if original is not None:
            sys.modules[name] = original


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Restrict a logger to errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def validate(arguments: Sequence[str]) -> None:
    """Run hear-validator's own entry point with these arguments.

    Raises:
        AsdaError: the given module does not exist.
    """
    with hear_tools():
        validator = importlib.import_module("hearvalidator.validate")
        with mock.patch.object(sys, "argv", ["hear-validator", *arguments]):
            try:
                validator.main()
            except ModuleNotFoundError as error:
                if error.name not in arguments:  # a failed import inside the module itself
                    raise
                raise AsdaError(f"module {error.name!r} cannot be imported; is its package installed?") from None


def device_name(index: int = 0) -> str:
    """Return the device name that heareval writes with its scores."""
    return str(torch.cuda.get_device_name(index)) if torch.cuda.is_available() else "cpu"


def has_hear_tools() -> bool:
    """Whether heareval and its dependencies can be found."""
    return all(
        importlib.util.find_spec(name) for name in ("heareval", "hearvalidator", "pytorch_lightning", "sed_eval")
    )


class TrainingCache:
    """The trainings of one task, saved so that an interrupted task resumes after the last finished one.

    heareval trains a task's grid points and folds one after the other, always in the same order, and draws from global
    random generators. After each training their state is saved with the result; when the task starts again, finished
    trainings are loaded and the state of the generators is restored.
    """

    current: "TrainingCache | None" = None

    def __init__(self, folder: Path, settings: dict[str, Any], on_training: Callable[[], None]) -> None:
        self.folder = folder / RESUME_FOLDER
        self.number = 0
        self.on_training = on_training
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp = self.folder / "settings.json"
        if read_json(stamp) != settings:
            for old in self.folder.glob("*.pt"):
                old.unlink()
            write_text(stamp, json.dumps(settings))

    def next_file(self) -> Path:
        """Return the file of the next training."""
        self.number += 1
        return self.folder / f"{self.number:04d}.pt"

    def __enter__(self) -> "TrainingCache":
        TrainingCache.current = self
        return self

    def __exit__(self, *error: object) -> None:
        TrainingCache.current = None


def _with_trainer(lightning: types.ModuleType) -> types.SimpleNamespace:
    """Return pytorch_lightning for heareval, with a trainer that can resume."""

    class ResumableTrainer(lightning.Trainer):  # type: ignore[name-defined, misc]
        """heareval's trainer without progress bars and timing report; it loads finished trainings."""

        def __init__(self, **settings: Any) -> None:
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "profiler": None}
            super().__init__(**{**settings, **quiet})

        def fit(self, model: Any, *loaders: Any) -> None:
            trainings = TrainingCache.current
            file = trainings.next_file() if trainings else None
            finished = _read_training(file) if file else None
            if finished is None:
                super().fit(model, *loaders)
                self._raise_if_interrupted()
                if file:
                    _save_training(file, self, model)
            else:
                _restore_training(finished, self, model)
            if trainings:
                trainings.on_training()

        def test(self, *arguments: Any, **settings: Any) -> Any:
            results = super().test(*arguments, **settings)
            self._raise_if_interrupted()
            return results

        def _raise_if_interrupted(self) -> None:
            """Raise on Ctrl-C, which lightning catches to continue with what was trained so far."""
            if self.interrupted:
                raise KeyboardInterrupt

    names = {name: getattr(lightning, name) for name in dir(lightning) if not name.startswith("__")}
    return types.SimpleNamespace(**{**names, "Trainer": ResumableTrainer})


def _vocabulary(folder: Path) -> tuple[Any, int]:
    """Return the numbers and labels of a task as heareval expects them, and the number of labels."""
    pandas = importlib.import_module("pandas")
    labels = pandas.read_csv(folder / VOCABULARY_FILE, dtype={"label": str}, keep_default_na=False)
    return labels, len(labels)


def _read_training(file: Path) -> dict[str, Any] | None:
    """Read a finished training; None, so that it is repeated, if it or its best model is missing or damaged."""
    try:
        training: dict[str, Any] = torch.load(file, weights_only=True)
        with zipfile.ZipFile(training["model_path"]) as archive:
            damaged = archive.testzip()
    except READ_ERRORS:
        return None
    return None if damaged else training


def _save_training(file: Path, trainer: Any, model: Any) -> None:
    callback = trainer.checkpoint_callback
    score = callback.best_model_score
    training = {
        "model_path": str(callback.best_model_path),
        "score": None if score is None else float(score),
        "postprocessing": dict(getattr(model, "epoch_best_postprocessing", {})),
        "generators": (torch.get_rng_state(), _plain(np.random.get_state()), random.getstate()),
    }
    write_atomically(file, lambda part: torch.save(training, part))


def _restore_training(training: dict[str, Any], trainer: Any, model: Any) -> None:
    trainer.strategy.connect(model)
    callback = trainer.checkpoint_callback
    callback.best_model_path = training["model_path"]
    callback.best_model_score = None if training["score"] is None else torch.tensor(training["score"])
    if hasattr(model, "epoch_best_postprocessing"):
        model.epoch_best_postprocessing.update(training["postprocessing"])
    torch_state, numpy_state, python_state = training["generators"]
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)


def _plain(state: Any) -> tuple[Any, ...]:
    """Return NumPy's generator state without arrays."""
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in state)


def _tensorflow_stub() -> types.ModuleType:
    """Return a stub of what both tools use of TensorFlow. It is used even if that is installed: heareval refuses to
    run if torch finds a GPU and TensorFlow does not."""
    stub = types.ModuleType("tensorflow")
    stub.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
    stub.__version__ = "2.0.0"  # type: ignore[attr-defined]
    stub.Module = type("Module", (), {})  # type: ignore[attr-defined]
    stub.test = types.SimpleNamespace(is_gpu_available=lambda **_: True)  # type: ignore[attr-defined]
    stub.config = types.SimpleNamespace(list_physical_devices=lambda *_: [])  # type: ignore[attr-defined]
    return stub


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ToolMissing(f"{name} cannot be imported: {error}. Install it with: {INSTALL}") from None
