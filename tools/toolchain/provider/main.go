// A gcp provider plugin for machines on which no Pulumi is installed: the
// Terraform provider for Google Cloud (4.14, the newest that the Go module proxy
// serves), bridged, under the tokens and property names of pulumi-gcp 10.2.
//
// Only the resources that this project, its policies' tests and its lab declare are
// mapped. There is no auto-naming: every resource needs its name. Properties that
// came after 4.14 are refused by name ("Invalid or unknown key"): dropping them would
// hide them from the policies, which judge what the provider has checked.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	terraform "github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	google "github.com/hashicorp/terraform-provider-google-beta/google-beta"
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	shim "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim"
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim/schema"
	shimv2 "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim/sdk-v2"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
)

// The Python SDK asks for the plugin of its own version.
const version = "10.2.0"

// Terraform resource to Pulumi token, as in the SDK of pulumi-gcp 10.2.
var resources = map[string]tokens.Type{
	"google_compute_address":                         "gcp:compute/address:Address",
	"google_compute_attached_disk":                   "gcp:compute/attachedDisk:AttachedDisk",
	"google_compute_disk":                            "gcp:compute/disk:Disk",
	"google_compute_disk_resource_policy_attachment": "gcp:compute/diskResourcePolicyAttachment:DiskResourcePolicyAttachment",
	"google_compute_firewall":                        "gcp:compute/firewall:Firewall",
	"google_compute_global_address":                  "gcp:compute/globalAddress:GlobalAddress",
	"google_compute_image":                           "gcp:compute/image:Image",
	"google_compute_instance":                        "gcp:compute/instance:Instance",
	"google_compute_instance_from_machine_image":     "gcp:compute/instanceFromMachineImage:InstanceFromMachineImage",
	"google_compute_instance_from_template":          "gcp:compute/instanceFromTemplate:InstanceFromTemplate",
	"google_compute_instance_group":                  "gcp:compute/instanceGroup:InstanceGroup",
	"google_compute_instance_group_manager":          "gcp:compute/instanceGroupManager:InstanceGroupManager",
	"google_compute_instance_template":               "gcp:compute/instanceTemplate:InstanceTemplate",
	"google_compute_machine_image":                   "gcp:compute/machineImage:MachineImage",
	"google_compute_network":                         "gcp:compute/network:Network",
	"google_compute_per_instance_config":             "gcp:compute/perInstanceConfig:PerInstanceConfig",
	"google_compute_project_metadata":                "gcp:compute/projectMetadata:ProjectMetadata",
	"google_compute_project_metadata_item":           "gcp:compute/projectMetadataItem:ProjectMetadataItem",
	"google_compute_region_instance_group_manager":   "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager",
	"google_compute_region_per_instance_config":      "gcp:compute/regionPerInstanceConfig:RegionPerInstanceConfig",
	"google_compute_resource_policy":                 "gcp:compute/resourcePolicy:ResourcePolicy",
	"google_compute_router":                          "gcp:compute/router:Router",
	"google_compute_router_nat":                      "gcp:compute/routerNat:RouterNat",
	"google_compute_snapshot":                        "gcp:compute/snapshot:Snapshot",
	"google_compute_subnetwork":                      "gcp:compute/subnetwork:Subnetwork",
	"google_logging_metric":                          "gcp:logging/metric:Metric",
	"google_monitoring_alert_policy":                 "gcp:monitoring/alertPolicy:AlertPolicy",
	"google_monitoring_dashboard":                    "gcp:monitoring/dashboard:Dashboard",
	"google_monitoring_notification_channel":         "gcp:monitoring/notificationChannel:NotificationChannel",
	"google_monitoring_uptime_check_config":          "gcp:monitoring/uptimeCheckConfig:UptimeCheckConfig",
	"google_project_iam_custom_role":                 "gcp:projects/iAMCustomRole:IAMCustomRole",
	"google_project_iam_member":                      "gcp:projects/iAMMember:IAMMember",
	"google_project_service":                         "gcp:projects/service:Service",
	"google_secret_manager_secret":                   "gcp:secretmanager/secret:Secret",
	"google_secret_manager_secret_iam_member":        "gcp:secretmanager/secretIamMember:SecretIamMember",
	"google_secret_manager_secret_version":           "gcp:secretmanager/secretVersion:SecretVersion",
	"google_service_account":                         "gcp:serviceaccount/account:Account",
	"google_service_account_iam_member":              "gcp:serviceaccount/iAMMember:IAMMember",
	"google_storage_bucket":                          "gcp:storage/bucket:Bucket",
	"google_storage_bucket_iam_member":               "gcp:storage/bucketIAMMember:BucketIAMMember",
	"google_storage_bucket_object":                   "gcp:storage/bucketObject:BucketObject",
}

var dataSources = map[string]tokens.ModuleMember{
	"google_compute_image": "gcp:compute/getImage:getImage",
	"google_compute_zones": "gcp:compute/getZones:getZones",
	"google_project":       "gcp:organizations/getProject:getProject",
}

type fields = map[string]*tfbridge.SchemaInfo

// Where pulumi-gcp's names or shapes are not the bridge's own; everything else that
// the SDK and this provider share has the same names (tests/toolchain compares them).
var overrides = map[string]fields{
	"google_storage_bucket_object": {
		"source": {Asset: &tfbridge.AssetTranslation{Kind: tfbridge.FileAsset}},
	},
}

// Configuration of pulumi-gcp that came after this provider and that a stack may well
// have: accepted and without effect.
var newerConfig = []string{
	"addPulumiAttributionLabel", "addTerraformAttributionLabel", "defaultLabels",
	"disableGlobalProjectWarning", "externalCredentials", "pulumiAttributionLabelAdditionStrategy",
	"skipRegionValidation", "terraformAttributionLabelAdditionStrategy", "universeDomain",
}

// older is the provider of 4.14, less a check of what Google has come to sell since: of a new
// VM's boot disk it takes the types of its own time only, and of no other disk.
func older() *terraform.Provider {
	provider := google.Provider()
	bootDisk := provider.ResourcesMap["google_compute_instance"].Schema["boot_disk"]
	parameters := bootDisk.Elem.(*terraform.Resource).Schema["initialize_params"]
	parameters.Elem.(*terraform.Resource).Schema["type"].ValidateFunc = nil
	return provider
}

func provider() tfbridge.ProviderInfo {
	info := tfbridge.ProviderInfo{
		P:              shimv2.NewProvider(older()),
		Name:           "gcp",
		ResourcePrefix: "google",
		Version:        version,
		Resources:      map[string]*tfbridge.ResourceInfo{},
		DataSources:    map[string]*tfbridge.DataSourceInfo{},
		ExtraConfig:    map[string]*tfbridge.ConfigInfo{},
	}
	for _, name := range newerConfig {
		optional := &schema.Schema{Type: shim.TypeString, Optional: true}
		info.ExtraConfig[name] = &tfbridge.ConfigInfo{Schema: optional.Shim()}
	}
	for name, token := range resources {
		info.Resources[name] = &tfbridge.ResourceInfo{Tok: token, Fields: overrides[name]}
	}
	for name, token := range dataSources {
		info.DataSources[name] = &tfbridge.DataSourceInfo{Tok: token}
	}
	return info
}

// names describes what a resource accepts, for a comparison with the SDK: an object
// maps property names to values, a list holds its element, a leaf is its kind.
func names(schema shim.SchemaMap, infos fields) map[string]any {
	out := map[string]any{}
	schema.Range(func(key string, s shim.Schema) bool {
		if s.Removed() == "" {
			out[tfbridge.TerraformToPulumiNameV2(key, schema, infos)] = shape(s, infos[key])
		}
		return true
	})
	return out
}

func shape(s shim.Schema, info *tfbridge.SchemaInfo) any {
	if info != nil && info.Asset != nil {
		return "asset"
	}
	switch s.Type() {
	case shim.TypeMap:
		return "map"
	case shim.TypeList, shim.TypeSet:
		var element any = "leaf"
		if nested, ok := s.Elem().(shim.Resource); ok {
			var infos fields
			if info != nil && info.Elem != nil {
				infos = info.Elem.Fields
			}
			element = names(nested.Schema(), infos)
		}
		if tfbridge.IsMaxItemsOne(s, info) {
			return element
		}
		return []any{element}
	default:
		return "leaf"
	}
}

func main() {
	info := provider()
	if len(os.Args) == 2 && os.Args[1] == "--names" {
		all := map[string]any{}
		for name, token := range resources {
			all[string(token)] = names(info.P.ResourcesMap().Get(name).Schema(), overrides[name])
		}
		all["pulumi:providers:gcp"] = names(info.P.Schema(), info.Config)
		if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	tfbridge.Main("gcp", version, info, []byte("{}"))
}
