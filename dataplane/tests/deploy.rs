//! What `scripts/deploy` offers: it parses, what it refers to is there, its configs are accepted,
//! its times fit together.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qmux_config::Config;
use qmux_config::certs::{self, CertsRequest};
use saphyr::{LoadableYamlNode as _, YamlOwned};
use tempfile::TempDir;

/// Seconds that the end of a drain may take beyond `drain_timeout`.
const MARGIN_S: i64 = 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    let path = root().join("scripts/deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The path of the program, if it is installed; daemons are in sbin, which is not in everybody's
/// PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

// ---- Kubernetes ----

/// The objects of one manifest.
struct Manifest(Vec<YamlOwned>);

impl Manifest {
    fn read(name: &str) -> Self {
        let objects = YamlOwned::load_from_str(&read(name));
        Self(objects.unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// The object of this kind and name.
    fn get(&self, kind: &str, name: &str) -> &YamlOwned {
        let mut objects = self.0.iter();
        objects
            .find(|it| text(&it["kind"]) == kind && text(&it["metadata"]["name"]) == name)
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }
}

fn text(node: &YamlOwned) -> &str {
    node.as_str().unwrap_or_else(|| panic!("text: {node:?}"))
}

fn number(node: &YamlOwned) -> i64 {
    node.as_integer()
        .unwrap_or_else(|| panic!("a number: {node:?}"))
}

fn list(node: &YamlOwned) -> &[YamlOwned] {
    node.as_vec().unwrap_or_else(|| panic!("a list: {node:?}"))
}

/// The places where a container finds its files.
const MOUNTS: [(&str, &str); 2] = [
    ("config", "/etc/qmux-dp/config"),
    ("certs", "/etc/qmux-dp/certs"),
];

/// Lays the config out as it is mounted (`config/dp.toml` beside `certs/`) and loads it as
/// `qmux-dp` does.
fn load(config_map: &YamlOwned, keys_of: &str) -> Config {
    let site = TempDir::new().expect("directory");
    let (config, certs) = (site.path().join("config"), site.path().join("certs"));
    fs::create_dir(&config).expect("directory");
    let request = CertsRequest {
        server_names: vec!["qmux-dp-servers".into()],
        days: 30,
    };
    let made = certs::generate(&request).expect("certificates");
    certs::write(&made, &certs, false).expect("written");
    // The Secret holds three files, as the README makes it.
    for entry in fs::read_dir(&certs).expect("directory") {
        let path = entry.expect("file").path();
        let name = path.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| name == "ca.crt" || name.starts_with(keys_of)) {
            fs::remove_file(&path).expect("removed");
        }
    }
    let path = config.join("dp.toml");
    fs::write(&path, text(&config_map["data"]["dp.toml"])).expect("written");
    Config::load(&path).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Checks what servers and clients have in common.
fn check_pod(manifest: &Manifest, workload: &YamlOwned, config: &Config, role: &str) {
    let pod = &workload["spec"]["template"]["spec"];
    let container = &list(&pod["containers"])[0];

    let args: Vec<&str> = list(&container["args"]).iter().map(text).collect();
    assert_eq!(args[..2], ["--config", "/etc/qmux-dp/config/dp.toml"]);
    let name = format!("qmux-dp-{role}");
    manifest.get("ConfigMap", &name);
    let volumes = list(&pod["volumes"]);
    assert_eq!(text(&volumes[0]["configMap"]["name"]), name);
    let secret = text(&volumes[1]["secret"]["secretName"]);
    let command = format!(
        "kubectl create secret generic {secret} --from-file=certs/ca.crt \
         --from-file=certs/{role}.crt --from-file=certs/{role}.key"
    );
    assert!(read("README.md").contains(&command), "README.md: {command}");
    for ((name, path), (mount, volume)) in MOUNTS
        .iter()
        .zip(list(&container["volumeMounts"]).iter().zip(volumes))
    {
        assert_eq!(
            (text(&mount["name"]), text(&mount["mountPath"])),
            (*name, *path)
        );
        assert_eq!(text(&volume["name"]), *name);
    }

    let admin = &config.admin.as_ref().expect("probes need it").listen;
    let qmux_config::AdminListen::Tcp(admin) = admin else {
        panic!("the kubelet probes a TCP port, not {admin}");
    };
    assert!(admin.ip().is_unspecified(), "the kubelet must reach it");
    let admin_port = list(&container["ports"])
        .iter()
        .find(|port| text(&port["name"]) == "admin");
    let admin_port = admin_port.expect("named in the probes");
    assert_eq!(
        number(&admin_port["containerPort"]),
        i64::from(admin.port())
    );
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!((text(&get["path"]), text(&get["port"])), (path, "admin"));
    }
    let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
    let scraped = text(&annotations["prometheus.io/port"]);
    assert_eq!(scraped, admin.port().to_string());

    let roles = config.server.iter().map(|server| server.drain_timeout);
    let roles = roles.chain(config.client.iter().map(|client| client.drain_timeout));
    let drain = roles.max().expect("a role").as_secs();
    let hook = container.as_mapping_get("lifecycle");
    let before = hook.map_or(0, |hook| number(&hook["preStop"]["sleep"]["seconds"]));
    let grace = number(&pod["terminationGracePeriodSeconds"]);
    let needed = i64::try_from(drain).expect("short") + before + MARGIN_S;
    assert!(grace >= needed, "{grace} s for {needed} s");

    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    let budget = manifest.get("PodDisruptionBudget", &name);
    for selector in [
        &workload["spec"]["selector"]["matchLabels"],
        &budget["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
}

#[test]
fn the_servers_of_kubernetes_fit_together() {
    let manifest = Manifest::read("kubernetes/server.yaml");
    let workload = manifest.get("StatefulSet", "qmux-dp-server");
    let config = load(manifest.get("ConfigMap", "qmux-dp-server"), "server");
    check_pod(&manifest, workload, &config, "server");

    let server = config.server.as_ref().expect("[server]");
    let [listener] = &server.listeners()[..] else {
        panic!("one listener")
    };
    let (quic, traffic) = (listener.quic_addr.port(), listener.traffic_addr.port());
    let container = &list(&workload["spec"]["template"]["spec"]["containers"])[0];
    let ports: Vec<_> = list(&container["ports"])
        .iter()
        .map(|port| {
            (
                text(&port["name"]),
                text(&port["protocol"]),
                number(&port["containerPort"]),
            )
        })
        .collect();
    let expected = [
        ("quic", "UDP", i64::from(quic)),
        ("traffic-tcp", "TCP", i64::from(traffic)),
        ("traffic-udp", "UDP", i64::from(traffic)),
    ];
    assert_eq!(ports[..3], expected);

    let headless = manifest.get("Service", text(&workload["spec"]["serviceName"]));
    assert_eq!(text(&headless["spec"]["clusterIP"]), "None");
    // A server is ready only when a client has found it.
    assert_eq!(
        headless["spec"]["publishNotReadyAddresses"].as_bool(),
        Some(true)
    );
    assert_eq!(text(&workload["spec"]["podManagementPolicy"]), "Parallel");
    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    for service in [headless, manifest.get("Service", "qmux-dp-traffic")] {
        assert_eq!(&service["spec"]["selector"], labels);
        for port in list(&service["spec"]["ports"]) {
            let target = text(&port["targetPort"]);
            assert!(ports.iter().any(|(name, protocol, _)| {
                (*name, *protocol) == (target, text(&port["protocol"]))
            }));
        }
    }
}

#[test]
fn the_clients_of_kubernetes_find_the_servers() {
    let manifest = Manifest::read("kubernetes/client.yaml");
    let workload = manifest.get("Deployment", "qmux-dp-client");
    let config = load(manifest.get("ConfigMap", "qmux-dp-client"), "client");
    check_pod(&manifest, workload, &config, "client");

    let servers = Manifest::read("kubernetes/server.yaml");
    let client = config.client.as_ref().expect("[client]");
    let [target] = &client.servers[..] else {
        panic!("one name for all servers")
    };
    let service = servers.get("Service", &target.host);
    let port = &list(&service["spec"]["ports"])[0]["port"];
    assert_eq!(number(port), i64::from(target.port));
    let certs = format!("qmux-ctl certs --server-name {}", target.server_name);
    assert!(read("README.md").contains(&certs), "README.md: {certs}");
}

#[test]
fn the_base_of_kustomize_names_the_manifests_and_their_image() {
    let base = Manifest::read("kubernetes/kustomization.yaml");
    let [base] = &base.0[..] else {
        panic!("one document")
    };
    assert_eq!(text(&base["kind"]), "Kustomization");
    let resources: Vec<&str> = list(&base["resources"]).iter().map(text).collect();
    assert_eq!(resources, ["server.yaml", "client.yaml"]);
    let [image] = list(&base["images"]) else {
        panic!("one image")
    };
    for (file, kind, name) in [
        ("server.yaml", "StatefulSet", "qmux-dp-server"),
        ("client.yaml", "Deployment", "qmux-dp-client"),
    ] {
        let manifest = Manifest::read(&format!("kubernetes/{file}"));
        let workload = manifest.get(kind, name);
        let container = &list(&workload["spec"]["template"]["spec"]["containers"])[0];
        let used = text(&container["image"]).split(':').next();
        assert_eq!(used, Some(text(&image["name"])));
    }
}

// ---- the others ----

#[test]
fn the_image_is_built_from_what_is_there() {
    let dockerfile = read("Dockerfile");
    let mut copied = Vec::new();
    for line in dockerfile.lines() {
        let Some(rest) = line.strip_prefix("COPY ") else {
            continue;
        };
        let mut paths: Vec<&str> = rest.split_whitespace().collect();
        assert!(paths.len() > 1, "{line}");
        paths.pop();
        if paths[0].starts_with("--from=build") {
            let programs = [
                "/src/target/release/qmux-dp",
                "/src/target/release/qmux-ctl",
            ];
            assert_eq!(paths[1..], programs);
            continue;
        }
        for path in paths {
            assert!(
                root().join(path).exists(),
                "{path} is copied, and is not there"
            );
            copied.push(path);
        }
    }
    // cargo wants every member of the workspace, also those that it does not build.
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace");
    let (_, members) = workspace.split_once("members = [").expect("members");
    let (members, _) = members.split_once(']').expect("their end");
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"dataplane"), "{members:?}");
    for member in members {
        let mut folders = Path::new(member).ancestors();
        let is_copied = folders.any(|it| copied.iter().any(|path| Path::new(path) == it));
        assert!(is_copied, "{member} is not copied");
    }
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let build = "cargo build --release -p qmux-dp -p qmux-ctl";
    assert!(readme.contains(build), "README.md: {build}");
    let locked = build.replace("build", "build --locked");
    assert!(dockerfile.contains(&locked), "Dockerfile: {locked}");
    assert!(dockerfile.contains("\nUSER 65532:65532\n"));
    // Without a shell, with the config that the program runs.
    let health = "CMD [\"/usr/local/bin/qmux-ctl\", \"health\", \"--config\", \"/etc/qmux-dp/config/dp.toml\"]";
    assert!(dockerfile.contains(health), "Dockerfile: {health}");
    assert!(dockerfile.contains("LABEL org.opencontainers.image."));
    assert!(!read("Dockerfile.dockerignore").contains("Cargo"));
}

#[test]
fn systemd_accepts_the_units() {
    let Some(analyze) = find("systemd-analyze") else {
        eprintln!("left out: there is no systemd-analyze");
        return;
    };
    let site = TempDir::new().expect("directory");
    for (name, config) in [
        ("qmux-dp-server.service", "server.toml"),
        ("qmux-dp-client.service", "client.toml"),
        ("qmux-dp@.service", "%i.toml"),
    ] {
        let unit = read(&format!("systemd/{name}"));
        let installed = "ExecStart=/usr/local/bin/qmux-dp --config /etc/qmux-dp/";
        assert!(unit.contains(&format!("{installed}{config}\n")));
        assert!(unit.contains("\nExecReload=/bin/kill -HUP $MAINPID\n"));
        // systemd-analyze requires that the program exists.
        let unit = unit.replace("/usr/local/bin/qmux-dp", env!("CARGO_BIN_EXE_qmux-dp"));
        let path = site.path().join(name);
        fs::write(&path, unit).expect("written");
        let verify = Command::new(&analyze).arg("verify").arg(&path).output();
        let verify = verify.expect("it starts");
        let stderr = String::from_utf8_lossy(&verify.stderr);
        // It looks at the machine's own units, too, and may complain of those.
        let ours: Vec<&str> = stderr.lines().filter(|line| line.contains(name)).collect();
        assert!(ours.is_empty(), "{ours:#?}");
    }
}

#[test]
fn haproxy_accepts_its_example() {
    let Some(haproxy) = find("haproxy") else {
        eprintln!("left out: there is no haproxy");
        return;
    };
    let config = root().join("scripts/deploy/haproxy.cfg");
    let check = Command::new(haproxy)
        .args(["-c", "-f"])
        .arg(config)
        .output();
    let check = check.expect("it starts");
    let said = String::from_utf8_lossy(&check.stdout) + String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success(), "{said}");
    assert!(!said.contains("WARNING"), "{said}");
}

#[test]
fn the_readme_names_what_is_there() {
    let readme = read("README.md");
    let mut files = Vec::new();
    for dir in ["", "kubernetes", "systemd"] {
        for entry in fs::read_dir(root().join("scripts/deploy").join(dir)).expect("directory") {
            let entry = entry.expect("file");
            if entry.file_type().expect("a type").is_file() {
                let name = entry.file_name();
                files.push(Path::new(dir).join(name).display().to_string());
            }
        }
    }
    files.retain(|file| file != "README.md");
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        assert!(
            readme.contains(&format!("`{file}`")),
            "README.md does not name {file}"
        );
    }
}
