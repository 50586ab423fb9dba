//! The manifests of `deploy/kubernetes`: against the schemas of Kubernetes, and their pods as they are
//! written, under Docker.

use std::{fs, path::Path};

use cairn_tests::{
    cairn::Scene,
    compare::{self, Face},
    docker::{BASE, Docker},
    manifests::{Manifests, validate},
    pods::Node,
    process::eventually,
    trees::{self, base_name},
};
use serde_json::{Value, json};

const PROBES: [&str; 3] = ["startupProbe", "livenessProbe", "readinessProbe"];

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
            for probe in PROBES {
                assert!(container[probe]["httpGet"]["path"].is_string(), "{container}");
            }
            assert!(container["resources"]["limits"]["memory"].is_string());
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        }
    }
}

fn template<'a>(manifests: &'a Manifests, kind: &str, name: &str) -> &'a Value {
    &manifests.object(kind, name)["spec"]["template"]
}

#[test]
#[ignore = "starts containers, for some minutes"]
fn pods_serve_mount_and_run_a_program_of_the_mount() {
    let docker = Docker::start();
    docker.build_cairn("cairn:0.1.0");
    let manifests = Manifests::render("overlays/one-node");
    let scene = Scene::new();
    let node = Node::new(docker, scene.path("node"));

    let servers = ["castore", "store"].map(|name| {
        let pod = node.start(&manifests, name, template(&manifests, "Deployment", name));
        PROBES.iter().for_each(|probe| pod.passes(probe));
        pod
    });

    let start_mounter = || {
        let pod = node.start(&manifests, "mounter", template(&manifests, "DaemonSet", "mounter"));
        PROBES.iter().for_each(|probe| pod.passes(probe));
        pod
    };
    let mounter = start_mounter();
    let mount = node.root().path().join("mnt/cairn/store");
    assert_eq!(node.root().mounts(), ["mnt/cairn/store"]);

    // A tree comes in by a client with the environment of the mounter.
    let tree = trees::vector(scene.folder());
    let import = |tree: &Path| {
        let mut client = template(&manifests, "DaemonSet", "mounter").clone();
        let container = &mut client["spec"]["containers"][0];
        container["args"] = json!(["import", "/tree"]);
        container["env"] = json!([]);
        container["volumeMounts"] = json!([{"name": "tree", "mountPath": "/tree"}]);
        fs::create_dir_all(node.root().path().join("tree")).unwrap();
        let place = node.root().path().join("tree");
        rustix::mount::mount_bind(tree, &place).unwrap();
        client["spec"]["volumes"] =
            json!([{"name": "tree", "hostPath": {"path": "/tree", "type": "Directory"}}]);
        let pod = node.start(&manifests, "client", &client);
        let ended = pod.wait();
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(ended, "0", "{}", pod.log());
        pod.log().trim_end().to_owned()
    };
    let path = import(&tree);
    assert_eq!(path, trees::VECTOR_STORE_PATH);
    let seen = mount.join(base_name(&path));
    compare::assert_same(&tree, &seen, Face::Mount);

    // The example, with that path.
    let example = Manifests::render("example");
    let mut job = template(&example, "Job", "program").clone();
    let image = job["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
    node.docker().tell(["tag", BASE, &image]);
    let command = &mut job["spec"]["containers"][0]["command"][0];
    *command = json!(command.as_str().unwrap().replace("STORE_PATH", base_name(&path)));
    let run_program = || {
        let pod = node.start(&example, "program", &job);
        assert_eq!((pod.wait(), pod.log()), ("0".to_owned(), "ok\n".to_owned()));
    };
    run_program();

    // Killed, it leaves a dead mount, in the place of which the next one comes.
    node.docker().crash(mounter.id());
    eventually("the mount is dead", || fs::read_dir(&mount).is_err());
    drop(mounter);
    assert_eq!(node.root().mounts(), ["mnt/cairn/store"]);
    let mounter = start_mounter();
    assert_eq!(node.root().mounts(), ["mnt/cairn/store"]);
    compare::assert_same(&tree, &seen, Face::Mount);
    run_program();

    // Stopped, it leaves nothing; what it had near stays on the node.
    assert_eq!(mounter.stop(), "0");
    assert_eq!(node.root().mounts(), [""; 0]);
    assert!(fs::read_dir(node.root().path().join("var/cache/cairn")).unwrap().count() > 0);
    for server in servers {
        assert_eq!(server.stop(), "0");
    }
}
