//! Pods as a manifest says, run by Docker in place of a kubelet: arguments, environment, volumes, user,
//! rights and probes are taken from it. What is not there is a cluster: who runs where, and what names
//! mean beyond one network. What the pods should do is the affair of the tests.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
};

use serde_json::Value;

use crate::{
    docker::{Docker, SharedFolder},
    manifests::Manifests,
    process::{eventually, run},
    telling::Telling,
};

/// A node: a Docker, a network, and a folder that stands for the root of the host.
#[derive(Debug)]
pub struct Node {
    docker: Docker,
    root: SharedFolder,
}

const NETWORK: &str = "pods";

impl Node {
    /// A node with nothing on it.
    #[track_caller]
    pub fn new(docker: Docker, root: PathBuf) -> Self {
        docker.tell(["network", "create", NETWORK]);
        Self { docker, root: SharedFolder::new(root) }
    }

    /// Its Docker.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// The folder that stands for the root of the host.
    pub fn root(&self) -> &SharedFolder {
        &self.root
    }

    /// Starts the one container of a pod of this template; `name` is what others reach it by.
    #[track_caller]
    pub fn start(&self, manifests: &Manifests, name: &str, template: &Value) -> Pod<'_> {
        let pod = &template["spec"];
        let [container] = &array(&pod["containers"])[..] else { panic!("not one container") };
        let mut words = ["run", "--detach", "--network", NETWORK, "--network-alias", name]
            .map(str::to_owned)
            .to_vec();
        words.extend(security(pod, container));
        for (name, value) in environment(manifests, container) {
            words.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        for mount in array(&container["volumeMounts"]) {
            words.extend(self.volume(pod, &mount));
        }
        if let Some(limit) = container["resources"]["limits"]["memory"].as_str() {
            // What Docker calls `1g`.
            words.extend(["--memory".to_owned(), limit.trim_end_matches('i').to_lowercase()]);
        }
        let mut arguments = strings(&container["command"]);
        if !arguments.is_empty() {
            words.extend(["--entrypoint".to_owned(), arguments.remove(0)]);
        }
        words.push(container["image"].as_str().unwrap().to_owned());
        words.extend(arguments);
        words.extend(strings(&container["args"]));
        let id = self.docker.tell(words).text().trim_end().to_owned();
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        Pod { docker: &self.docker, id, container: container.clone(), grace }
    }

    fn volume(&self, pod: &Value, mount: &Value) -> Vec<String> {
        let is_meant = |volume: &&Value| volume["name"] == mount["name"];
        let volumes = array(&pod["volumes"]);
        let volume = volumes.iter().find(is_meant).expect("a mount names a volume");
        let target = mount["mountPath"].as_str().unwrap();
        if !volume["emptyDir"].is_null() {
            return vec!["--tmpfs".to_owned(), target.to_owned()];
        }
        let source = if let Some(path) = volume["hostPath"]["path"].as_str() {
            let source = self.root.path().join(path.trim_start_matches('/'));
            match volume["hostPath"]["type"].as_str() {
                Some("DirectoryOrCreate") => fs::create_dir_all(&source).unwrap(),
                Some("Directory") => assert!(source.is_dir(), "{path} is no directory"),
                other => panic!("a path of the host of type {other:?}"),
            }
            source
        } else {
            let claim = volume["persistentVolumeClaim"]["claimName"].as_str().unwrap();
            let source = self.root.path().join("volumes").join(claim);
            fs::create_dir_all(&source).unwrap();
            let group = pod["securityContext"]["fsGroup"].as_u64().map(|group| group as u32);
            chown(&source, None, group).unwrap();
            fs::set_permissions(&source, fs::Permissions::from_mode(0o2770)).unwrap();
            source
        };
        let propagation = match mount["mountPropagation"].as_str() {
            Some("Bidirectional") => "rshared",
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let volume = format!("{}:{target}:{access},{propagation}", source.display());
        vec!["--volume".to_owned(), volume]
    }
}

/// The user, and what it may. A container that is privileged gets what ours says it needs of that, so
/// that it is seen that this is enough.
fn security(pod: &Value, container: &Value) -> Vec<String> {
    let of = |name| match &container["securityContext"][name] {
        Value::Null => &pod["securityContext"][name],
        value => value,
    };
    let mut words = vec!["--cap-drop=ALL".to_owned()];
    if let Some(user) = of("runAsUser").as_u64() {
        let group = of("runAsGroup").as_u64().unwrap_or(0);
        words.push(format!("--user={user}:{group}"));
        assert!(user != 0 || of("runAsNonRoot") != true, "root is not allowed");
    }
    if let Some(group) = pod["securityContext"]["fsGroup"].as_u64() {
        words.push(format!("--group-add={group}"));
    }
    if of("readOnlyRootFilesystem") == true {
        words.push("--read-only".to_owned());
    }
    if of("privileged") == true {
        let rights = ["--cap-add=SYS_ADMIN", "--device=/dev/fuse"];
        words.extend(rights.map(str::to_owned));
        words.push("--security-opt=apparmor=unconfined".to_owned());
    } else {
        let dropped = strings(&container["securityContext"]["capabilities"]["drop"]);
        assert_eq!(dropped, ["ALL"], "rights that are not needed");
    }
    if of("allowPrivilegeEscalation") == false {
        words.push("--security-opt=no-new-privileges".to_owned());
    }
    words
}

fn environment(manifests: &Manifests, container: &Value) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for source in array(&container["envFrom"]) {
        if let Some(name) = source["configMapRef"]["name"].as_str() {
            let data = manifests.object("ConfigMap", name)["data"].as_object().unwrap();
            let data = data.iter().map(|(name, value)| (name.clone(), text(value)));
            variables.extend(data);
        } else {
            assert_eq!(source["secretRef"]["optional"], true, "a secret is not known here");
        }
    }
    for variable in array(&container["env"]) {
        variables.push((text(&variable["name"]), text(&variable["value"])));
    }
    variables
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    array(value).iter().map(text).collect()
}

#[track_caller]
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// A pod's one container. Removed when dropped.
#[derive(Debug)]
pub struct Pod<'a> {
    docker: &'a Docker,
    id: String,
    container: Value,
    grace: u64,
}

impl Pod<'_> {
    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks a probe of the manifest until it is content; one that takes too long is a failure.
    #[track_caller]
    pub fn passes(&self, probe: &str) {
        let get = &self.container[probe]["httpGet"];
        let ports = array(&self.container["ports"]);
        let port = ports.iter().find(|port| port["name"] == get["port"]).expect("it has a port");
        let template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = self.docker.inspect(&self.id, template);
        let telling = Telling::at(&format!("{address}:{}", port["containerPort"]));
        let path = get["path"].as_str().unwrap();
        eventually(probe, || {
            let running = self.docker.inspect(&self.id, "{{.State.Running}}");
            assert_eq!(running, "true", "{}", self.log());
            std::net::TcpStream::connect(telling.address()).is_ok() && telling.get(path).0 == 200
        });
    }

    /// Ends it as Kubernetes does; its exit code.
    #[track_caller]
    pub fn stop(&self) -> String {
        self.docker.tell(["stop", "--time", &self.grace.to_string(), &self.id]);
        self.docker.inspect(&self.id, "{{.State.ExitCode}}")
    }

    /// Waits until it has ended by itself; its exit code.
    #[track_caller]
    pub fn wait(&self) -> String {
        self.docker.tell(["wait", &self.id]).text().trim_end().to_owned()
    }

    /// What it has said, as text.
    pub fn log(&self) -> String {
        let log = run(self.docker.command().args(["logs", &self.id]));
        format!("{}{}", String::from_utf8_lossy(&log.stdout), log.stderr)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        run(self.docker.command().args(["rm", "--force", &self.id]));
    }
}
