//! A PostgreSQL server: the one that `ROLLBACK_TEST_POSTGRES` names, else one of our own on a socket in a private folder.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use rollback_core::store::Sql;

/// Tests that run side by side share one server; the last to end stops it.
static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// A server, stopped when it is dropped.
pub(crate) struct Server {
    url: String,
    own: Option<Child>,
}

/// The server, or nothing where there is none, which was said.
pub(crate) async fn server() -> Option<Arc<Server>> {
    let server = {
        let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.upgrade() {
            Some(server) => server,
            None => match Server::start() {
                Ok(server) => {
                    let server = Arc::new(server);
                    *shared = Arc::downgrade(&server);
                    server
                }
                Err(why) => {
                    super::skip("postgres", &why);
                    return None;
                }
            },
        }
    };
    let ready = async {
        while let Err(e) = Sql::connect(&server.url).await {
            assert!(e.is_transient(), "PostgreSQL will not come: {}", e.chain());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("PostgreSQL must answer within a minute");
    Some(server)
}

impl Server {
    fn start() -> Result<Self, String> {
        if let Ok(url) = env::var("ROLLBACK_TEST_POSTGRES") {
            return Ok(Self { url, own: None });
        }
        let programs =
            programs().ok_or("no initdb on the PATH or under /usr/lib/postgresql; set ROLLBACK_TEST_POSTGRES")?;
        let mut own = as_somebody(SCRIPT)?
            .env("PROGRAMS", programs)
            .env("PASSWORD", PASSWORD)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("the shell does not start: {e}"))?;
        let mut folder = String::new();
        let out = own.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut folder).map_err(|e| e.to_string())?;
        if folder.trim().is_empty() {
            return Err(format!("initdb failed: {:?}", own.wait()));
        }
        let url = format!("postgres://rollback:{PASSWORD}@localhost/postgres?host={}", folder.trim());
        Ok(Self { url, own: Some(own) })
    }

    /// The URL of a schema of its own, empty.
    pub(crate) async fn schema(&self) -> String {
        let name = format!("test_{}", rollback_core::model::DriverId::fresh().as_str().replace('-', "_"));
        let store = Sql::connect(&self.url).await.expect("it answered before");
        store.batch(format!("CREATE SCHEMA {name}")).await.expect("we may create schemas");
        let and = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{and}options=-c%20search_path%3D{name}", self.url)
    }

    /// Removes such a schema, which matters on a server that is not ours.
    pub(crate) async fn remove(&self, url: &str) {
        let name = url.rsplit("%3D").next().expect("the URL of a schema");
        let store = Sql::connect(&self.url).await.expect("it answered before");
        store.batch(format!("DROP SCHEMA {name} CASCADE")).await.expect("we created it");
    }

    /// The URL with another password.
    pub(crate) fn with_password(&self, password: &str) -> Option<String> {
        self.own.as_ref().map(|_| self.url.replace(PASSWORD, password))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(own) = &mut self.own {
            // The script waits for its standard input to end.
            drop(own.stdin.take());
            drop(own.wait());
        }
    }
}

/// The folder with `initdb` and `postgres`.
fn programs() -> Option<PathBuf> {
    let complete = |folder: &Path| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let on_path = env::var_os("PATH").unwrap_or_default();
    // A link on the PATH may stand alone, far from its server.
    let linked = |folder: PathBuf| folder.join("initdb").canonicalize().ok()?.parent().map(Path::to_path_buf);
    if let Some(folder) = env::split_paths(&on_path).filter_map(linked).find(|folder| complete(folder)) {
        return Some(folder);
    }
    let versions = Path::new("/usr/lib/postgresql").read_dir().ok()?;
    let mut folders: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, folder)| complete(folder))
        .collect();
    folders.sort();
    folders.pop().map(|(_, folder)| folder)
}

/// A shell that runs this script, never as root, whom PostgreSQL refuses.
fn as_somebody(script: &str) -> Result<Command, String> {
    let output = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let mut command = Command::new("sh");
    if output("id", &["-u"]).as_deref() == Some("0") {
        let user = ["postgres", "nobody"].into_iter().find(|user| output("id", &["-u", user]).is_some());
        let user = user.ok_or("we are root, and there is no user postgres or nobody to run it as")?;
        if output("runuser", &["-u", user, "--", "true"]).is_some() {
            command = Command::new("runuser");
            command.args(["-u", user, "--", "sh"]);
        } else if let Some(group) = output("id", &["-g", user])
            && output("setpriv", &["--reuid", user, "--regid", &group, "--clear-groups", "true"]).is_some()
        {
            command = Command::new("setpriv");
            command.args(["--reuid", user, "--regid", &group, "--clear-groups", "sh"]);
        } else {
            command = Command::new("su");
            command.args([user, "-s", "/bin/sh"]);
        }
    }
    command.args(["-c", script]);
    Ok(command)
}

/// Known to nobody but the server of this run, which only this user can reach.
const PASSWORD: &str = "only-for-tests";

/// Ends with the process that started it, however that ends: then its standard input is closed.
const SCRIPT: &str = r#"
set -e
folder=$(mktemp -d /tmp/rollback-postgres.XXXXXX)
trap 'rm -rf "$folder"' EXIT
trap '' INT TERM
printf %s "$PASSWORD" > "$folder/password"
"$PROGRAMS/initdb" -D "$folder/data" -U rollback -A scram-sha-256 --pwfile="$folder/password" -E UTF8 --locale=C -N \
    > "$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
"$PROGRAMS/postgres" -D "$folder/data" -k "$folder" -c listen_addresses= -c port=5432 -c fsync=off \
    -c max_connections=200 > "$folder/log" 2>&1 < /dev/null &
server=$!
echo "$folder"
cat > /dev/null
kill -QUIT $server
wait $server || true
"#;
