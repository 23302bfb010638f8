"""The campaign's bookkeeping, without a VM: what is kept, what is missing, what is written."""

from pathlib import Path

import pytest

from tests.vm import campaign
from tests.vm.campaign import SHAPES, Kept, Result
from tests.vm.rows import CONTAINER, QEMU


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "kept" / "some.jsonl")


ROW = next(row for row in CONTAINER if row.name == "drain")


def test_every_row_is_shown_on_one_fleet() -> None:
    shown = [row.name for shape in SHAPES for row in shape.rows]
    assert sorted(shown) == sorted(row.name for row in (*CONTAINER, *QEMU))


def test_what_was_made_is_not_made_again_and_what_failed_is(kept: Kept) -> None:
    assert kept.missing(ROW) == [0, 1, 2, 3, 4]
    kept.add(Result(row="drain", number=0, seconds=1))
    kept.add(Result(row="drain", number=1, seconds=1, error="agents doubled"))
    kept.add(Result(row="kills", number=2, seconds=1))
    again = Kept(kept.path)
    assert again.results == kept.results
    assert again.missing(ROW) == [1, 2, 3, 4]
    again.add(Result(row="drain", number=1, seconds=1))
    assert Kept(kept.path).missing(ROW) == [2, 3, 4]


def test_a_line_that_was_cut_is_a_round_that_was_not_made(kept: Kept) -> None:
    kept.add(Result(row="drain", number=0, seconds=1))
    kept.add(Result(row="drain", number=1, seconds=1))
    kept.path.write_bytes(kept.path.read_bytes()[:-9])
    again = Kept(kept.path)
    assert again.missing(ROW) == [1, 2, 3, 4]
    again.add(Result(row="drain", number=2, seconds=1))
    assert Kept(kept.path).missing(ROW) == [1, 3, 4]


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
        Result(row="drain", number=0, seconds=3, measured={"drained_s": 2.5}),
        Result(row="drain", number=1, seconds=5, measured={"drained_s": 4.5}),
        Result(row="drain", number=2, seconds=9, error="an answer took 21.0 s"),
    ]
    text = campaign.document(results, facts={"commit": "`abc`", "seed": "5"})
    assert "- commit: `abc`\n- seed: 5\n" in text
    line = "| a mass stop: drain (2000 agents, container) | 2 of 5 | 1 | 3, 4, 5 "
    assert f"{line}| drained_s 2.5, 3.5, 4.5 |" in text
    assert "- drain, round 2: an answer took 21.0 s\n" in text
    assert "| agents double: kills (600 agents, container) | 0 of 20 | 0 | - | - |" in text


def test_a_row_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        campaign.main(["--row", "nonsense"])
    assert ended.value.code == 2
    assert "no such row: nonsense; there are kills, " in capsys.readouterr().err
