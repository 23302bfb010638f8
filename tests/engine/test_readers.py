"""The two readers of a stack file: Pulumi's, and the check before it. No value is two things."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.config_parse import parse_fleet
from components.config_reader import ConfigError
from components.stack_file import StackValues, is_source_of, parse, read
from tests.components.fleet import SEED_FILE
from tests.components.test_accepted import rendered, vm_accepts
from tests.components.test_stack_file import AMBIGUOUS
from tests.engine.project import Project

pytestmark = pytest.mark.engine

# The same to both, or refused as a top-level value only: of every kind one, and its neighbours.
SCALARS = (
    *("0", "-1", "16", "123456789012345", "0.5", "1.0", "1.50", "-1.5", "123456789.123456"),
    *("true", "True", "TRUE", "false", "False", "yes", "no", "on", "off", "y", "N"),
    *(
        "~",
        "null",
        "Null",
        "NULL",
        "",
        "nULL",
        "1.18.0",
        "10.10.0.2",
        "1:30",
        "1:30:00",
        "12e",
        "0x",
    ),
    *(
        "0b102",
        "0o8",
        "0x1g",
        "_1",
        "1,000",
        "=",
        "+",
        ".",
        "...",
        ".e1",
        "-a",
        "<<",
        "a#b",
        "a:b",
    ),
    *("2026-99-99", "2026-2-30", "2026-13-01", "20261129", "12:00:00", "us-central1-a"),
    *("''", '""', "'020'", '"2026-11-29"', '"1_0"', "'null'", "'true'", "'~'", "'<<'", "'5'"),
    *(
        '"\\t"',
        '"\\u2028"',
        '"\\x7f"',
        '"\\u0085"',
        '"\\U0001F600"',
        '"a\\nb"',
        "' a '",
        "é",
        "'#'",
    ),
    *(
        "|\n      two\n      lines\n",
        ">-\n      two\n      lines",
        "two\n      lines",
        "'two\n\n      lines'",
    ),
    *(
        "'[1]'",
        "'{}'",
        "'null'",
        "'[1'",
        "[]",
        "{}",
        "[1, [020]]",
        "{a: 1_0}",
        "{'1': x}",
        "[a: b]",
    ),
    *("[a, *x0]", "{<<: {a: 1, b: 1}, a: 2}", "{<<: [{a: 1}, {a: 2, b: 2}]}", "{'<<': {a: 1}}"),
)
# What Pulumi does not read at all, so that one of them would end the test: here it is refused.
UNREADABLE = (".inf", "-.INF", "+.inf", ".nan", ".NaN")


@pytest.fixture
def project(tmp_path: Path, pulumi_env: dict[str, str]) -> Project:
    return Project(folder=tmp_path / "fleet", environment=pulumi_env)


def drawn(count: int) -> list[str]:
    """Texts in the letters of numbers and dates, always the same."""
    draw = random.Random(16)
    letters = "0011234567899__..--++eExXoObBT:Z"
    return [
        draw.choice("0123456789.+")
        + "".join(draw.choices(letters, k=draw.randrange(12))).rstrip(":")
        for _ in range(count)
    ]


def test_every_scalar_is_the_same_to_both_or_refused_by_its_text(project: Project) -> None:
    """As a top-level value, in a map and in a list; all of them in one question to the engine."""
    scalars = [
        *SCALARS,
        *(text for text in AMBIGUOUS if text not in UNREADABLE and "!!" not in text),
    ]
    lines = ["config:", "  x:x0: &x0 1"]
    for at, text in enumerate([*scalars, *drawn(500)]):
        lines += [f"  pilot-fleet:top{at}: {text}"]
        if "\n" not in text:
            lines += [f"  pilot-fleet:map{at}:", f"    v: {text}", "    l:", f"    - {text}"]
    project.write("\n".join(lines) + "\n")
    answer = project.pulumi("config", "--json", "-s", project.stack)
    assert answer.code == 0, answer.text
    theirs, _ = json.JSONDecoder().raw_decode(answer.text, answer.text.index("{\n"))
    ours = read(project.stack_file.read_text(), "Pulumi.x.yaml")
    refused = {problem.path for problem in ours.problems}

    def same(mine: Any, engines: Any, path: str) -> bool:
        """Whether they are the same, but for what is refused."""
        if path in refused:
            return True
        if isinstance(mine, dict) and isinstance(engines, dict):
            return mine.keys() == engines.keys() and all(
                same(mine[key], engines[key], f"{path}.{key}") for key in mine
            )
        if isinstance(mine, list) and isinstance(engines, list) and len(mine) == len(engines):
            pairs = enumerate(zip(mine, engines, strict=True))
            return all(same(a, b, f"{path}[{at}]") for at, (a, b) in pairs)
        return type(mine) is type(engines) and mine == engines

    mine = {key: value for key, value in ours.values.items() if key.startswith("pilot-fleet:")}
    assert len(mine) > 1000
    third = {
        key: (value, theirs[key])
        for key, value in mine.items()
        if not same(value, theirs[key].get("objectValue", theirs[key].get("value")), key)
    }
    assert third == {}
    # So each may be what the engine has made of the file.
    engine = {key: each["value"] for key, each in theirs.items() if key in mine}
    strange = {
        key: (ours.ambiguous.get(key, value), engine[key])
        for key, value in mine.items()
        if not is_source_of(
            StackValues(values={key: value}, problems=ours.problems, ambiguous=ours.ambiguous),
            engine,
        )
    }
    assert strange == {}
    # Some of each verdict, or nothing is compared.
    assert len(mine) / 10 < len(refused) < len(mine)


def test_plain_pulumi_refuses_what_it_has_read_as_another_value(project: Project) -> None:
    """Without the check before it: the engine has 16 where the file has 020, and says nothing."""
    text = SEED_FILE.read_text().replace(
        "encryptionsalt",
        "  pilot-fleet:window: 020\n  pilot-fleet:basePort: 012_000\nencryptionsalt",
    )
    project.write(text)
    answer = project.preview(policies=False).no_traceback()
    assert answer.code != 0
    assert "the stack's configuration has 2 problems" in answer.text
    assert "pilot-fleet:window: 020 reads in more than one way" in answer.text
    assert "pilot-fleet:basePort: 012_000 reads in more than one way" in answer.text


def test_a_file_beside_the_one_that_is_named_is_not_judged(project: Project) -> None:
    text = SEED_FILE.read_text()
    project.write(text.replace("encryptionsalt", "  pilot-fleet:window: 020\nencryptionsalt"))
    other = project.folder / "other.yaml"
    other.write_text(text.replace("encryptionsalt", "  pilot-fleet:window: 20\nencryptionsalt"))
    answer = project.preview(f"--config-file={other}", policies=False).no_traceback()
    assert answer.code == 0, answer.text
    assert project.preview(policies=False).code != 0
    # Nor is one that nobody can read.
    project.stack_file.unlink()
    project.stack_file.mkdir()
    answer = project.preview(f"--config-file={other}", policies=False).no_traceback()
    assert answer.code == 0, answer.text
    assert f"{project.stack_file.name}: cannot be read (Is a directory)" in answer.text


# Says much of what a stack file can, in few words: a changed one is often a fleet still.
FLEET = """\
config:
  gcp:project: project-1
  pilot-fleet:zone: us-central1-a
  pilot-fleet:release: {version: 1.18.0, daemon: bin/daemon, rendezvous: bin/rendezvous}
  pilot-fleet:rendezvous: {name: rendezvous, machineType: n2-standard-4, diskGb: 20}
  pilot-fleet:swarm:
    - {name: swarm-1, machineType: e2-standard-16, agents: 3000}
    - {name: swarm-2, machineType: e2-standard-8, agents: 1500, env: {GOGC: "50", A: b}}
  pilot-fleet:agentMb: 10
  pilot-fleet:reserveMb: 3000
  pilot-fleet:basePort: 10000
  pilot-fleet:window: 15
  pilot-fleet:nat: false
  pilot-fleet:bucket: bucket-1
  pilot-fleet:subnetCidr: 10.10.0.0/20
  pilot-fleet:registryRanges: [10.0.0.0/8]
  pilot-fleet:roll: {batch: 500, watchSeconds: 60, auto: true}
  pilot-fleet:endpoints: {storage: https://s.example.com}
"""
SALT = yaml.safe_load(SEED_FILE.read_text())["encryptionsalt"]
VALUES = (
    *(
        "1",
        "2",
        "15",
        "16",
        "100",
        "500",
        "600",
        "3000",
        "9001",
        "10000",
        "12000",
        "65535",
        "70000",
    ),
    *("'15'", '"10000"', "15.0", "015", "0x10", "1_000", "1e3", "'0100'", "100000000000"),
    *("true", "True", "'true'", "false", "null", "~", "yes", "'no'", "2026-11-29", "'2026-11-29'"),
    *(
        "1.18.0",
        "1.18",
        "'1.18'",
        "1.18.0-rc.1",
        "1.18.0+b_1",
        "abc",
        "'abc-1'",
        "bucket_2",
        "a..b",
    ),
    *("https://s.example.com", "'https://x:8443'", "https://-x.y", "https://x:", "http://10.0.0.1"),
    *("10.10.0.0/20", "'10.20.0.0/16'", "10.10.0.0/29", "[]", "['192.168.0.0/16']", "{}"),
    *("e2-standard-16", "n2-standard-8", "n2-standard-16", "swarm-9", "a/b", "{A: '020', B: ' '}"),
)
PROGRAM = """
import json
from pathlib import Path
from pulumi.runtime import get_config_env
from components.config_parse import from_pulumi

from_pulumi()
Path("told.json").write_text(json.dumps(get_config_env()))
"""


def mutated() -> Iterator[str]:
    """Texts that the check accepts, all different, always the same: a value or two of each another
    one, or of another look."""
    draw = random.Random(16)
    seen = {FLEET}
    while True:
        text = FLEET
        for _ in range(draw.randrange(1, 4)):
            places = list(re.finditer(r"(?<=[:\[,] )[^\s{}\[\],#]+", text))
            place = draw.choice(places)
            text = text[: place.start()] + draw.choice(VALUES) + text[place.end() :]
        if text not in seen:
            seen.add(text)
            yield f"{text}encryptionsalt: {SALT}\n"


def test_fifty_changed_files_are_the_same_fleet_to_the_engine_and_one_that_vms_take(
    project: Project,
) -> None:
    """Those that the check accepts; of the others, whose texts are the same to both, ten."""
    (project.folder / "__main__.py").write_text(PROGRAM)
    accepted, refused = 0, 0
    for text in mutated():
        if accepted == 50:
            break
        try:
            config = parse(text, "Pulumi.test.yaml")
        except ConfigError as error:
            if refused < 10 and "is not YAML" not in str(error) and not read(text, "x").problems:
                project.write(text)
                assert project.preview(policies=False).no_traceback().code != 0, text
                refused += 1
            continue
        project.write(text)
        answer = project.preview(policies=False)
        assert answer.code == 0, f"{text}\n{answer.text}"
        told = json.loads((project.folder / "told.json").read_text())
        values = {key.removeprefix("pilot-fleet:"): value for key, value in told.items()}
        assert parse_fleet(values, project=values.pop("gcp:project")) == config, text
        for memory_mb, document in rendered(config).values():
            vm_accepts(memory_mb, document)
        accepted += 1
    assert refused == 10
