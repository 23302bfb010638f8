"""The Pulumi program: reads the configuration, declares the components, exports the outputs."""

from pathlib import Path

import pulumi

from components import guard, program_exit

if __name__ == "__main__":  # Under Pulumi; tests run it under another name.
    program_exit.at_once_on_interrupt()

# First of all: the guard does not see resources that are declared before it, by an import too.
allowed_scripts: list[str] = []
guard.register(allowed_scripts)

from components import fleet, last_update, outputs, rendezvous_zone, stack_file
from components.config_parse import from_pulumi

ROOT = Path(__file__).resolve().parent

engine_values = pulumi.runtime.get_config_env()
config = from_pulumi(stack_file.problems_of(ROOT, pulumi.get_stack(), engine_values))
allowed_scripts += config.allowed_scripts
last = last_update.read()
for warning in (
    *config.warnings(),
    *outputs.disk_type_warnings(config, last.machine_types),
    *rendezvous_zone.warnings(config, last),
):
    pulumi.log.warn(warning)

if pulumi.runtime.is_dry_run() and (table := outputs.fit_changes(config, last)):
    pulumi.log.info(f"What fits:\n{table}")

network, bucket = fleet.declare(config, last, root=ROOT)

for key, value in outputs.from_config(config).items():
    pulumi.export(key, value)
pulumi.export("externalAddress", network.external_address)
pulumi.export("bucket", bucket.bucket_name)
# Read by the next update.
pulumi.export("rendezvousLeft", rendezvous_zone.left_zones(config, last))
