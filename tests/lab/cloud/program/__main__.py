"""One of each resource type, wired as a fleet wires them. Nothing in it knows of the lab."""

import pulumi
import pulumi_gcp as gcp

config = pulumi.Config()
agents = config.get("value") or "1"
machine_type = config.get("machineType") or "e2-standard-2"
label = config.get("label") or "one"

zone, region = "us-central1-a", "us-central1"
labels = {"team": label}

network = gcp.compute.Network("network", name="net", auto_create_subnetworks=False)
subnetwork = gcp.compute.Subnetwork(
    "subnetwork",
    name="sub",
    region=region,
    network=network.id,
    ip_cidr_range="10.10.0.0/20",
    private_ip_google_access=True,
)
internal = gcp.compute.Address(
    "internal",
    name="internal",
    region=region,
    address_type="INTERNAL",
    subnetwork=subnetwork.id,
    address="10.10.0.2",
)
external = gcp.compute.Address("external", name="external", region=region, address_type="EXTERNAL")
gcp.compute.Firewall(
    "firewall",
    name="firewall",
    network=network.id,
    allows=[gcp.compute.FirewallAllowArgs(protocol="tcp", ports=["9000"])],
    source_ranges=["10.10.0.0/20"],
    target_tags=["server"],
)
router = gcp.compute.Router("router", name="router", region=region, network=network.id)
gcp.compute.RouterNat(
    "nat",
    name="nat",
    router=router.name,
    region=region,
    nat_ip_allocate_option="AUTO_ONLY",
    source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
)
disk = gcp.compute.Disk("disk", name="state", zone=zone, size=20, type="pd-ssd", labels=labels)
for period, schedule in (
    (
        "hourly",
        gcp.compute.ResourcePolicySnapshotSchedulePolicyScheduleArgs(
            hourly_schedule=gcp.compute.ResourcePolicySnapshotSchedulePolicyScheduleHourlyScheduleArgs(
                hours_in_cycle=1, start_time="00:00"
            )
        ),
    ),
    (
        "daily",
        gcp.compute.ResourcePolicySnapshotSchedulePolicyScheduleArgs(
            daily_schedule=gcp.compute.ResourcePolicySnapshotSchedulePolicyScheduleDailyScheduleArgs(
                days_in_cycle=1, start_time="04:00"
            )
        ),
    ),
):
    policy = gcp.compute.ResourcePolicy(
        period,
        name=period,
        region=region,
        snapshot_schedule_policy=gcp.compute.ResourcePolicySnapshotSchedulePolicyArgs(
            schedule=schedule,
            retention_policy=gcp.compute.ResourcePolicySnapshotSchedulePolicyRetentionPolicyArgs(
                max_retention_days=7, on_source_disk_delete="KEEP_AUTO_SNAPSHOTS"
            ),
        ),
    )
    gcp.compute.DiskResourcePolicyAttachment(
        f"{period}-attached", name=policy.name, disk=disk.name, zone=zone
    )
gcp.compute.ProjectMetadataItem("script", key="startup-script", value="#!/bin/bash\necho hello\n")
vm = gcp.compute.Instance(
    "vm",
    name="vm",
    zone=zone,
    machine_type=machine_type,
    allow_stopping_for_update=True,
    boot_disk=gcp.compute.InstanceBootDiskArgs(
        initialize_params=gcp.compute.InstanceBootDiskInitializeParamsArgs(
            image="debian-cloud/debian-12", size=20, type="pd-balanced"
        )
    ),
    attached_disks=[gcp.compute.InstanceAttachedDiskArgs(source=disk.id, device_name="state")],
    network_interfaces=[
        gcp.compute.InstanceNetworkInterfaceArgs(
            subnetwork=subnetwork.id,
            network_ip=internal.address,
            access_configs=[
                gcp.compute.InstanceNetworkInterfaceAccessConfigArgs(nat_ip=external.address)
            ],
        )
    ],
    metadata={"enable-guest-attributes": "TRUE", "spec": agents},
    labels=labels,
    tags=["server"],
    scheduling=gcp.compute.InstanceSchedulingArgs(
        automatic_restart=True, on_host_maintenance="MIGRATE"
    ),
    service_account=gcp.compute.InstanceServiceAccountArgs(
        email="vm@p1.iam.gserviceaccount.com",
        scopes=["https://www.googleapis.com/auth/cloud-platform"],
    ),
    shielded_instance_config=gcp.compute.InstanceShieldedInstanceConfigArgs(
        enable_secure_boot=True, enable_vtpm=True, enable_integrity_monitoring=True
    ),
)
bucket = gcp.storage.Bucket(
    "bucket",
    name="bucket-of-p1",
    location="US-CENTRAL1",
    uniform_bucket_level_access=True,
    versioning=gcp.storage.BucketVersioningArgs(enabled=True),
    force_destroy=True,
    labels=labels,
)
gcp.storage.BucketObject(
    "object",
    name="releases/hello",
    bucket=bucket.name,
    source=pulumi.StringAsset("hello\n"),
)
gcp.storage.BucketIAMMember(
    "reader",
    bucket=bucket.name,
    role="roles/storage.objectViewer",
    member="serviceAccount:vm@p1.iam.gserviceaccount.com",
)
gcp.projects.IAMMember(
    "writer",
    project="p1",
    role="roles/logging.logWriter",
    member="serviceAccount:vm@p1.iam.gserviceaccount.com",
)
secret = gcp.secretmanager.Secret(
    "secret",
    secret_id="password",
    replication=gcp.secretmanager.SecretReplicationArgs(
        user_managed=gcp.secretmanager.SecretReplicationUserManagedArgs(
            replicas=[gcp.secretmanager.SecretReplicationUserManagedReplicaArgs(location=region)]
        )
    ),
)
gcp.secretmanager.SecretVersion("version", secret=secret.id, secret_data="xyzzy")
gcp.secretmanager.SecretIamMember(
    "secret-reader",
    secret_id=secret.id,
    role="roles/secretmanager.secretAccessor",
    member="serviceAccount:vm@p1.iam.gserviceaccount.com",
)
channel = gcp.monitoring.NotificationChannel(
    "channel",
    display_name="ops",
    type="email",
    labels={"email_address": "ops@example.com"},
)
gcp.monitoring.AlertPolicy(
    "alert",
    display_name="few",
    combiner="OR",
    notification_channels=[channel.name],
    conditions=[
        gcp.monitoring.AlertPolicyConditionArgs(
            display_name="few",
            condition_threshold=gcp.monitoring.AlertPolicyConditionConditionThresholdArgs(
                filter='metric.type="compute.googleapis.com/instance/uptime"'
                ' resource.type="gce_instance"',
                comparison="COMPARISON_LT",
                duration="300s",
                threshold_value=9000,
            ),
        )
    ],
)
gcp.monitoring.Dashboard(
    "dashboard",
    project="p1",
    dashboard_json='{"displayName":"Fleet","gridLayout":{"widgets":[]}}',
)

pulumi.export("vm", vm.instance_id)
pulumi.export("address", internal.address)
