//! `switchback config`: the real binary against a real server.

use std::{io::Write as _, process::Stdio, time::Duration};

use serde_json::{Value, json};
use switchback_tests::{Link, Mode, Process, eventually, patience};

use crate::cli::{FAILED, Mail, NOT_FOUND, OK, REFUSED, Ran, USAGE};

const DIFFERS: i32 = 10;

const WHOLE: &str = r#"
namespace = "shop"

[queues.mail.gate]
active = "v1"
candidate = "v2"
percent = 10
pins = { "cust-1" = "v2" }

[queues.mail.rollout]
steps = [1, 5, 25, 100]
bake = "2m"
guard = { alpha = 0.01 }

[queues.mail.retry]
max_attempts = 5
first = "2s"
longest = "10m"

[queues.mail.limits]
waiting = 5000
rate = "100/s+20"

[queues.mail.schedules.nightly]
cron = "30 2 * * *"
time_zone = "Europe/Berlin"
payload = { full = true }
"#;

impl Mail {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.shell.dir.path().join(name), text).unwrap();
    }

    /// Runs `config …` on a document.
    fn on(&self, text: &str, line: &str) -> Ran {
        self.write("doc.toml", text);
        self.shell.run(&format!("config {line}"))
    }

    fn apply(&self, text: &str) -> Value {
        self.on(text, "apply doc.toml -o json").exits(OK).json()
    }

    fn export(&self, line: &str) -> String {
        self.shell
            .run(&format!("config export {line}").trim_end().replace("  ", " "))
            .exits(OK)
            .stdout
    }

    async fn hash(&self, kind: &str, field: &str) -> Option<String> {
        let key = format!("sb:{kind}:{{shop:mail}}");
        redis::from_redis_value(self.server.cli(&["HGET", &key, field]).await).unwrap()
    }

    async fn hset(&self, kind: &str, fields: &[&str]) {
        let key = format!("sb:{kind}:{{shop:mail}}");
        self.server.cli(&[&["HSET", &key], fields].concat()).await;
    }
}

fn fields(view: &Value, list: &str) -> Vec<String> {
    let list = view[list].as_array().unwrap_or_else(|| panic!("no {list} in {view}"));
    list.iter()
        .map(|c| format!("{}.{}", c["section"].as_str().unwrap(), c["field"].as_str().unwrap()))
        .collect()
}

fn codes(view: &Value) -> Vec<&str> {
    view["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["code"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_document_is_compared_applied_and_then_nothing_differs() {
    let mail = Mail::with_worker().await;
    let diff = mail
        .on(WHOLE, "diff doc.toml -o json --exit-code")
        .exits(DIFFERS)
        .json();
    assert_eq!((&diff["changed"], &diff["revision"]), (&json!(true), &json!(0)));
    let waiting = json!({"queue": "mail", "section": "limits", "field": "waiting", "before": null, "after": 5000});
    assert!(diff["changes"].as_array().unwrap().contains(&waiting), "{diff}");
    let percent = json!({"queue": "mail", "section": "gate", "field": "percent", "before": 0, "after": 10});
    assert_eq!(
        diff["changes"].as_array().unwrap().last().unwrap()["section"],
        "gate",
        "the gate comes last"
    );
    assert!(diff["changes"].as_array().unwrap().contains(&percent), "{diff}");
    mail.shell
        .run("config diff doc.toml")
        .exits(OK)
        .says("gate.percent")
        .says("100/s+20");

    let dry = mail
        .shell
        .run("config apply doc.toml --dry-run -o json")
        .exits(OK)
        .json();
    assert_eq!(
        (&dry["changed"], &dry["dry_run"], &dry["revision"]),
        (&json!(true), &json!(true), &json!(0))
    );
    assert_eq!(dry["changes"], diff["changes"]);
    assert_eq!(
        (mail.rev(), mail.hash("limits", "waiting").await),
        (1, None),
        "a dry run changes nothing"
    );

    let ran = mail.shell.args(&[
        "config", "apply", "doc.toml", "-o", "json", "--by", "bob", "--why", "INC-42",
    ]);
    let ran = ran.exits(OK).tells("applied as revision 1").json();
    assert_eq!(
        (&ran["changed"], &ran["complete"], &ran["revision"]),
        (&json!(true), &json!(true), &json!(1))
    );
    assert_eq!(ran["changes"], diff["changes"]);
    assert!(
        ran["diff"]["after"].as_str().unwrap().contains("rate = \"100/s+20\""),
        "{ran}"
    );
    assert!(!ran["diff"]["before"].as_str().unwrap().contains("100/s+20"), "{ran}");
    let sections: Vec<&Value> = ran["applied"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| &step["section"])
        .collect();
    assert_eq!(sections, ["limits", "retry", "rollout", "schedules", "gate"]);

    assert_eq!(mail.gate()["percent"], json!(10.0));
    assert_eq!(mail.hash("limits", "rate").await.unwrap(), "100/s+20");
    let retry: Value = serde_json::from_str(&mail.hash("policy", "retry").await.unwrap()).unwrap();
    assert_eq!(retry, json!({"max_attempts": 5, "first": "2s", "longest": "10m"}));
    let rollout: Value = serde_json::from_str(&mail.hash("policy", "rollout").await.unwrap()).unwrap();
    assert_eq!(rollout["guard"], json!({"alpha": 0.01}));
    let schedule = mail.shell.json("schedule show mail nightly");
    assert_eq!((&schedule["by"], &schedule["source"]), (&json!("bob"), &json!("cli")));
    let newest = &mail.shell.json("gate history mail")[0];
    assert_eq!(
        (&newest["source"], &newest["by"], &newest["why"], &newest["rev"]),
        (&json!("config"), &json!("bob"), &json!("INC-42"), &json!(2))
    );

    let again = mail.apply(WHOLE);
    assert_eq!(
        (&again["changed"], &again["revision"]),
        (&json!(false), &json!(1)),
        "{again}"
    );
    assert_eq!(
        (again["changes"].clone(), mail.rev()),
        (json!([]), 2),
        "no revision without a change"
    );
    mail.shell
        .run("config diff doc.toml --exit-code")
        .exits(OK)
        .tells("nothing differs");
    let history = mail.shell.json("config history");
    assert_eq!(history.as_array().unwrap().len(), 1);
    assert_eq!(
        (
            &history[0]["state"],
            &history[0]["source"],
            &history[0]["by"],
            &history[0]["why"],
            &history[0]["kept"]
        ),
        (
            &json!("done"),
            &json!("apply"),
            &json!("bob"),
            &json!("INC-42"),
            &json!(true)
        )
    );
    assert_eq!(history[0]["changes"], diff["changes"]);
    mail.shell
        .run("config history")
        .exits(OK)
        .says("bob")
        .says("and ")
        .says("INC-42");
}

#[tokio::test]
async fn what_was_exported_changes_nothing_in_any_syntax() {
    let mail = Mail::with_worker().await;
    mail.apply(WHOLE);
    let odd = r#"{"b":1.50,"a":null,"n":12345678901234567890}"#;
    mail.shell
        .args(&["schedule", "set", "mail", "a.b", "--cron", "@daily", "--payload", odd])
        .exits(OK);
    mail.shell.run("queue limits mail --dead 0 --concurrency 7").exits(OK);
    let code = r#"{"cron":"@hourly","payload":1,"source":"code"}"#;
    mail.hset("schedules", &["of-code", code]).await;
    mail.server.cli(&["SADD", "sb:queues:{shop}", "bare"]).await;
    for (format, name) in [
        ("table", "x.toml"),
        ("yaml", "x.yaml"),
        ("json", "x.json"),
        ("jsonl", "y.json"),
    ] {
        for complete in ["", " --complete"] {
            let text = mail.export(&format!("-o {format}{complete}"));
            assert!(!text.contains("of-code"), "code declares it: {text}");
            mail.write(name, &text);
            let diff = mail.shell.run(&format!("config diff {name} -o json --exit-code"));
            assert_eq!(diff.code, OK, "{text}\n{diff:#?}");
            let applied = mail.shell.run(&format!("config apply {name} -o json")).exits(OK).json();
            assert_eq!(applied["changed"], json!(false), "{applied}");
        }
    }
    let stored = mail.hash("schedules", "a.b").await.unwrap();
    assert!(stored.contains("1.50"), "byte for byte: {stored}");
    let one = mail.export("mail");
    assert!(one.contains("[queues.mail.gate]") && !one.contains("bare"), "{one}");
    mail.shell
        .run("config export nope")
        .exits(NOT_FOUND)
        .tells("there are: bare, mail");
    let piped = {
        let mut child = mail
            .shell
            .command(&["config", "diff", "-", "--format", "toml", "--exit-code"]);
        let mut child = child
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(one.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    assert_eq!(piped.status.code(), Some(OK), "{piped:?}");
}

#[tokio::test]
async fn a_section_is_the_whole_truth_and_what_is_not_there_is_left_alone() {
    let mail = Mail::with_worker().await;
    mail.apply(WHOLE);
    mail.hset(
        "schedules",
        &["of-code", r#"{"cron":"@hourly","payload":1,"source":"code"}"#],
    )
    .await;
    // Of the gate, fields that are not named stay; the other sections are not there.
    let changed = mail.apply("[queues.mail.gate]\npercent = 20");
    assert_eq!(fields(&changed, "changes"), ["gate.percent"]);
    assert_eq!(mail.gate()["candidate"], json!("v2"));
    assert_eq!(mail.hash("limits", "waiting").await.unwrap(), "5000");
    let text = "[queues.mail.limits]\nrate = \"5/s\"\n[queues.mail.retry]\nmax_attempts = 2\n[queues.mail.rollout]\n\
                [queues.mail.schedules]";
    let changed = mail.apply(text);
    assert_eq!(
        fields(&changed, "changes")[..5],
        [
            "limits.rate",
            "limits.waiting",
            "retry.first",
            "retry.longest",
            "retry.max_attempts"
        ]
    );
    assert_eq!(mail.hash("limits", "waiting").await, None, "not named: the default");
    assert_eq!(mail.hash("policy", "retry").await.unwrap(), r#"{"max_attempts":2}"#);
    assert_eq!(mail.hash("policy", "rollout").await, None);
    assert_eq!(mail.hash("schedules", "nightly").await, None);
    assert!(
        mail.hash("schedules", "of-code").await.is_some(),
        "code would declare it again"
    );
    // Named, it is the document's.
    let named = "[queues.mail.schedules.of-code]\ncron = \"@hourly\"\npayload = 1";
    assert_eq!(fields(&mail.apply(named), "changes"), ["schedules.of-code.source"]);
    assert_eq!(mail.apply(named)["changed"], json!(false));
    assert_eq!(mail.gate()["percent"], json!(20.0));
}

#[tokio::test]
async fn documents_that_cannot_be_understood_change_nothing_and_say_where() {
    let mail = Mail::with_worker().await;
    for (text, why) in [
        (
            "[queues.mail.gate]\nactiv = \"v2\"",
            "queues.mail.gate.activ: unknown field `activ`",
        ),
        (
            "[queues.mail.gate]\nactive = 2",
            "queues.mail.gate.active: invalid type",
        ),
        ("[queues.mail.gate]\npercent = 100.5", "0 to 100"),
        ("[queues.mail.limits]\nrate = \"fast\"", "100/s"),
        ("[queues.mail.retry]\nmax_attempt = 2", "queues.mail.retry.max_attempt"),
        ("[queues.mail.rollout]\nsteps = [5, 1]", "1 % after 5 %"),
        ("[queues.mail.schedules.n]\ncron = \"every day\"\npayload = 1", "cron"),
        ("[queues.mail", "line 1"),
        ("namespace = \"blog\"", "it is for namespace blog"),
    ] {
        for verb in ["diff", "apply", "drift"] {
            mail.on(text, &format!("{verb} doc.toml")).exits(USAGE).tells(why);
        }
    }
    mail.write("huge.toml", &format!("# {}", "x".repeat(1024 * 1024)));
    mail.shell
        .run("config apply huge.toml")
        .exits(USAGE)
        .tells("longer than 1048576 bytes");
    let many: String = (0..10_001).map(|n| format!("[queues.q{n}]\n")).collect();
    mail.on(&many, "apply doc.toml")
        .exits(USAGE)
        .tells("the limit is 10000");
    mail.shell
        .run("config apply none.toml")
        .exits(USAGE)
        .tells("cannot read none.toml");
    mail.shell.run("config apply - ").exits(USAGE);
    mail.write("doc.txt", "");
    mail.shell.run("config apply doc.txt").exits(USAGE).tells("--format");
    mail.shell
        .run("config export --rev 7")
        .exits(NOT_FOUND)
        .tells("no revision 7");
    mail.shell.run("config revert --to 7").exits(NOT_FOUND);
    assert_eq!((mail.rev(), mail.shell.json("config history")), (1, json!([])));
    // The document's namespace holds when nobody else names one.
    mail.write("blog.toml", "namespace = \"blog\"");
    let mut bare = mail.shell.bare(&["config", "diff", "blog.toml", "-o", "json"]);
    let ran = crate::cli::finish(bare.env("SWITCHBACK_REDIS_URL", &mail.shell.url))
        .exits(OK)
        .json();
    assert_eq!(ran["namespace"], json!("blog"));
}

#[tokio::test]
async fn templates_take_variables_per_environment() {
    let mail = Mail::with_worker().await;
    mail.write(
        "shop.toml.j2",
        "[queues.mail.gate]\ncandidate = {{ candidate | tojson }}\npercent = {{ percent }}\n",
    );
    mail.write(
        "vars.toml",
        "candidate = \"v2\"\npercent = 1\n[production]\npercent = 50\n[staging]\npercent = 100\n",
    );
    for (line, why) in [
        ("apply shop.toml.j2", "line 2: the variable candidate is not defined"),
        (
            "apply shop.toml.j2 --var candidate=v2",
            "line 3: the variable percent is not defined",
        ),
        (
            "apply shop.toml.j2 --vars vars.toml --env test",
            "there are: production, staging",
        ),
        ("apply shop.toml.j2 --env production", "--vars"),
        ("apply shop.toml.j2 --var candidate", "NAME=VALUE"),
    ] {
        mail.shell.run(&format!("config {line}")).exits(USAGE).tells(why);
    }
    // Its name does not say that it is a template.
    mail.write(
        "shop.toml",
        "[queues.mail.gate]\ncandidate = \"{{ candidate }}\"\npercent = 1\n",
    );
    mail.shell
        .run("config apply shop.toml")
        .exits(USAGE)
        .tells("If it is a template: give its variables with --var");
    assert_eq!(mail.rev(), 1);
    mail.shell
        .run("config apply shop.toml.j2 --vars vars.toml --env production")
        .exits(OK);
    assert_eq!(mail.gate()["percent"], json!(50.0));
    mail.shell
        .run("config apply shop.toml.j2 --vars vars.toml --env production --var percent=7.5")
        .exits(OK);
    assert_eq!(mail.gate()["percent"], json!(7.5));
    // Braces of a document that is no template are its own.
    let text = "[queues.mail.schedules.n]\ncron = \"@daily\"\npayload = \"{{ name }}\"";
    mail.apply(text);
    assert_eq!(
        mail.shell.json("schedule show mail n")["payload"],
        json!("\"{{ name }}\"")
    );
    let bomb = "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
    mail.write("bomb.toml.j2", bomb);
    mail.shell.run("config apply bomb.toml.j2").exits(USAGE);
}

#[tokio::test]
async fn what_would_strand_work_is_refused_unless_forced_and_that_is_recorded() {
    let mail = Mail::with_worker().await;
    mail.join_and_leave(&["v3"]).await;
    let refused = |text: &str, code: &str, why: &str| {
        mail.on(text, "diff doc.toml -o json").exits(OK).tells(why);
        let ran = mail
            .on(text, "apply doc.toml -o json")
            .exits(REFUSED)
            .tells(why)
            .tells("nothing was changed");
        assert_eq!(codes(&ran.json()), [code]);
        mail.shell.run("config apply doc.toml --dry-run").exits(REFUSED);
    };
    // A version that no live worker has; and one that no worker ever had, which no force helps.
    refused(
        "[queues.mail.gate]\nactive = \"v3\"",
        "no_worker",
        "no live worker of shop/mail has v3",
    );
    refused(
        "[queues.mail.gate]\npins = { c1 = \"v3\" }",
        "no_worker",
        "no live worker of shop/mail has v3",
    );
    refused(
        "[queues.mail.gate]\nactive = \"v9\"",
        "gate_refused",
        "versions that ever joined: v1, v2, v3",
    );
    mail.shell
        .run("config apply doc.toml --force")
        .exits(REFUSED)
        .tells("unknown version");
    refused("[queues.ghost.gate]\nactive = \"v1\"", "gate_refused", "it has no gate");
    refused(
        "[queues.mial.limits]\ndead = 5",
        "no_queue",
        "there is no queue mial yet",
    );
    // More waits, or is dead, than there may be.
    for _ in 0..3 {
        mail.shell.run("task enqueue mail --payload 1").exits(OK);
        mail.server
            .cli(&["XADD", "sb:dead:{shop:mail}", "*", "payload", "1"])
            .await;
    }
    refused("[queues.mail.limits]\nwaiting = 3", "queue_full", "3 tasks in line");
    refused("[queues.mail.limits]\ndead = 3", "dead_limit", "3 dead letters");
    mail.apply("[queues.mail.limits]\nwaiting = 4\ndead = 4");
    mail.shell.run("gate pause mail").exits(OK);
    mail.hset("limits", &["dead", "3"]).await;
    refused(
        "[queues.mail.gate]\npaused = false",
        "dead_limit",
        "hold the queue at once",
    );
    mail.hset("limits", &["dead", "4"]).await;
    mail.apply("[queues.mail.gate]\npaused = false");
    // A version that still has tasks in its lane. Nobody here answers whether it can read what waits.
    mail.set("candidate=v2 percent=50 --force");
    mail.server
        .cli(&["XADD", "sb:lane:{shop:mail}:v2", "*", "payload", "1"])
        .await;
    refused(
        "[queues.mail.gate]\ncandidate = \"\"",
        "tasks_in_lane",
        "1 task waiting in the lane of v2",
    );
    let before = mail.rev();
    let forced = mail
        .on(
            "[queues.mail.gate]\ncandidate = \"\"",
            "apply doc.toml --force --by eve -o json",
        )
        .exits(OK)
        .json();
    assert_eq!((codes(&forced), mail.rev()), (vec!["tasks_in_lane"], before + 1));
    let newest = &mail.shell.json("config history")[0];
    assert_eq!(
        (&newest["forced"][0]["code"], &newest["by"]),
        (&json!("tasks_in_lane"), &json!("eve"))
    );
    let entry = format!(
        "{:?}",
        mail.server
            .cli(&["XREVRANGE", "sb:history:{shop:mail}", "+", "-", "COUNT", "1"])
            .await
    );
    assert!(entry.contains("forced") && entry.contains("lane of v2"), "{entry}");
    // Removing a schedule, and forcing a queue that is not there yet, is fine.
    mail.on("[queues.mial.limits]\ndead = 5", "apply doc.toml --force")
        .exits(OK);
    assert!(mail.export("").contains("[queues.mial.limits]"));
    mail.apply("[queues.mail.schedules.n]\ncron = \"@daily\"\npayload = 1");
    mail.apply("[queues.mail.schedules]");
}

#[tokio::test]
async fn if_rev_guards_the_configuration_and_a_person_in_between_wins() {
    let mail = Mail::with_worker().await;
    mail.on("[queues.mail.limits]\ndead = 5", "apply doc.toml --if-rev 0")
        .exits(OK);
    let late = mail
        .on("[queues.mail.limits]\ndead = 6", "apply doc.toml --if-rev 0")
        .exits(REFUSED);
    late.tells("is at revision 1, not 0; nothing was changed");
    assert_eq!(mail.hash("limits", "dead").await.unwrap(), "5");
    mail.on("[queues.mail.limits]\ndead = 6", "apply doc.toml --if-rev 1")
        .exits(OK);

    // Somebody flips the gate while an apply is on its way: the link is slow, the person is not. He looks and acts in one
    // step: what the apply sends next is under way for four times as long as he pauses between two looks.
    let link = Link::to(mail.server.port()).await;
    link.set(Mode::Delay(Duration::from_millis(100))).await;
    mail.write(
        "doc.toml",
        "[queues.mail.limits]\ndead = 7\n[queues.mail.gate]\ncandidate = \"v2\"\npercent = 10",
    );
    let mut command = mail.shell.command(&["config", "apply", "doc.toml", "-o", "json"]);
    command.env("SWITCHBACK_REDIS_URL", mail.server.url_through(link.port()));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let meanwhile = "if redis.call('HGET', KEYS[1], 'dead') ~= '7' then return 0 end
        redis.call('HSET', KEYS[2], 'paused', '1', 'by', 'pat')
        return 1";
    let keys = ["sb:limits:{shop:mail}", "sb:gate:{shop:mail}"];
    eventually(
        "the limits are applied",
        patience(Duration::from_secs(60)),
        async || mail.server.cli(&[&["EVAL", meanwhile, "2"], &keys[..]].concat()).await == redis::Value::Int(1),
    )
    .await;
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert_eq!(output.status.code(), Some(FAILED), "{stdout}\n{stderr}");
    let words =
        "somebody changed the gate (it is at revision 2) of shop/mail meanwhile; applied: mail limits; left: mail gate";
    assert!(stderr.contains(words), "{stderr}");
    let view: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&view["changed"], &view["complete"]), (&json!(true), &json!(false)));
    assert_eq!(view["left"], json!([{"queue": "mail", "section": "gate"}]));
    let gate = mail.gate();
    assert_eq!(
        (&gate["paused"], &gate["candidate"]),
        (&json!(true), &Value::Null),
        "the person won"
    );
    assert_eq!(mail.shell.json("config history")[0]["state"], json!("stopped"));
    let again = mail.shell.run("config apply doc.toml -o json").exits(OK).json();
    assert_eq!(
        fields(&again, "changes"),
        ["gate.candidate", "gate.percent"],
        "it completes what was left"
    );
    assert_eq!(
        (&mail.gate()["paused"], &mail.gate()["percent"]),
        (&json!(true), &json!(10.0))
    );
}

/// Many queues, so that there is much to apply.
fn wide(dead: u32) -> String {
    (0..30)
        .map(|n| format!("[queues.q{n}.limits]\ndead = {dead}\n[queues.q{n}.retry]\nmax_attempts = {dead}\n"))
        .collect()
}

#[tokio::test]
async fn an_apply_killed_between_two_writes_is_completed_by_the_next() {
    let mail = Mail::new().await;
    for n in 0..30 {
        mail.server.cli(&["SADD", "sb:queues:{shop}", &format!("q{n}")]).await;
    }
    let link = Link::to(mail.server.port()).await;
    link.set(Mode::Delay(Duration::from_millis(15))).await;
    mail.write("doc.toml", &wide(9));
    let mut command = mail.shell.command(&["config", "apply", "doc.toml"]);
    command.env("SWITCHBACK_REDIS_URL", mail.server.url_through(link.port()));
    let process = Process::spawn(&mut command);
    let is_set = async |n: u32| {
        let key = format!("sb:limits:{{shop:q{n}}}");
        matches!(mail.server.cli(&["EXISTS", &key]).await, redis::Value::Int(1))
    };
    eventually(
        "the first queue is applied",
        patience(Duration::from_secs(60)),
        async || {
            if is_set(0).await {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        },
    )
    .await;
    process.kill9();
    assert!(!is_set(9).await, "killed in the middle"); // q9 is the last by name
    let history = mail.shell.json("config history");
    assert_eq!(
        (&history[0]["rev"], &history[0]["state"]),
        (&json!(1), &json!("unfinished"))
    );
    let left = mail
        .shell
        .run("config diff doc.toml -o json --exit-code")
        .exits(DIFFERS)
        .json();
    assert!(
        left["changes"].as_array().unwrap().len() < 60,
        "some of it is done: {left}"
    );
    let done = mail.shell.run("config apply doc.toml -o json").exits(OK).json();
    assert_eq!((&done["revision"], &done["changes"]), (&json!(2), &left["changes"]));
    mail.shell.run("config diff doc.toml --exit-code").exits(OK);
    assert!(is_set(9).await);
}

#[tokio::test]
async fn two_applies_at_once_are_two_revisions_and_end_in_one_of_the_documents() {
    let mail = Mail::with_worker().await;
    let doc = |version: &str, dead: u32| {
        format!("[queues.mail.limits]\ndead = {dead}\n[queues.mail.gate]\ncandidate = \"v2\"\npercent = {version}\n")
    };
    mail.write("a.toml", &doc("10", 10));
    mail.write("b.toml", &doc("20", 20));
    let start = |name: &str, more: &[&str]| {
        let mut command = mail.shell.command(&[&["config", "apply", name], more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for _ in 0..5 {
        let both = [start("a.toml", &[]), start("b.toml", &[])];
        for child in both {
            let output = child.wait_with_output().unwrap();
            // Whoever was slower may have found it changed under its hands; that is said, and nothing is half of each.
            assert!(
                [0, FAILED, REFUSED].contains(&output.status.code().unwrap()),
                "{output:?}"
            );
        }
        let rev = |ran: Ran| ran.exits(OK).json()["revision"].as_u64().unwrap();
        let now = rev(mail.shell.run("config diff a.toml -o json"));
        let at = now.to_string();
        let with = ["--if-rev", at.as_str()];
        let both = [start("a.toml", &with), start("b.toml", &with)];
        let codes = both.map(|child| child.wait_with_output().unwrap().status.code().unwrap());
        assert!(codes.contains(&OK), "{codes:?}");
        // At most one of two that were judged at one revision begins: the other finds that it moved, or had nothing to do.
        assert!(
            rev(mail.shell.run("config diff a.toml -o json")) <= now + 1,
            "{codes:?}"
        );
        mail.shell.run("config apply a.toml").exits(OK);
        mail.shell.run("config diff a.toml --exit-code").exits(OK);
    }
    let history = mail.shell.json("config history --limit 100");
    let revs: Vec<u64> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["rev"].as_u64().unwrap())
        .collect();
    assert!(
        revs.windows(2).all(|pair| pair[0] == pair[1] + 1),
        "each number once: {revs:?}"
    );
}

#[tokio::test]
async fn a_revision_comes_back_as_a_new_one() {
    let mail = Mail::with_worker().await;
    mail.apply(WHOLE);
    mail.apply("[queues.mail.limits]\ndead = 7\n[queues.mail.retry]\n[queues.mail.schedules]\n[queues.mail.gate]\nactive = \"v2\"\npins = {}");
    mail.shell.run("queue limits mail --concurrency 3").exits(OK);
    let dry = mail
        .shell
        .run("config revert --to 1 --dry-run -o json")
        .exits(OK)
        .json();
    assert_eq!(
        (&dry["changed"], &dry["reverts"], &dry["revision"]),
        (&json!(true), &json!(1), &json!(2))
    );
    mail.shell
        .run("config revert --to 1 --if-rev 1")
        .exits(REFUSED)
        .tells("is at revision 2");
    let ran = mail
        .shell
        .run("config revert --to 1 --why oops -o json")
        .exits(OK)
        .json();
    assert_eq!((&ran["revision"], &ran["changes"]), (&json!(3), &dry["changes"]));
    mail.on(WHOLE, "diff doc.toml --exit-code").exits(OK);
    assert_eq!(mail.hash("limits", "concurrency").await, None, "set by hand since");
    assert_eq!(mail.gate()["pins"], json!({"cust-1": "v2"}));
    let again = mail.shell.run("config revert --to 1 -o json").exits(OK).json();
    assert_eq!((&again["changed"], &again["revision"]), (&json!(false), &json!(3)));
    let history = mail.shell.json("config history");
    assert_eq!(
        (&history[0]["source"], &history[0]["reverts"], &history[0]["why"]),
        (&json!("revert"), &json!(1), &json!("oops"))
    );
    mail.shell.run("config history").exits(OK).says("revert to 1");
    mail.write("two.toml", &mail.export("--rev 2"));
    mail.shell.run("config apply two.toml").exits(OK);
    assert_eq!(mail.gate()["active"], json!("v2"));
}

#[tokio::test]
async fn drift_says_what_differs_and_who_did_it() {
    let mail = Mail::with_worker().await;
    mail.apply(WHOLE);
    mail.shell
        .run("config drift doc.toml --exit-code")
        .exits(OK)
        .tells("no drift");
    mail.hset("gate", &["percent", "35", "by", "pat", "why", "hunch"]).await;
    mail.shell
        .run("queue limits mail --waiting 9000 --by bob --why import")
        .exits(OK);
    mail.hset("limits", &["rate", "7/s"]).await;
    mail.hset(
        "policy",
        &["retry", r#"{"max_attempts":9,"first":"2s","longest":"10m"}"#],
    )
    .await;
    mail.shell
        .run("schedule pause mail nightly --by sue --why holidays")
        .exits(OK);
    let ran = mail
        .shell
        .run("config drift doc.toml --exit-code -o json")
        .exits(DIFFERS)
        .json();
    let of = |field: &str| {
        let list = ran["drift"].as_array().unwrap();
        let found = list
            .iter()
            .find(|d| format!("{}.{}", d["section"].as_str().unwrap(), d["field"].as_str().unwrap()) == field);
        found.unwrap_or_else(|| panic!("no {field} in {ran}")).clone()
    };
    let percent = of("gate.percent");
    assert_eq!((&percent["file"], &percent["redis"]), (&json!(10), &json!(35)));
    let who = &percent["who"];
    assert_eq!(
        (&who["source"], &who["by"], &who["why"], &who["rev"]),
        (&json!("redis-cli"), &json!("pat"), &json!("hunch"), &json!(3))
    );
    let waiting = of("limits.waiting");
    assert_eq!(
        (&waiting["redis"], &waiting["who"]["by"], &waiting["who"]["why"]),
        (&json!(9000), &json!("bob"), &json!("import"))
    );
    assert!(waiting["who"]["at_us"].as_u64().unwrap() > 1_700_000_000_000_000);
    for by_hand in ["limits.rate", "retry.max_attempts"] {
        let found = of(by_hand);
        assert!(
            found["who"].is_null() && found["note"].as_str().unwrap().contains("by hand"),
            "{found}"
        );
    }
    let paused = of("schedules.nightly.paused");
    assert_eq!(
        (&paused["who"]["by"], &paused["who"]["why"]),
        (&json!("sue"), &json!("holidays"))
    );
    assert_eq!(ran["drift"].as_array().unwrap().len(), 5, "{ran}");
    mail.shell
        .run("config drift doc.toml")
        .exits(OK)
        .says("by pat (redis-cli): hunch")
        .says("by bob (cli): import")
        .says("unknown: by hand");
    mail.shell.run("schedule rm mail nightly --by tim").exits(OK);
    let ran = mail.shell.run("config drift doc.toml -o json").exits(OK).json();
    let gone = ran["drift"]
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["field"] == "nightly.cron")
        .unwrap()
        .clone();
    assert_eq!((&gone["redis"], &gone["who"]["by"]), (&Value::Null, &json!("tim")));
    // Applied, there is none.
    assert_eq!(mail.apply(WHOLE)["changed"], json!(true));
    mail.shell.run("config drift doc.toml --exit-code").exits(OK);
}

#[tokio::test]
async fn what_makes_no_sense_is_said_and_replaced_where_the_document_speaks_of_it() {
    let mail = Mail::with_worker().await;
    mail.hset("policy", &["retry", "soon", "rollout", r#"{"step":1}"#])
        .await;
    mail.hset("limits", &["rate", "fast"]).await;
    mail.hset("schedules", &["odd", "{}"]).await;
    let hints = mail.shell.json("queue show mail")["hints"].to_string();
    assert!(
        hints.contains("bad_policy") && hints.contains("unknown field `step`"),
        "{hints}"
    );
    let text = mail.export("--complete");
    mail.shell
        .run("config export")
        .exits(OK)
        .tells("the retry policy makes no sense")
        .tells("schedule odd is broken");
    let ran = mail.apply(&text);
    let changed = fields(&ran, "changes");
    assert_eq!(
        changed,
        ["limits.rate", "retry.(invalid)", "rollout.(invalid)", "schedules.odd"]
    );
    assert_eq!(mail.apply(&text)["changed"], json!(false));
    for (kind, field) in [
        ("policy", "retry"),
        ("policy", "rollout"),
        ("limits", "rate"),
        ("schedules", "odd"),
    ] {
        assert_eq!(mail.hash(kind, field).await, None, "{kind} {field}");
    }
    mail.server.cli(&["DEL", "sb:policy:{shop:mail}"]).await;
    mail.server.cli(&["SET", "sb:policy:{shop:mail}", "x"]).await;
    mail.shell.run("config export").exits(OK).tells("is not a hash");
}

#[tokio::test]
async fn wait_says_who_does_not_obey_yet() {
    let mail = Mail::new().await;
    let one = mail.join(&["v1", "v2"], 1).await;
    let text = "[queues.mail.gate]\ncandidate = \"v2\"\npercent = 10";
    let ran = mail
        .on(text, "apply doc.toml --wait --timeout 50ms -o json")
        .exits(crate::cli::UNCONFIRMED);
    let view = ran.tells("1 of 1 worker did not say").json();
    assert_eq!(view["confirmations"][0]["missing"][0]["pid"], json!(1), "{view}");
    mail.confirm(&one, 3, "{}").await;
    let text = "[queues.mail.gate]\npercent = 20";
    let view = mail.on(text, "apply doc.toml --wait -o json").exits(OK).json();
    assert_eq!(
        (&view["confirmations"][0]["confirmed"], &view["confirmations"][0]["rev"]),
        (&json!(1), &json!(3))
    );
}
