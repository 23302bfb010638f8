"""The campaign's bookkeeping, without a VM: what is kept, what is missing, what is written."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import ClassVar, cast

import pytest

from tests.vm import campaign
from tests.vm.campaign import SHAPES, Kept, Result
from tests.vm.fleet import Fleet, Measured
from tests.vm.kernel_limits import pid_walls
from tests.vm.rows import CONTAINER, QEMU

ONE, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return _kept(tmp_path)


def _kept(folder: Path, commit: str = ONE, since: Sequence[str] = ()) -> Kept:
    return Kept(folder / "kept", seed=5, commit=commit, since=since)


ROW = next(row for row in CONTAINER if row.name == "drain")


def test_every_row_is_shown_on_one_fleet() -> None:
    shown = [row.name for shape in SHAPES for row in shape.rows]
    assert sorted(shown) == sorted(row.name for row in (*CONTAINER, *QEMU))


def test_who_leaves_strangers_in_the_registry_is_the_last_row() -> None:
    assert QEMU[-1].round is pid_walls


def test_what_was_made_is_not_made_again_and_what_failed_is(kept: Kept, tmp_path: Path) -> None:
    assert kept.missing(ROW) == [0, 1, 2, 3, 4]
    kept.add(Result(row="drain", number=0, seconds=1))
    kept.add(Result(row="drain", number=1, seconds=1, error="agents doubled"))
    kept.add(Result(row="kills", number=2, seconds=1))
    again = _kept(tmp_path)
    assert again.results == kept.results
    assert again.missing(ROW) == [1, 2, 3, 4]
    again.add(Result(row="drain", number=1, seconds=1))
    assert _kept(tmp_path).missing(ROW) == [2, 3, 4]


def test_a_line_that_was_cut_is_a_round_that_was_not_made(kept: Kept, tmp_path: Path) -> None:
    kept.add(Result(row="drain", number=0, seconds=1))
    kept.add(Result(row="drain", number=1, seconds=1))
    path = kept.path(ONE)
    path.write_bytes(path.read_bytes()[:-9])
    again = _kept(tmp_path)
    assert again.missing(ROW) == [1, 2, 3, 4]
    again.add(Result(row="drain", number=2, seconds=1))
    assert _kept(tmp_path).missing(ROW) == [1, 3, 4]


def test_what_was_found_at_another_commit_stands_where_it_is_named(
    kept: Kept, tmp_path: Path
) -> None:
    kept.add(Result(row="drain", number=0, seconds=1))
    assert _kept(tmp_path, OTHER).missing(ROW) == [0, 1, 2, 3, 4]
    later = _kept(tmp_path, OTHER, [ONE])
    assert later.missing(ROW) == [1, 2, 3, 4]
    later.add(Result(row="drain", number=1, seconds=1))
    assert kept.path(OTHER) != kept.path(ONE)
    found = _kept(tmp_path, OTHER, [ONE]).results
    assert [(each.number, each.commit) for each in found] == [(0, ONE[:12]), (1, OTHER[:12])]
    assert "| `1111111`, `2222222` | 2 of 5 | 0 |" in campaign.document(found, facts={})


def test_another_machine_goes_on_from_what_the_document_says(kept: Kept, tmp_path: Path) -> None:
    kept.add(Result(row="drain", number=0, seconds=1, measured={"drained_s": 2.5}))
    kept.add(Result(row="drain", number=1, seconds=1, error="an answer | took 21.0 s"))
    page = tmp_path / "CAMPAIGN.md"
    page.write_text(campaign.document(kept.results, facts={}))
    elsewhere = tmp_path / "elsewhere"
    again = Kept(elsewhere, seed=5, commit=ONE, published=page)
    assert again.results == kept.results
    assert again.missing(ROW) == [1, 2, 3, 4]
    again.add(Result(row="drain", number=1, seconds=1))
    page.write_text(campaign.document(again.results, facts={}))
    again.read()
    assert again.missing(ROW) == [2, 3, 4]
    assert len(again.results) == 3, "each of them once"
    for commit, seed in ((OTHER, 5), (ONE, 6)):
        assert Kept(elsewhere, seed=seed, commit=commit, published=page).results == []
    assert len(Kept(elsewhere, seed=5, commit=OTHER, since=[ONE], published=page).results) == 3


def test_rows_that_a_call_does_not_touch_stand_at_any_commit(tmp_path: Path) -> None:
    page = tmp_path / "CAMPAIGN.md"
    made = [
        Result(row=name, number=0, seconds=1, seed=5, commit=ONE) for name in ("drain", "kills")
    ]
    page.write_text(campaign.document(made, facts={}))
    kept = Kept(tmp_path / "kept", seed=5, commit=OTHER, untouched=["kills"], published=page)
    assert kept.results == made[1:]
    assert kept.missing(ROW) == [0, 1, 2, 3, 4]


def test_a_rounds_chance_is_the_seeds_the_rows_and_its_number() -> None:
    one = campaign.chance(5, ROW, 3).random()
    assert one == campaign.chance(5, ROW, 3).random()
    others = [
        campaign.chance(6, ROW, 3),
        campaign.chance(5, ROW, 4),
        campaign.chance(5, QEMU[0], 3),
    ]
    assert one not in [other.random() for other in others]


def test_the_document_says_what_was_found_and_what_failed() -> None:
    results = [
        Result(row="drain", number=0, commit=ONE, seconds=3, measured={"drained_s": 2.5}),
        Result(row="drain", number=1, commit=ONE, seconds=5, measured={"drained_s": 4.5}),
        Result(row="drain", number=2, commit=ONE, seconds=9, error="an answer took 21.0 s"),
    ]
    text = campaign.document(results, facts={"commit": "`abc`", "seed": "5"})
    assert "- commit: `abc`\n- seed: 5\n" in text
    line = "| a mass stop: drain (2000 agents, container) | `1111111` | 2 of 5 | 1 | 3, 4, 5 "
    assert f"{line}| drained_s 2.5, 3.5, 4.5 |" in text
    assert "- drain, round 2 at `1111111`: an answer took 21.0 s\n" in text
    assert "**Not whole yet**: kills, " in text
    assert "| agents double: kills (600 agents, container) | - | 0 of 20 | 0 | - | - |" in text


@pytest.mark.parametrize(
    ("processors", "order"),
    [
        (4, ["begin container", "begin qemu", "end container", "end qemu"]),
        (2, ["begin container", "end container", "begin qemu", "end qemu"]),
    ],
)
def test_guests_are_tried_beside_containers_where_there_are_processors_enough(
    monkeypatch: pytest.MonkeyPatch, processors: int, order: list[str]
) -> None:
    told: list[str] = []

    class Process:
        def __init__(self, line: Sequence[str], **_: object) -> None:
            assert [each for each in line if each.startswith("--minutes")] == ["--minutes=0.0"]
            self.driver = line[-1]
            told.append(f"begin {self.driver}")

        def wait(self) -> int:
            told.append(f"end {self.driver}")
            return int(self.driver == "container")

    monkeypatch.setattr("os.cpu_count", lambda: processors)
    monkeypatch.setattr("subprocess.Popen", Process)
    # One that broke keeps nobody from the other.
    assert campaign._each(["container", "qemu"], [], until=0) is False
    assert told == order


class Waiting:
    """A fleet on which nothing comes to an end."""

    told: ClassVar[list[str]] = []

    def __init__(self, folder: Path, environment: object, **named: object) -> None:
        self.patience = 600.0
        self.wanted: dict[str, int] = {}

    def carry_out(self, wanted: object) -> None: ...

    def last_lines(self) -> str:
        return ""

    def end(self) -> set[str]:
        self.told.append("ended")
        return set()


def _waits(fleet: Fleet, vm: str, chance: Random) -> Measured:
    try:
        time.sleep(60)
    finally:
        # As what a row undoes at its end.
        raise AssertionError("not undone")


def test_a_round_ends_when_the_minutes_are_over_and_is_missing(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "Fleet", Waiting)
    monkeypatch.setattr(campaign, "pulumi_environment", dict)
    shape = replace(SHAPES[-1], rows=[replace(ROW, round=_waits)])
    for seconds in (0.5, -1.0):
        with pytest.raises(campaign.OutOfTimeError):
            campaign._run(shape, kept, seed=5, only=set(), until=time.monotonic() + seconds)
    assert Waiting.told == ["ended"]
    assert kept.results == []


def test_a_round_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(campaign, "_ROUND_MINUTES", 1 / 60)
    monkeypatch.setattr(campaign, "KEPT", tmp_path)
    fleet = cast(Fleet, Waiting(tmp_path, {}))
    row, until = replace(ROW, round=_waits), time.monotonic() + 600
    found = campaign._round(fleet, row, 0, seed=5, until=until)
    assert found.error.startswith("takes longer than "), "whatever fails after that"
    assert fleet.patience == campaign._LAST_S


def test_a_row_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        campaign.main(["--row", "nonsense"])
    assert ended.value.code == 2
    assert "no such row: nonsense; there are kills, " in capsys.readouterr().err


def test_a_commit_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(campaign, "no_containers", str)
    with pytest.raises(SystemExit) as ended:
        campaign.main(["--since", "no-such-commit"])
    assert ended.value.code == 2
    assert "--since: " in capsys.readouterr().err
