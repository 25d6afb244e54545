//! `config apply --inflight`: what becomes of what runs on versions that a document withdraws.

use serde_json::{Value, json};

use crate::cli::{Mail, OK, USAGE};

const BACK: &str = "[queues.mail.gate]\nactive = 'v1'\ncandidate = ''\npercent = 0\n";

#[tokio::test]
async fn a_document_that_withdraws_a_version_says_what_becomes_of_what_runs() {
    let mail = Mail::with_worker().await;
    std::fs::write(mail.shell.dir.path().join("doc.toml"), BACK).unwrap();
    mail.set("candidate=v2 percent=10");
    mail.shell.run("config apply doc.toml --inflight kill").exits(USAGE);
    let would = mail
        .shell
        .run("config apply doc.toml --inflight revoke --dry-run -o json")
        .exits(OK);
    assert_eq!(would.json()["inflight"], "revoke");
    assert_eq!(mail.rev(), 2);
    let applied = mail
        .shell
        .run("config apply doc.toml --inflight revoke --why INC-42 -o json")
        .exits(OK);
    let applied = applied.json();
    assert_eq!(
        (&applied["inflight"], &applied["changed"]),
        (&json!("revoke"), &json!(true))
    );
    let newest = &mail.shell.json("gate history mail")[0];
    assert_eq!(
        (&newest["source"], &newest["inflight"], &newest["rev"], &newest["why"]),
        (&json!("config"), &json!("revoke"), &json!(3), &json!("INC-42"))
    );
    let state = mail
        .server
        .cli(&["HGET", "sb:gatestate:{shop:mail}", "min_rev:v2"])
        .await;
    assert_eq!(redis::from_redis_value::<String>(state).unwrap(), "3");
    // Applied again it changes nothing, and stops nothing anew.
    let again = mail
        .shell
        .run("config apply doc.toml --inflight revoke -o json")
        .exits(OK);
    let again = again.tells("no gate changes, so --inflight stops nothing");
    assert_eq!((&again.json()["changed"], mail.rev()), (&json!(false), 3));
    // So does going back.
    mail.set("candidate=v2 percent=10");
    let reverted = mail
        .shell
        .run("config revert --to 1 --inflight cancel -o json")
        .exits(OK)
        .json();
    assert_eq!(
        (&reverted["inflight"], &reverted["reverts"]),
        (&json!("cancel"), &json!(1))
    );
    assert_eq!(mail.shell.json("gate history mail")[0]["inflight"], "cancel");
    assert_eq!(mail.gate()["candidate"], Value::Null);
}
