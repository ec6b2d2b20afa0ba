//! What processes use, as Linux counts it in /proc (see proc(5)).

use std::{fs, ops::Sub};

use super::Result;

/// Ticks of a second in /proc/PID/stat: 100 wherever Reel runs.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU seconds used by each side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub client: f64,
    pub server: f64,
    pub database: f64,
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            client: self.client - before.client,
            server: self.server - before.server,
            database: self.database - before.database,
        }
    }
}

/// Reads how much CPU this process, a server, and a PostgreSQL with all its children, ended ones included, have used.
pub fn cpu(server: u32, postmaster: Option<u32>) -> Result<Cpu> {
    let database = postmaster.map(database_ticks).transpose()?.unwrap_or(0);
    Ok(Cpu {
        client: own_ticks(std::process::id())? as f64 / TICKS_A_SECOND,
        server: own_ticks(server)? as f64 / TICKS_A_SECOND,
        database: database as f64 / TICKS_A_SECOND,
    })
}

fn own_ticks(pid: u32) -> Result<u64> {
    let stat = Stat::read(&pid.to_string()).ok_or_else(|| format!("process {pid} has ended"))?;
    Ok(stat.own_ticks)
}

fn database_ticks(postmaster: u32) -> Result<u64> {
    let own = Stat::read(&postmaster.to_string()).ok_or("PostgreSQL has ended")?;
    let mut ticks = own.own_ticks + own.ended_children_ticks;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else { continue };
        // What has ended meanwhile is among the ended children the next time.
        ticks += Stat::read(pid).filter(|stat| stat.parent == postmaster).map_or(0, |stat| stat.own_ticks);
    }
    Ok(ticks)
}

struct Stat {
    parent: u32,
    /// Of user and system time.
    own_ticks: u64,
    ended_children_ticks: u64,
}

impl Stat {
    fn read(pid: &str) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything. After it come fields 3 and on.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            own_ticks: field(14)? + field(15)?,
            ended_children_ticks: field(16)? + field(17)?,
        })
    }
}

/// The most memory that a process has had, in MiB.
pub fn peak_memory_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
