//! The manifests of `deploy/kubernetes`, against the schemas of Kubernetes and each other.

use std::fs;

use cairn_tests::{
    cairn::Scene,
    manifests::{Manifests, validate},
};
use serde_json::json;

const OVERLAYS: [&str; 2] = ["overlays/s3", "overlays/one-node"];

#[test]
#[ignore = "fetches schemas"]
fn manifests_hold_against_the_schemas_of_kubernetes() {
    let validated = validate(None).succeeded();
    assert!(validated.text().contains("daemonset/mounter"), "{validated:?}");

    // So the check can fail.
    let scene = Scene::new();
    let file = scene.path("wrong.yaml");
    let mut wrong = Manifests::render(OVERLAYS[1]).object("DaemonSet", "mounter").clone();
    wrong["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["propagation"] =
        json!("Bidirectional");
    fs::write(&file, wrong.to_string()).unwrap();
    assert!(!validate(Some(&file)).status.success());
}

#[test]
#[ignore = "fetches schemas"]
fn every_server_is_probed_limited_and_kept_in_numbers() {
    for overlay in OVERLAYS {
        let manifests = Manifests::render(overlay);
        for name in ["castore", "store"] {
            let labels = &manifests.object("Deployment", name)["spec"]["template"]["metadata"];
            // What selects the pods of a server selects those, and no others.
            for (kind, path) in [
                ("Deployment", "/spec/selector/matchLabels"),
                ("PodDisruptionBudget", "/spec/selector/matchLabels"),
                ("Service", "/spec/selector"),
            ] {
                let selector = manifests.object(kind, name).pointer(path).unwrap();
                for (label, value) in selector.as_object().unwrap() {
                    assert_eq!(labels["labels"][label], *value, "{kind} {name}");
                    assert_eq!(value.as_str(), Some(name));
                }
            }
        }
        let workloads = manifests.all("Deployment").chain(manifests.all("DaemonSet"));
        for workload in workloads {
            let container = &workload["spec"]["template"]["spec"]["containers"][0];
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                assert!(container[probe]["httpGet"]["path"].is_string(), "{container}");
            }
            assert!(container["resources"]["limits"]["memory"].is_string());
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        }
    }
}
