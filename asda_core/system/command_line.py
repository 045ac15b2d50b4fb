"""Programs with subcommands, of which only the requested one is imported: torch alone takes seconds."""

import argparse
import codecs
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from asda_core import __version__
from asda_core.errors import AsdaError, TrainingStopped, error_message

ESCAPE = "asda.escape"
"""Name of the error handler of stdout."""
EXIT_ERROR = 1
EXIT_STOPPED = 130
"""What a shell reports for a program that Ctrl-C ended."""


def import_function(reference: str) -> Callable[..., Any]:
    """Import the function that "module:function" names."""
    module, _, name = reference.partition(":")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return imported


def output_folder(text: str) -> Path:
    """Return the path of a folder to write to, as an argparse type; it need not exist.

    Raises:
        AsdaError: the name is empty, or the path is a file or a broken link, or lies within one.
    """
    if not text:
        raise AsdaError("the name of the output folder is empty.")
    path = Path(text)
    existing = next((parent for parent in (path, *path.parents) if os.path.lexists(parent)), path)
    if existing.is_symlink() and not existing.exists():
        raise AsdaError(f"{existing} is a broken link to {os.readlink(existing)}; expected an output folder.")
    if existing.exists() and not existing.is_dir():
        raise AsdaError(f"{existing} is a file; expected an output folder.")
    return path


@dataclass(frozen=True)
class Command:
    """A subcommand of a program.

    Attributes:
        name: as it is typed.
        adder: "module:function" that adds the arguments to the command's parser, and as the default of `run` the
            "module:function" that receives them parsed. The first module should import fast: help needs no more.
        help: one line.
    """

    name: str
    adder: str
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Import `adder` and apply it to a parser."""
        import_function(self.adder)(parser)


@dataclass(frozen=True)
class Program:
    """A program, such as `asda`.

    Attributes:
        name: as it is typed.
        description: one line above the list of commands.
        commands: in the order of that list.
    """

    name: str
    description: str
    commands: Sequence[Command]

    def parser(self, arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
        """Return the parser for these arguments, or with None for those of all commands."""
        parser = argparse.ArgumentParser(prog=self.name, description=self.description)
        parser.add_argument("--version", action="version", version=f"{self.name} {__version__}")
        subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
        requested = None if arguments is None else next((word for word in arguments if not word.startswith("-")), "")
        for command in self.commands:
            subparser = subparsers.add_parser(command.name, help=command.help)
            if requested in (None, command.name):
                command.add_arguments(subparser)
        return parser

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Parse the arguments, run the command, report a user's error in one line on stderr; return the exit status.

        Args:
            arguments: by default those of this process.
        """
        argv = list(sys.argv[1:] if arguments is None else arguments)
        _open_closed_streams()
        _print_any_text()
        try:
            parsed = self.parser(argv).parse_args(argv)
            _reject_empty(argv)
            parsed.given = argv  # passed on to worker processes too
            with _interrupts_deferred():
                run = import_function(parsed.run)
            run(parsed)
        except TrainingStopped as stopped:
            print(stopped, file=sys.stderr)
            return EXIT_STOPPED
        except BrokenPipeError:  # the reader of the output, such as `head`, has exited
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_ERROR
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            print(f"error: {error_message(error)}{where}", file=sys.stderr)
            return EXIT_ERROR
        except AsdaError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "stopped; run the same command again to resume.", file=sys.stderr)
            return EXIT_STOPPED
        return 0


def _open_closed_streams() -> None:
    """Discard output to a stdout or stderr that the shell has closed (`2>&-`), so that nothing else breaks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _print_any_text() -> None:
    """Let stdout and stderr take every text: file names may be any bytes, and a terminal may take ASCII alone."""
    codecs.register_error(ESCAPE, _escape)
    for stream, errors in ((sys.stdout, ESCAPE), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler of a codec: bytes of a file name as they are, other characters with a backslash."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Defer Ctrl-C until the modules are imported: some swallow it. A second one takes effect at once.

    If SIGINT has another handler, or is ignored as in a background process of a script, it is left as it is.
    """
    before, caught = signal.getsignal(signal.SIGINT), []
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def defer(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


@contextmanager
def interrupts_enabled() -> Iterator[None]:
    """Let Ctrl-C interrupt the block, or the decorated function, also where SIGINT is inherited as ignored.

    A script does that to its background processes. Commands that train are stopped with the signal all the same, since
    they resume.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _reject_empty(arguments: Sequence[str]) -> None:
    """Reject empty arguments: `--data "$AUDIO"` with AUDIO not set would otherwise mean the current folder.

    Raises:
        AsdaError: naming the option.
    """
    option = ""
    for argument in arguments:
        if not argument.strip():
            raise AsdaError(f"an argument of {option or 'the command'} is empty; is a variable not set?")
        option = argument if argument.startswith("--") else option
