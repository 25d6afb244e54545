use super::*;

#[tokio::test]
async fn answers_on_its_own_port_and_is_gone_after_drop() {
    let (a, b) = tokio::join!(RedisServer::start(), RedisServer::start());
    assert_ne!(a.port(), b.port());
    assert_eq!(a.cli(&["SET", "k", "1"]).await, Value::Okay);
    assert_eq!(b.cli(&["EXISTS", "k"]).await, Value::Int(0));
    assert!(a.try_cli(&["LPUSH", "k", "x"]).await.is_err());

    let (port, dir) = (a.port(), a.dir().to_owned());
    drop(a);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    assert!(!dir.exists());
}

#[tokio::test]
async fn aof_survives_a_kill_and_memory_does_not() {
    let keeps = RedisServer::builder().aof(true).start().await;
    let forgets = RedisServer::start().await;
    for server in [&keeps, &forgets] {
        server.cli(&["SET", "k", "1"]).await;
        let (port, pid) = (server.port(), server.pid());
        server.kill9();
        assert!(server.try_connection().await.is_err());
        server.restart().await;
        assert_eq!(server.port(), port);
        assert_ne!(server.pid(), pid);
    }
    assert_eq!(keeps.cli(&["EXISTS", "k"]).await, Value::Int(1));
    assert_eq!(forgets.cli(&["EXISTS", "k"]).await, Value::Int(0));

    keeps.restart().await; // the orderly way too
    assert_eq!(keeps.cli(&["EXISTS", "k"]).await, Value::Int(1));
}

#[tokio::test]
async fn a_password_is_part_of_the_url() {
    let server = RedisServer::builder().arg("--requirepass", "x").start().await;
    assert_eq!(server.url(), format!("redis://:x@127.0.0.1:{}", server.port()));
    assert_eq!(server.cli(&["PING"]).await, Value::SimpleString("PONG".to_owned()));
}

#[tokio::test]
async fn a_frozen_server_answers_after_the_thaw_and_can_be_dropped() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    server.stop();
    let ping = redis::cmd("PING");
    let answer = ping.query_async::<String>(&mut connection);
    tokio::pin!(answer);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), &mut answer)
            .await
            .is_err()
    );
    server.cont();
    assert_eq!(answer.await.unwrap(), "PONG");
    server.stop(); // drop must end it all the same
}

#[tokio::test]
async fn a_taken_port_is_told_apart_from_a_failure() {
    let taken = RedisServer::start().await;
    let options = RedisServer::builder();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut child = options.spawn(dir.path(), taken.port(), &log);
    assert!(matches!(
        ready(&mut child, taken.port(), &log).await,
        Err(NotReady::PortTaken)
    ));
}

#[tokio::test]
#[should_panic(expected = "the server ended at once")]
async fn a_bad_setting_fails_with_the_log() {
    RedisServer::builder().arg("--no-such-setting", "1").start().await;
}
