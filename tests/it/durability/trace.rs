//! Reads what `strace` has written. Its lines are in the order in which things happened: a thread goes on only after its line
//! is written, so what follows from a call comes after it.

use std::collections::HashMap;

/// One system call, from the line that it began in to the line that it ended in.
struct Call {
    name: String,
    /// Everything that is said of it: arguments and result.
    text: String,
    began: usize,
    /// None if it never returned.
    ended: Option<usize>,
}

/// The calls of one process.
pub struct Trace {
    calls: Vec<Call>,
    /// The end of the name of the file that has to be synced.
    log: String,
}

const RECEIVE: [&str; 4] = ["read", "readv", "recvfrom", "recvmsg"];
const SEND: [&str; 4] = ["write", "writev", "sendto", "sendmsg"];
const WRITE: [&str; 4] = ["write", "writev", "pwrite64", "pwritev"];
const SYNC: [&str; 2] = ["fsync", "fdatasync"];

impl Trace {
    /// A line is `PID name(arguments) = result`, or where other threads' lines come in between,
    /// `PID name(arguments <unfinished ...>` and `PID <... name resumed>rest) = result`.
    pub fn parse(text: &str, log: &str) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        let mut unfinished: HashMap<&str, usize> = HashMap::new();
        for (line, said) in text.lines().enumerate() {
            let (pid, said) = said.split_once(' ').expect("a process id");
            let said = said.trim_start();
            if let Some(resumed) = said.strip_prefix("<... ") {
                // One that had begun before it was traced is of no interest.
                let Some(index) = unfinished.remove(pid) else { continue };
                calls[index].text.push_str(resumed);
                calls[index].ended = Some(line);
            } else if let Some((name, _)) = said.split_once('(') {
                let is_unfinished = said.ends_with("<unfinished ...>");
                if is_unfinished {
                    unfinished.insert(pid, calls.len());
                }
                let ended = (!is_unfinished).then_some(line);
                calls.push(Call { name: name.to_owned(), text: said.to_owned(), began: line, ended });
            }
        }
        Self { calls, log: format!("{log}>") }
    }

    /// Checks that a batch's receipt was sent after what its log has of it was synced.
    pub fn check(&self, mark: &str) {
        let (arrived, answered) = self.arrival_and_receipt(mark);
        let written = self.log_writes(arrived, answered).filter(|call| call.text.contains(mark)).map(|call| call.began);
        let first = written.min().unwrap_or_else(|| panic!("{mark} was answered and is not in the log"));
        self.check_synced(mark, first, answered);
    }

    /// Checks that a batch's receipt was sent after all that was written to the log for it was synced. Only where nobody
    /// else writes.
    pub fn check_alone(&self, mark: &str) {
        self.check(mark);
        let (arrived, answered) = self.arrival_and_receipt(mark);
        let last = self.log_writes(arrived, answered).map(|call| call.began).max().unwrap();
        self.check_synced(mark, last, answered);
    }

    fn check_synced(&self, mark: &str, written: usize, answered: usize) {
        let is_between = |call: &Call| call.began > written && call.ended.is_some_and(|ended| ended < answered);
        let is_synced = self.of(&SYNC, &self.log).any(|call| is_between(call) && call.text.trim_end().ends_with("= 0"));
        assert!(
            is_synced,
            "{mark} was written in line {written} and answered in line {answered}, with no sync between"
        );
    }

    /// The lines in which a batch was here and in which its receipt began to go out.
    fn arrival_and_receipt(&self, mark: &str) -> (usize, usize) {
        let arrived = self.of(&RECEIVE, mark).find_map(|call| call.ended);
        let arrived = arrived.unwrap_or_else(|| panic!("{mark} never arrived"));
        let is_receipt = |call: &&Call| call.began > arrived && !call.text.contains(&self.log);
        let receipt = self.of(&SEND, mark).find(is_receipt);
        (arrived, receipt.unwrap_or_else(|| panic!("{mark} has no receipt")).began)
    }

    fn log_writes(&self, after: usize, before: usize) -> impl Iterator<Item = &Call> {
        self.of(&WRITE, &self.log).filter(move |call| call.began > after && call.began < before)
    }

    fn of(&self, names: &[&str], text: &str) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| names.contains(&call.name.as_str()) && call.text.contains(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_ORDER: [&str; 5] = [
        r#"7 recvfrom(9<socket:[1]>, "..mark..", 99, 0, NULL, NULL) = 8"#,
        r#"8 pwrite64(5</d/reel.db-wal>, "..mark..", 24, 0) = 24"#,
        r"8 fdatasync(5</d/reel.db-wal> <unfinished ...>",
        r"8 <... fdatasync resumed>) = 0",
        r#"7 writev(9<socket:[1]>, [{iov_base="..mark..", iov_len=8}], 1) = 8"#,
    ];

    fn check(order: [usize; 5]) {
        let lines: Vec<_> = order.iter().map(|index| IN_ORDER[*index]).collect();
        Trace::parse(&lines.join("\n"), "reel.db-wal").check_alone("mark");
    }

    #[test]
    fn a_sync_between_the_log_and_the_receipt_is_seen() {
        check([0, 1, 2, 3, 4]);
    }

    #[test]
    #[should_panic(expected = "with no sync between")]
    fn a_receipt_before_the_sync_has_ended_is_seen() {
        check([0, 1, 2, 4, 3]);
    }

    #[test]
    #[should_panic(expected = "with no sync between")]
    fn a_log_that_is_written_after_the_sync_is_seen() {
        check([0, 2, 3, 1, 4]);
    }

    #[test]
    #[should_panic(expected = "is not in the log")]
    fn a_receipt_without_a_log_is_seen() {
        check([0, 2, 3, 4, 1]);
    }
}
