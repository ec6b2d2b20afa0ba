//! `reel export`: writes the sessions of a search as JSON Lines or as a Parquet table, for `reel import` and for other tools.

mod output;

use std::{collections::HashMap, io::IsTerminal as _, path::PathBuf};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use tonic::{Code, Status, transport::Channel};

use self::output::Output;
use super::{
    Failure,
    client::{MAX_MESSAGE_BYTES, Patience, Service},
    play::playback::Playback,
};
use crate::{
    config::ClientArgs,
    proto::{
        DESCRIPTORS, GetUserRequest, ListSessionsRequest, ListSessionsResponse, PlaySessionRequest, Session,
        SessionFilter, User, session_service_client::SessionServiceClient, user_service_client::UserServiceClient,
    },
};

/// Sessions of a page of the search.
const PAGE: i32 = 200;

/// Users that are remembered.
const MAX_USERS: usize = 10_000;

/// What to export, and where to.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The filter is that of ListSessions, as JSON; without one, all sessions are exported:
  reel export --filter '{\"email\": \"ada@example.com\", \"allOf\": [{\"type\": \"click\", \"target\": {\"exact\": \"Create Post\"}}]}' -o posts.parquet

JSON LINES: for each session a line of what it is, then its actions as `reel play` prints them:
  {\"session\":…,\"user\":{\"id\",\"email\",\"name\",\"attributes\"},\"attributes\":{…},\"end\":{\"timestamp\":…,\"reason\":…}}
PARQUET: a row an action, with what is known of its session beside it; a session without actions is a row without type.

`reel import` reads both back: the same sessions under the same ids, with the same actions, byte for byte.")]
pub(super) struct ExportArgs {
    /// The service.
    #[command(flatten)]
    client: ClientArgs,
    /// Which sessions, as a SessionFilter in JSON [default: all]
    #[arg(long, value_name = "JSON")]
    filter: Option<String>,
    /// Where to; - is the standard output. Names that end with .gz are compressed
    #[arg(long, short, default_value = "-", value_name = "FILE")]
    output: PathBuf,
    /// How it is written [default: parquet where FILE ends with .parquet, else json-lines]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    JsonLines,
    Parquet,
}

/// Exports the sessions of a search.
pub(super) async fn export(args: ExportArgs) -> Result<(), Failure> {
    let filter = args.filter.as_deref().map(parse_filter).transpose()?;
    let format = args.format.unwrap_or_else(|| {
        let is_parquet = args.output.extension().is_some_and(|extension| extension == "parquet");
        if is_parquet { Format::Parquet } else { Format::JsonLines }
    });
    let mut output = Output::create(&args.output, format == Format::Parquet)?;
    let progress = progress_bar();
    let outcome = Export::new(&args.client, filter)?.run(&mut output, &progress).await;
    progress.finish_and_clear();
    let (sessions, actions) = outcome?;
    output.finish()?;
    if args.output.as_os_str() != "-" {
        println!("{}: {sessions} sessions, {actions} actions", args.output.display());
    }
    Ok(())
}

/// Reads a filter as grpcurl does.
fn parse_filter(json: &str) -> Result<SessionFilter, Failure> {
    let pool = DescriptorPool::decode(DESCRIPTORS)?;
    let descriptor = pool.get_message_by_name("reel.v1.SessionFilter").ok_or("there is no SessionFilter")?;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let message = DynamicMessage::deserialize(descriptor, &mut deserializer);
    let message = message.and_then(|message| deserializer.end().map(|()| message));
    let message = message.map_err(|error| format!("--filter: {error}"))?;
    Ok(SessionFilter::decode(message.encode_to_vec().as_slice())?)
}

struct Export {
    service: Service,
    sessions: SessionServiceClient<Channel>,
    users: UserServiceClient<Channel>,
    known_users: HashMap<String, User>,
    patience: Patience,
    request: ListSessionsRequest,
}

impl Export {
    fn new(client: &ClientArgs, filter: Option<SessionFilter>) -> Result<Self, Failure> {
        let service = Service::new(client)?;
        let channel = service.channel.clone();
        Ok(Self {
            sessions: SessionServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            users: UserServiceClient::new(channel),
            known_users: HashMap::new(),
            patience: service.patience(),
            request: ListSessionsRequest { page_size: PAGE, filter, count_total: true, ..Default::default() },
            service,
        })
    }

    /// Gives the number of sessions and of actions.
    async fn run(mut self, output: &mut Output, progress: &ProgressBar) -> Result<(u64, u64), Failure> {
        let (mut sessions, mut actions) = (0, 0);
        loop {
            let page = self.next_page(progress).await?;
            if let Some(total) = page.total_count {
                progress.set_length(u64::try_from(total).unwrap_or(0));
            }
            for session in page.sessions {
                let user = self.user(&session.user_id, progress).await?;
                let Some(count) = self.session(&session, user.as_ref(), output, progress).await? else { continue };
                sessions += 1;
                actions += count;
                progress.inc(1);
                progress.set_message(format!("{actions} actions"));
            }
            if page.next_page_token.is_empty() {
                return Ok((sessions, actions));
            }
            self.request.page_token = page.next_page_token;
            self.request.count_total = false;
        }
    }

    async fn next_page(&mut self, progress: &ProgressBar) -> Result<ListSessionsResponse, Failure> {
        loop {
            match self.sessions.list_sessions(self.request.clone()).await {
                Ok(page) => {
                    self.patience.progress();
                    return Ok(page.into_inner());
                }
                Err(status) => self.wait(&status, progress).await?,
            }
        }
    }

    /// None where there is none any more.
    async fn user(&mut self, id: &str, progress: &ProgressBar) -> Result<Option<User>, Failure> {
        if id.is_empty() {
            return Ok(None);
        }
        if let Some(user) = self.known_users.get(id) {
            return Ok(Some(user.clone()));
        }
        loop {
            match self.users.get_user(GetUserRequest { user_id: id.to_owned() }).await {
                Ok(response) => {
                    self.patience.progress();
                    let user = response.into_inner().user.unwrap_or_default();
                    if self.known_users.len() >= MAX_USERS {
                        self.known_users.clear();
                    }
                    self.known_users.insert(id.to_owned(), user.clone());
                    return Ok(Some(user));
                }
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => self.wait(&status, progress).await?,
            }
        }
    }

    /// Writes a session. Gives the number of its actions; none where it was erased meanwhile, before anything was written.
    async fn session(
        &mut self,
        session: &Session,
        user: Option<&User>,
        output: &mut Output,
        progress: &ProgressBar,
    ) -> Result<Option<u64>, Failure> {
        let request = PlaySessionRequest { session_id: session.id.clone(), ..Default::default() };
        let mut playback = Playback::new(&self.service, request);
        let mut actions = 0;
        let mut has_begun = false;
        loop {
            let page = playback.next_page(|trouble| tell(progress, trouble)).await;
            let page = match page {
                Err(_) if !has_begun && self.is_gone(&session.id).await => return Ok(None),
                page => page?,
            };
            if !has_begun {
                output.begin(session, user)?;
                has_begun = true;
            }
            let Some(page) = page else {
                output.end()?;
                return Ok(Some(actions));
            };
            actions += page.len() as u64;
            page.iter().try_for_each(|action| output.action(action))?;
        }
    }

    async fn is_gone(&mut self, id: &str) -> bool {
        let request = crate::proto::GetSessionRequest { session_id: id.to_owned() };
        self.sessions.get_session(request).await.is_err_and(|status| status.code() == Code::NotFound)
    }

    async fn wait(&mut self, status: &Status, progress: &ProgressBar) -> Result<(), Failure> {
        Ok(self.patience.wait(status, |trouble| tell(progress, trouble)).await?)
    }
}

fn tell(progress: &ProgressBar, trouble: &str) {
    progress.suspend(|| eprintln!("reel: {trouble}"));
}

/// Shows how many sessions are written. Hidden where standard error is not a terminal.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} sessions  {msg}  {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_as_grpcurl_reads_them() {
        let filter = parse_filter(r#"{"email": "a@b.c", "minErrorCount": "1", "allOf": [{"type": "click"}]}"#);
        let filter = filter.expect("a filter");
        assert_eq!((filter.email.as_str(), filter.min_error_count, filter.all_of.len()), ("a@b.c", Some(1), 1));
        for wrong in ["", "[]", "{\"mail\": 1}", "{} {}"] {
            assert!(parse_filter(wrong).is_err(), "{wrong}");
        }
    }
}
