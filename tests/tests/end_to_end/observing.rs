//! The dashboard and the alert rules, against a real Prometheus that scrapes a mount and a daemon while
//! they work, and then while something is wrong.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cairn_tests::{
    cairn::Scene,
    object_stores::{S3, free_port},
    process::{Running, eventually, run},
    telling::Telling,
    trees::{self, damage},
};
use rustix::process::Signal;
use serde_json::Value;

/// What is shipped.
fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn dashboard() -> Value {
    serde_json::from_slice(&fs::read(shipped("grafana/cairn.json")).unwrap()).unwrap()
}

/// The panels that show something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row")
}

/// The queries of a panel.
fn queries(panel: &Value) -> impl Iterator<Item = &str> {
    panel["targets"].as_array().unwrap().iter().map(|target| target["expr"].as_str().unwrap())
}

/// A Prometheus that scrapes these processes each second, with the rules that are shipped.
struct Prometheus {
    api: Telling,
    _server: Running,
}

impl Prometheus {
    fn start(scene: &Scene, targets: &[&Telling]) -> Self {
        let config = fs::read_to_string(shipped("prometheus/prometheus.yml")).unwrap();
        let (before, _) = config.split_once("      - targets:\n").expect("there are targets");
        let targets = targets.iter().map(|target| format!("          - {}\n", target.address()));
        let config = format!("{before}      - targets:\n{}", targets.collect::<String>());
        let config = config.replace("_interval: 15s", "_interval: 1s");
        let folder = scene.new_folder("prometheus");
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        fs::copy(shipped("prometheus/alerts.yml"), folder.join("alerts.yml")).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut server = Running::start(
            Command::new("prometheus")
                .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
                .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
                .arg(format!("--web.listen-address={address}"))
                .arg("--log.level=warn"),
        );
        eventually("Prometheus listens", || {
            assert!(!server.has_ended(), "Prometheus has ended: {}", server.said());
            TcpStream::connect(&address).is_ok()
        });
        let api = Telling::at(&address);
        eventually("Prometheus is ready", || api.get("/-/ready").0 == 200);
        Self { api, _server: server }
    }

    /// The data of an answer.
    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let (status, text) = self.api.get(path);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(status == 200 && answer["status"] == "success", "{path}: {text}");
        answer["data"].clone()
    }

    /// The series that a query comes to.
    #[track_caller]
    fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.ask(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(data["resultType"], "vector", "{query}");
        data["result"].as_array().unwrap().clone()
    }

    /// The alerts that fire.
    fn firing(&self) -> BTreeSet<String> {
        let data = self.ask("/api/v1/alerts");
        let alerts = data["alerts"].as_array().unwrap().iter();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }
}

/// A query as Grafana sends it.
fn filled_in(query: &str) -> String {
    let query = query.replace("$__rate_interval", "1m").replace("$__range", "5m");
    query.replace("$job", "cairn").replace("$instance", ".*")
}

#[test]
fn the_rules_are_rules() {
    let rules = shipped("prometheus/alerts.yml");
    run(Command::new("promtool").args(["check", "rules"]).arg(rules)).succeeded();
    let config = shipped("prometheus/prometheus.yml");
    run(Command::new("promtool").args(["check", "config"]).arg(config)).succeeded();
    // Whoever is woken by one finds out what to do.
    let page = fs::read_to_string(shipped("../docs/telemetry.md")).unwrap();
    let rules = fs::read_to_string(shipped("prometheus/alerts.yml")).unwrap();
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "docs/telemetry.md has no word of {name}");
    }
}

#[test]
fn the_dashboard_is_one() {
    const UNITS: [&str; 9] =
        ["Bps", "bool_yes_no", "bytes", "none", "ops", "percentunit", "reqps", "s", "short"];
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "cairn");
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(dashboard["title"].is_string() && dashboard["refresh"].is_string());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its number is another's");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("w") > 0 && place("x") + place("w") <= 24, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(places.insert((x, y)), "{title} is on another one");
            }
        }
    }
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(matches!(panel["type"].as_str(), Some("timeseries" | "stat")), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
        assert!(UNITS.contains(&unit), "{title}: {unit}");
        let mut references = BTreeSet::new();
        for target in panel["targets"].as_array().unwrap() {
            assert!(references.insert(target["refId"].as_str().unwrap()), "{title}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(target["legendFormat"].as_str().unwrap().contains(char::is_alphabetic));
            let query = target["expr"].as_str().unwrap();
            assert!(query.contains("instance=~\"$instance\""), "{title}: {query}");
        }
        assert!(!references.is_empty(), "{title} shows nothing");
    }
}

#[test]
fn every_query_has_an_answer_and_alerts_fire_only_if_something_is_wrong() {
    let (scene, s3) = (Scene::new(), S3::start());
    let bucket = s3.access().cairn("store");
    let path = bucket.import(&trees::small(scene.folder(), "tree"));
    let tell = ["--http", "127.0.0.1:0"];
    let daemon = bucket.serve_with("127.0.0.1:0", tell);
    let cairn = daemon.client().with_cache(&scene.path("cache"));
    let mount = cairn.mount_with(&scene.new_folder("mnt"), tell);
    let (served, mounted) = (Telling::of(&daemon.said), Telling::of(&mount.imported));
    let prometheus = Prometheus::start(&scene, &[&served, &mounted]);

    // Each new tree is work for all: the mount, the daemon, the bucket.
    let mut number = 0_u32;
    let mut work = || {
        number += 1;
        let tree = scene.new_folder(&format!("tree-{number}"));
        fs::write(tree.join("file"), number.to_le_bytes().repeat(75_000)).unwrap();
        let path = daemon.client().import(&tree);
        assert_eq!(fs::read(mount.at(&path).join("file")).unwrap().len(), 300_000);
    };
    let dashboard = dashboard();
    let queries: Vec<_> = panels(&dashboard).flat_map(queries).map(filled_in).collect();
    assert!(queries.len() > 30);
    eventually("all queries have answers", || {
        work();
        queries.iter().all(|query| !prometheus.query(query).is_empty())
    });

    check_metrics(&served);
    check_metrics(&mounted);

    // All is well, and every rule can be run.
    let rules = prometheus.ask("/api/v1/rules");
    let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() > 10);
    for rule in &rules {
        let query = rule["query"].as_str().unwrap();
        assert!(prometheus.query(query).is_empty(), "{query} is true");
        assert_ne!(rule["health"], "err", "{rule}");
    }
    assert!(prometheus.firing().is_empty());

    // What is damaged wakes somebody.
    damage(&s3.file("store/chunks"));
    let fresh = daemon.client().mount_with(&scene.new_folder("fresh"), tell);
    assert!(has_unreadable(&fresh.at(&path)));
    let expected = BTreeSet::from(["CairnDamage".to_owned()]);
    eventually("the damage is told", || prometheus.firing() == expected);
    fresh.stop(Signal::TERM).succeeded();
    mount.stop(Signal::TERM).succeeded();
}

/// Has Prometheus's own tool read the metrics.
#[track_caller]
fn check_metrics(telling: &Telling) {
    let (_, text) = telling.get("/metrics");
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut check = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

/// Whether a file below a folder can't be read.
fn has_unreadable(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        match kind {
            kind if kind.is_dir() => has_unreadable(&path),
            kind if kind.is_file() => fs::read(&path).is_err(),
            _ => false,
        }
    })
}
