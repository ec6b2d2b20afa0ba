//! What keeps a PostgreSQL server from its work without killing it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sea_orm::sqlx::{self, Connection as _, postgres::PgConnection};

use super::{Postgres, user};
use crate::{crash::process::signal, harness::administer};

/// All connections that a server has to give, so that nobody else has one. Given back when dropped.
pub struct AllConnections {
    _held: Vec<PgConnection>,
}

impl Postgres {
    /// SIGSTOP to all of its processes.
    pub fn pause(&self) {
        // The one that makes others first: none is made meanwhile.
        send("STOP", &[self.child.id()]);
        send("STOP", &self.children());
    }

    /// SIGCONT to all of its processes, however many are left.
    pub fn resume(&self) {
        send("CONT", &self.children());
        send("CONT", &[self.child.id()]);
    }

    /// The fast shutdown: everybody is thrown out, what is committed is kept.
    pub fn stop(&mut self) {
        signal("INT", &self.child.id().to_string());
        assert!(self.child.wait().unwrap().success(), "PostgreSQL did not stop in good order");
    }

    /// Whether the server itself has given up, as it does when its write-ahead log has no room.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Changes a setting that is read at the start, and starts again.
    pub async fn set_and_restart(&mut self, setting: &str, value: &str) {
        administer(&self.url("postgres"), &format!("ALTER SYSTEM SET {setting} = {value}")).await;
        self.stop();
        self.start_again().await;
    }

    /// Has it speak TLS, with a certificate for its address by an authority of its own, and gives that authority's.
    pub async fn encrypt(&mut self) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &authority).unwrap();
        for (name, text) in [("server.crt", certificate.pem()), ("server.key", key.serialize_pem())] {
            let file = self.folder.path().join("data").join(name);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            if let Some((uid, gid)) = user() {
                std::os::unix::fs::chown(&file, Some(uid), Some(gid)).unwrap();
            }
        }
        self.set_and_restart("ssl", "on").await;
        authority.pem()
    }

    /// Makes a database whose tables lie in this folder.
    pub async fn database_in(&self, name: &str, folder: &Path) -> crate::harness::TestDatabase {
        let place = folder.join("tablespace");
        fs::create_dir(&place).unwrap();
        if let Some((uid, gid)) = user() {
            std::os::unix::fs::chown(&place, Some(uid), Some(gid)).unwrap();
        }
        let server = self.url("postgres");
        administer(&server, &format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display())).await;
        administer(&server, &format!("CREATE DATABASE {name} TABLESPACE {name}")).await;
        crate::harness::TestDatabase::at(self.url(name))
    }

    /// Throws out Reel's connections, and takes these and all others. Those that are being made are not seen yet, so it is done
    /// only when as many are held as there can be.
    pub async fn take_all_connections(&self) -> AllConnections {
        let url = self.url("postgres");
        let mut held = vec![PgConnection::connect(&url).await.unwrap()];
        let count: i32 = sqlx::query_scalar("SELECT current_setting('max_connections')::integer")
            .fetch_one(&mut held[0])
            .await
            .unwrap();
        while held.len() < usize::try_from(count).unwrap() {
            sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'reel'")
                .execute(&mut held[0])
                .await
                .unwrap();
            match PgConnection::connect(&url).await {
                Ok(connection) => held.push(connection),
                Err(error) => {
                    let code = error.as_database_error().and_then(|error| error.code().map(String::from));
                    assert_eq!(code.as_deref(), Some("53300"), "{error}");
                }
            }
        }
        AllConnections { _held: held }
    }

    fn children(&self) -> Vec<u32> {
        let parent = self.child.id().to_string();
        let processes =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let is_child = |process: &u32| {
            // After the name, which is in parentheses and may have anything in it: the state, then the parent.
            let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            fields.split_whitespace().nth(1) == Some(parent.as_str())
        };
        processes.filter(is_child).collect()
    }
}

/// Sends a signal to those processes that still live.
fn send(name: &str, processes: &[u32]) {
    for process in processes {
        let _ = Command::new("sh").args(["-c", &format!("kill -{name} {process} 2>/dev/null")]).status();
    }
}
