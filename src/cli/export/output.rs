//! Writing exported sessions.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

use crate::{
    archive::{TableRow, TableWriter},
    cli::{
        Failure,
        play::{quoted, write_line},
        time,
    },
    proto::{Action, Session, User},
};

/// A file that is being written beside its name, or the standard output.
pub(super) struct Output {
    writer: Writer,
    /// Where it is written, and its name.
    files: Option<(PathBuf, PathBuf)>,
    /// What is known of the session that is being written.
    session: TableRow,
    /// Whether it has actions.
    has_actions: bool,
    line: String,
}

enum Writer {
    Lines(Box<dyn Write>),
    Gzip(GzEncoder<BufWriter<File>>),
    Table(Box<TableWriter>),
}

impl Output {
    /// Begins it. A file gets its name when it is whole.
    pub(super) fn create(path: &Path, is_table: bool) -> Result<Self, Failure> {
        let (mut session, has_actions, line) = (TableRow::default(), false, String::new());
        session.session.clear();
        if path.as_os_str() == "-" {
            if is_table {
                return Err("a Parquet table needs a file: give --output".into());
            }
            let writer = Writer::Lines(Box::new(BufWriter::new(io::stdout())));
            return Ok(Self { writer, files: None, session, has_actions, line });
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|error| format!("cannot write {}: {error}", part.display()))?;
        let is_gzip = path.extension().is_some_and(|extension| extension == "gz");
        let writer = if is_table {
            Writer::Table(Box::new(TableWriter::new(file)?))
        } else if is_gzip {
            Writer::Gzip(GzEncoder::new(BufWriter::new(file), Compression::default()))
        } else {
            Writer::Lines(Box::new(BufWriter::new(file)))
        };
        Ok(Self { writer, files: Some((part, path.to_owned())), session, has_actions, line })
    }

    /// Begins a session.
    pub(super) fn begin(&mut self, session: &Session, user: Option<&User>) -> Result<(), Failure> {
        self.has_actions = false;
        let attributes = |attributes: &std::collections::HashMap<String, String>| {
            let sorted: std::collections::BTreeMap<_, _> = attributes.iter().collect();
            serde_json::to_string(&sorted)
        };
        let user_attributes = user.map(|user| attributes(&user.attributes)).transpose()?;
        let session_attributes = attributes(&session.attributes)?;
        let ended_at = session.end_time.as_ref().map(time::from_proto);
        self.session = TableRow {
            session: session.id.clone(),
            user_id: user.map(|user| user.id.clone()),
            user_email: user.map(|user| user.email.clone()),
            user_name: user.map(|user| user.name.clone()),
            user_attributes,
            session_attributes: Some(session_attributes),
            ended_at,
            end_reason: ended_at.map(|_| session.end_reason.clone()),
            ..TableRow::default()
        };
        if matches!(self.writer, Writer::Table(_)) {
            return Ok(());
        }
        // Writing to a text cannot fail.
        let row = &self.session;
        self.line = format!(r#"{{"session":{}"#, quoted(&row.session));
        if let (Some(user), Some(attributes)) = (user, &row.user_attributes) {
            let (id, email, name) = (quoted(&user.id), quoted(&user.email), quoted(&user.name));
            let _ =
                write!(self.line, r#","user":{{"id":{id},"email":{email},"name":{name},"attributes":{attributes}}}"#);
        }
        let _ = write!(self.line, r#","attributes":{}"#, row.session_attributes.as_deref().unwrap_or("{}"));
        if let Some(micros) = ended_at {
            let (millis, reason) = (time::millis_text(micros), quoted(&session.end_reason));
            let _ = write!(self.line, r#","end":{{"timestamp":{millis},"reason":{reason}}}"#);
        }
        self.line.push_str("}\n");
        self.write_line()
    }

    /// Writes an action of the session.
    pub(super) fn action(&mut self, action: &Action) -> Result<(), Failure> {
        self.has_actions = true;
        if let Writer::Table(table) = &mut self.writer {
            let row = &mut self.session;
            row.timestamp = Some(action.timestamp.as_ref().map_or(0, time::from_proto));
            row.seq = Some(action.seq);
            row.source = Some(action.source.clone());
            row.kind = Some(action.r#type.clone());
            row.target = Some(action.target.clone());
            row.data = (!action.data.is_empty()).then(|| action.data.clone());
            return Ok(table.push(row)?);
        }
        self.line.clear();
        write_line(&mut self.line, &self.session.session, action);
        self.write_line()
    }

    /// Ends the session.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        if let (Writer::Table(table), false) = (&mut self.writer, self.has_actions) {
            table.push(&self.session)?;
        }
        Ok(())
    }

    fn write_line(&mut self) -> Result<(), Failure> {
        let written = match &mut self.writer {
            Writer::Lines(lines) => lines.write_all(self.line.as_bytes()),
            Writer::Gzip(lines) => lines.write_all(self.line.as_bytes()),
            Writer::Table(_) => Ok(()),
        };
        written.map_err(|error| format!("cannot write: {error}").into())
    }

    /// Ends it: the file has its name afterwards.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.writer {
            Writer::Lines(mut lines) => lines.flush()?,
            Writer::Gzip(lines) => lines.finish()?.flush()?,
            Writer::Table(table) => table.finish()?,
        }
        if let Some((part, path)) = self.files {
            std::fs::rename(&part, &path).map_err(|error| format!("cannot name {}: {error}", path.display()))?;
        }
        Ok(())
    }
}
