"""The kinds of YAML files that commands take, told apart by their keys."""

from collections.abc import Mapping
from typing import Any, Literal

from asda_core.errors import ConfigError

Kind = Literal["config", "recipe", "plan"]

KEYS: Mapping[Kind, frozenset[str]] = {
    "config": frozenset({"encoder", "objective"}),
    "recipe": frozenset({"epochs", "evaluations", "head_rate", "loss", "mode", "pooling"}),
    "plan": frozenset({"axes", "base"}),
}
"""Kind -> keys that no other kind has."""
USES: Mapping[Kind, str] = {
    "config": "asda pretrain {0} trains its model, asda finetune --checkpoint {0} one with random weights",
    "recipe": "asda finetune {0} uses it",
    "plan": "asda-hear ablate {0} --dry-run shows its cells",
}


def require_kind(content: Any, wanted: Kind, file: object) -> None:
    """Refuse a file whose keys are those of another kind only.

    Args:
        content: what the file holds, as plain data; anything but a mapping is left to others.
        wanted: what the file should be.
        file: its path or name, for the message.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(content, Mapping) or KEYS[wanted] & content.keys():
        return
    for kind, keys in KEYS.items():
        if keys & content.keys():
            raise ConfigError(f"{file} is a {kind}, not a {wanted}: {USES[kind].format(file)}.")
