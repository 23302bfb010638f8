"""The fleet: configuration in, components, outputs out. What each does stands in components/."""

from pathlib import Path

import pulumi

from components import ending, guard

if __name__ == "__main__":  # Pulumi's name for it; tests of the declarations have another.
    ending.at_once_on_interrupt()

# Before all else: the guard does not see what is declared before, by an import too.
allowed_scripts: list[str] = []
guard.register(allowed_scripts)

from components import fleet, last, outputs, stack_file
from components.config_parse import from_pulumi

ROOT = Path(__file__).resolve().parent

given = pulumi.runtime.get_config_env()
config = from_pulumi(stack_file.problems_of(ROOT, pulumi.get_stack(), given))
allowed_scripts += config.allowed_scripts
was = last.read()
for warning in (*config.warnings(), *outputs.moves(config, was.machine_types)):
    pulumi.log.warn(warning)

network, bucket = fleet.declare(config, was, root=ROOT)

for key, value in outputs.of(config).items():
    pulumi.export(key, value)
pulumi.export("externalAddress", network.external_address)
pulumi.export("bucket", bucket.bucket_name)
