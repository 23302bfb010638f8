"""The compute API.

`api` has the table of requests and answers what every kind of resource has in common.
`instances_api`, `project_api` and `catalog_api` answer the rest. `kinds` lists the kinds of
resources: each is completed in `networks`, `addresses` or `disks`. Instances are made in
`instances` and changed in `instance_actions`. `driver_work` does with the driver what an
operation (`operations`) stands for.
"""
