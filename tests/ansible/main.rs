//! The Ansible module, run by a real ansible-core: `make ansible` gets it from PyPI.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use redis::Value;
use switchback_common::{ConnectOptions, Queue, Store};
use switchback_tests::{Process, RedisServer, pretend};

const PASSWORD: &str = "hunter2";

struct Site {
    server: RedisServer,
}

/// What one run of a playbook said.
struct Ran {
    ok: bool,
    text: String,
}

impl Ran {
    fn says(&self, text: &str) -> &Self {
        assert!(self.text.contains(text), "no {text:?} in\n{}", self.text);
        self
    }

    fn ends(&self, ok: bool, recap: &str) -> &Self {
        assert_eq!(self.ok, ok, "{}", self.text);
        // `ok=2    changed=1    unreachable=0 …`, whatever the spaces.
        let line = self
            .text
            .lines()
            .rfind(|line| line.contains("unreachable="))
            .unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(words.join(" ").contains(recap), "no {recap:?} in\n{}", self.text);
        self
    }
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/ansible")
        .join(path)
}

impl Site {
    /// A queue whose workers have v1 and v2, on a Redis with a password.
    async fn new() -> Self {
        let server = RedisServer::start().await;
        server.cli(&["CONFIG", "SET", "requirepass", PASSWORD]).await;
        let site = Self { server };
        let store = Store::new(&ConnectOptions::new(site.url())).unwrap();
        let queue = Queue::new("shop".parse().unwrap(), "send_email".parse().unwrap());
        pretend(&store, &queue, &["v1", "v2"]).await;
        site
    }

    fn url(&self) -> String {
        self.server.url().replace("redis://", &format!("redis://:{PASSWORD}@"))
    }

    fn play(&self, playbook: &Path, extra: &[&str]) -> Ran {
        let bin = std::env::var("ANSIBLE_BIN").expect("ANSIBLE_BIN: run this with `make ansible`");
        let home = tempfile::tempdir().unwrap();
        let output = Command::new(Path::new(&bin).join("ansible-playbook"))
            .arg(playbook)
            .args(["-i", "localhost,", "-c", "local"])
            // Of the machine's many, the one that ansible itself runs on.
            .args(["-e", &format!("ansible_python_interpreter={bin}/python3")])
            .args(["-e", &format!("redis_url={}", self.url())])
            .args(["-e", &format!("switchback={}", Process::binary("switchback").display())])
            .args(extra)
            .env("ANSIBLE_LIBRARY", here("library"))
            .env("ANSIBLE_HOME", home.path())
            .env("ANSIBLE_NOCOLOR", "1")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!text.contains(PASSWORD), "the password is shown:\n{text}");
        println!("$ ansible-playbook {} {}\n{text}", playbook.display(), extra.join(" "));
        Ran {
            ok: output.status.success(),
            text,
        }
    }

    /// A playbook of one task.
    fn task(&self, arguments: &str, extra: &[&str]) -> Ran {
        let directory = tempfile::tempdir().unwrap();
        let playbook = directory.path().join("one.yml");
        let text = format!(
            "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - switchback_config:\n        executable: \"{{{{ switchback }}}}\"\n        redis_url: \"{{{{ redis_url }}}}\"\n{}\n",
            arguments
                .lines()
                .map(|line| format!("        {line}\n"))
                .collect::<String>()
        );
        std::fs::write(&playbook, text).unwrap();
        self.play(&playbook, extra)
    }

    fn site(&self, extra: &[&str]) -> Ran {
        self.play(&here("site.yml"), extra)
    }

    async fn percent(&self) -> String {
        let gate = "sb:gate:{shop:send_email}";
        match self.raw(&["HGET", gate, "percent"]).await {
            Value::BulkString(text) => String::from_utf8(text).unwrap(),
            other => format!("{other:?}"),
        }
    }

    async fn raw(&self, args: &[&str]) -> Value {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd(args[0])
            .arg(&args[1..])
            .query_async(&mut connection)
            .await
            .unwrap()
    }
}

#[tokio::test]
#[ignore = "needs ansible-core: make ansible"]
async fn it_is_changed_first_and_then_ok() {
    let site = Site::new().await;
    let first = site.site(&["-e", "environment_name=production"]);
    first.ends(true, "ok=2 changed=1").says("at revision 1");
    assert_eq!(site.percent().await, "1");
    let second = site.site(&["-e", "environment_name=production"]);
    second.ends(true, "ok=2 changed=0").says("[] at revision 1");
}

#[tokio::test]
#[ignore = "needs ansible-core: make ansible"]
async fn check_and_diff_show_and_leave_alone() {
    let site = Site::new().await;
    site.site(&[]).ends(true, "changed=1");
    assert_eq!(site.percent().await, "10");
    let check = site.site(&["-e", "environment_name=production", "--check", "--diff"]);
    check
        .ends(true, "changed=1")
        .says("--- before: in Redis")
        .says("+++ after: document");
    check
        .says("-percent = 10")
        .says("+percent = 1")
        .says("-concurrency = 20")
        .says("+concurrency = 200");
    assert_eq!(site.percent().await, "10", "nothing was changed");
    site.site(&["--check", "--diff"]).ends(true, "changed=0");
    let again = site.site(&["-e", "environment_name=production", "--diff"]);
    again.ends(true, "changed=1").says("+percent = 1");
    assert_eq!(site.percent().await, "1");
}

#[tokio::test]
#[ignore = "needs ansible-core: make ansible"]
async fn what_is_refused_fails_and_says_why() {
    let site = Site::new().await;
    let v9 = "namespace: shop\ncontent: {queues: {send_email: {gate: {active: v9}}}}";
    site.task(v9, &[])
        .ends(false, "changed=0 unreachable=0 failed=1")
        .says("v9")
        .says("\"rc\": 5");
    let typo = "namespace: shop\ncontent: {queues: {send_email: {gate: {activ: v2}}}}";
    site.task(typo, &["--check"])
        .ends(false, "failed=1")
        .says("activ")
        .says("\"rc\": 2");
    let variable = "namespace: shop\nformat: toml\nvars: {a: 1}\ncontent: \"{% raw %}[queues.send_email.limits]\\nwaiting = {{ b }}\\n{% endraw %}\"";
    site.task(variable, &[])
        .ends(false, "failed=1")
        .says("b")
        .says("\"rc\": 2");
    let moved = "namespace: shop\nif_rev: 7\ncontent: {queues: {send_email: {limits: {waiting: 5}}}}";
    site.task(moved, &[]).ends(false, "failed=1").says("\"rc\": 5");
    site.task("namespace: shop", &[])
        .ends(false, "failed=1")
        .says("one of the following is required");
    assert_eq!(
        site.raw(&["EXISTS", "sb:config:{shop}"]).await,
        Value::Int(0),
        "nothing was applied"
    );
}
