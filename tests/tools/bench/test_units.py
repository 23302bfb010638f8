"""The rows of the unit's benchmark, without a container."""

from __future__ import annotations

import sys

import pytest

from startup.node.machine.agent_units import SOURCE
from startup.node.setup.units import TEMPLATES
from tools.bench import units


@pytest.mark.parametrize("name", [name for name in units.CHANGES if name != "as it is"])
def test_each_row_is_another_unit(name: str) -> None:
    """The unit has each directive that a row takes out, and lacks those that a row adds."""
    text = (TEMPLATES / SOURCE).read_text(encoding="utf-8")
    without, added = units.CHANGES[name]
    own = {line.partition("=")[0] for line in units.changed(text, (), ()).splitlines()}
    left = {line.partition("=")[0] for line in units.changed(text, without, ()).splitlines()}
    assert own - left == set(without)
    assert not left & {directive.partition("=")[0] for directive in added}
    assert set(added) <= set(units.changed(text, without, added).splitlines())


def test_a_row_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["units", "--only", "PrivateTmp,nonsense"])
    with pytest.raises(SystemExit) as ended:
        units.main()
    assert ended.value.code == 2
    assert "no such row: nonsense; there are as it is, " in capsys.readouterr().err
