"""HEAR's columns to the letter, and aggregates by hand."""

import csv
import math
from pathlib import Path

import pytest

from asda_hear.evaluate.leaderboard import (
    HEAR_COLUMNS,
    aggregates,
    hear_column,
    leaderboard_row,
    version_notes,
    write_leaderboard,
)

HEADER = (
    "Model,URL,Submission Date,Beehive,Beijing Opera,CREMA-D,DCASE 2016,ESC-50,FSD50K,GTZAN Genre,"
    "GTZAN Music/Speech,Gunshot,Libricount,Maestro 5h,Mridangam Stroke,Mridangam Tonic,NSynth Pitch 50h,"
    "NSynth Pitch 5h,Speech commands 5h,Speech commands full,Vocal Imitation,VoxLingua107 top 10"
)
FOLDERS = {
    "beehive_states_fold0-v2-full": "Beehive",
    "beehive_states_fold1-v2-full": "Beehive",
    "beijing_opera-v1.0-hear2021-full": "Beijing Opera",
    "tfds_crema_d-1.0.0-full": "CREMA-D",
    "dcase2016_task2-hear2021-full": "DCASE 2016",
    "esc50-v2.0.0-full": "ESC-50",
    "fsd50k-v1.0-full": "FSD50K",
    "tfds_gtzan-1.0.0-full": "GTZAN Genre",
    "tfds_gtzan_music_speech-1.0.0-full": "GTZAN Music/Speech",
    "gunshot_triangulation-v1.0-full": "Gunshot",
    "libricount-v1.0.0-hear2021-full": "Libricount",
    "maestro-v3.0.0-5h": "Maestro 5h",
    "mridangam_stroke-v1.5-full": "Mridangam Stroke",
    "mridangam_tonic-v1.5-full": "Mridangam Tonic",
    "nsynth_pitch-v2.2.3-50h": "NSynth Pitch 50h",
    "nsynth_pitch-v2.2.3-5h": "NSynth Pitch 5h",
    "speech_commands-v0.0.2-5h": "Speech commands 5h",
    "speech_commands-v0.0.2-full": "Speech commands full",
    "vocal_imitation-v1.1.3-full": "Vocal Imitation",
    "vox_lingua_top10-hear2021-full": "VoxLingua107 top 10",
}


def test_every_task_has_its_column() -> None:
    assert {folder: hear_column(folder) for folder in FOLDERS} == FOLDERS
    assert list(dict.fromkeys(FOLDERS.values())) == list(HEAR_COLUMNS) == HEADER.split(",")[3:]
    assert hear_column("esc50-v9.9-full") == "ESC-50"
    for other in ("esc10-v1.0.0-full", "esc50-v2.0.0-small", "speech_commands-v0.0.2-50h", "esc50"):
        assert hear_column(other) is None


def test_published_numbers_are_possible() -> None:
    for column in HEAR_COLUMNS.values():
        assert 0 < column.mean < column.best <= 1
        assert 0 < column.deviation < 0.5
    assert sum(column.naive is not None for column in HEAR_COLUMNS.values()) == 11  # "HEAR-11"


def test_the_header_to_the_letter_and_empty_where_not_run(tmp_path: Path) -> None:
    scores = {
        "beehive_states_fold0-v2-full": 0.896,
        "beehive_states_fold1-v2-full": 0.644,
        "esc50-v2.0.0-full": 0.75,
        "esc10-v1.0.0-full": 0.9,
        "fsd50k-v1.0-full": math.nan,
    }
    row = leaderboard_row("ours, tiny", "https://example.org", "2026-11-21", scores)
    write_leaderboard([row], tmp_path / "leaderboard.csv")
    lines = (tmp_path / "leaderboard.csv").read_text().splitlines()
    assert lines[0] == HEADER
    assert lines[1] == '"ours, tiny",https://example.org,2026-11-21,0.77,,,,0.75' + "," * 14
    read = next(csv.DictReader(lines))
    assert {name for name, value in read.items() if value} == {"Model", "URL", "Submission Date", "Beehive", "ESC-50"}


def test_half_of_beehive_is_not_beehive() -> None:
    half = {"beehive_states_fold0-v2-full": 0.9}
    assert leaderboard_row("m", "u", "d", half)["Beehive"] == ""
    assert aggregates(half) == {"mean": 0.9}


def test_versions_of_one_task_are_not_averaged() -> None:
    """Beehive, whose column is two tasks, needs one version of each."""
    esc = {"esc50-v1.0.0-full": 0.6, "esc50-v2.0.0-full": 0.8}
    assert leaderboard_row("m", "u", "d", esc)["ESC-50"] == ""
    assert aggregates(esc) == {"mean": pytest.approx(0.7)}
    (note,) = version_notes([*esc, *esc, "speech_commands-v0.0.2-5h", "speech_commands-v0.0.2-full", "a-v1", "a-v2"])
    assert note.startswith("esc50-v1.0.0-full, esc50-v2.0.0-full are versions of one task")
    assert "column ESC-50 is empty" in note
    bees = {"beehive_states_fold0-v2-full": 0.9, "beehive_states_fold1-v2-full": 0.7}
    assert version_notes(bees) == []
    assert leaderboard_row("m", "u", "d", {**bees, "beehive_states_fold1-v3-full": 0.1})["Beehive"] == ""


def test_aggregates_by_hand() -> None:
    """ESC-50: naive 0.286, best 0.9665, mean 0.6226 and deviation 0.2258; FSD50K: 0.132, 0.6548, 0.3625, 0.1582."""
    found = aggregates({"esc50-v2.0.0-full": 0.7, "fsd50k-v1.0-full": 0.1})
    assert found == pytest.approx(
        {
            "mean": 0.4,
            "share of the best": (0.7 / 0.9665 + 0.1 / 0.6548) / 2,
            "s(m)": 100 * ((0.7 - 0.286) / (0.9665 - 0.286) + 0) / 2,
            "z": ((0.7 - 0.6226) / 0.2258 - 1) / 2,
        }
    )
    assert aggregates({"esc50-v2.0.0-full": 1.0})["s(m)"] > 100  # not clipped above
    assert aggregates({"esc50-v2.0.0-full": 1.0})["z"] == 1
    assert aggregates({}) == {}


def test_own_naive_and_best_come_first() -> None:
    scores = {"esc50-v2.0.0-full": 0.6, "mine-v1-full": 0.5}
    found = aggregates(scores, {"esc50-v2.0.0-full": 0.2, "mine-v1-full": 0.3}, {"mine-v1-full": 0.8})
    assert found == pytest.approx(
        {
            "mean": 0.55,
            "share of the best": (0.6 / 0.9665 + 0.5 / 0.8) / 2,
            "s(m)": 100 * (0.4 / 0.7665 + 0.2 / 0.5) / 2,
        }
    )


def test_beehive_counts_once() -> None:
    scores = {"beehive_states_fold0-v2-full": 0.6, "beehive_states_fold1-v2-full": 0.8, "esc50-v2.0.0-full": 0.5}
    assert aggregates(scores)["mean"] == pytest.approx((0.7 + 0.5) / 2)
    assert aggregates(scores)["share of the best"] == pytest.approx((0.7 / 0.878 + 0.5 / 0.9665) / 2)
    assert "s(m)" not in aggregates(scores)  # HEAR publishes no mel baseline for it
    naive = dict.fromkeys(scores, 0.3)
    assert aggregates(scores, naive)["s(m)"] == pytest.approx(100 * (0.4 / 0.578 + 0.2 / 0.6665) / 2)


def test_what_is_missing_is_left_out() -> None:
    assert aggregates({"mine-v1-full": 0.5}) == {"mean": 0.5}
    assert set(aggregates({"tfds_gtzan-1.0.0-full": 0.5})) == {"mean", "share of the best", "z"}
    assert aggregates({"esc50-v2.0.0-full": math.nan}) == {}


def test_a_baseline_that_is_the_best() -> None:
    """The mel baseline beats the whole leaderboard on Beijing Opera: below it 0, above it s(m) has no scale."""
    assert aggregates({"beijing_opera-v1.0-hear2021-full": 0.95})["s(m)"] == 0
    assert "s(m)" not in aggregates({"beijing_opera-v1.0-hear2021-full": 0.99})
