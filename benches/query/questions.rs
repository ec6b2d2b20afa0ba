//! Questions: each as a call and as SQL, by turns.

use std::{collections::HashMap, time::Duration};

use chrono::TimeDelta;
use reel::{
    model::SessionId,
    proto::{
        ActionDimension, ActionMatch, AttributeMatch, CountActionsRequest, GetErrorFrequencyRequest, GetFunnelRequest,
        GetSessionDurationsRequest, ListSessionsRequest, ListTransitionsRequest, SequenceStep, SessionFilter,
        action_match::TargetMatch, analytics_service_client::AnalyticsServiceClient,
        session_service_client::SessionServiceClient,
    },
};
use sea_orm::sqlx::{AssertSqlSafe, Executor as _, PgConnection, query, query_as, query_scalar};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::sql;
use crate::support::{
    Result,
    archive::Archive,
    arguments::Arguments,
    figure::{Figure, Goal, print},
    statistics::Rounds,
    workload::proto_time,
};

/// A search may take so much longer than the best SQL.
const SEARCH_GOAL: Goal = Goal::RatioAtMost(1.5);

/// What is read from summaries, facets and roll-up is to be so much faster than from actions.
const ACTIONS_GOAL: Goal = Goal::RatioAtLeast(20.0);

enum Call {
    Sessions(Box<ListSessionsRequest>),
    Counts(Box<CountActionsRequest>),
    Durations(Box<GetSessionDurationsRequest>),
    Errors(Box<GetErrorFrequencyRequest>),
    Transitions(Box<ListTransitionsRequest>),
    Funnel(Box<GetFunnelRequest>),
}

struct Question {
    name: &'static str,
    call: Call,
    sql: String,
    goal: Option<Goal>,
    /// The same asked of the table of actions.
    of_actions: Option<String>,
}

/// Milliseconds of each call, by name.
pub type Times = HashMap<&'static str, f64>;

pub async fn measure(arguments: &Arguments, archive: &mut Archive) -> Result<Times> {
    let mut times = Times::new();
    for (part, heading) in [("search", "search ÷ the best SQL"), ("analytics", "analytics ÷ the best SQL")] {
        if !arguments.wants(part) {
            continue;
        }
        let questions = if part == "search" { search(archive).await? } else { analytics(archive) };
        let (mut figures, mut beside_actions) = (Vec::new(), Vec::new());
        for question in questions {
            let rounds = ask(arguments, archive, &question.call, &question.sql).await?;
            times.insert(question.name, rounds.value());
            let figure = Figure::of_rounds(question.name, &rounds, "ms");
            figures.push(match question.goal {
                Some(goal) => figure.goal(goal),
                None => figure,
            });
            if let Some(of_actions) = &question.of_actions {
                let rounds = ask(arguments, archive, &question.call, of_actions).await?;
                let figure = Figure::new(question.name, rounds.limit(), "ms").beside(rounds.value());
                beside_actions.push(figure.goal(ACTIONS_GOAL));
            }
        }
        print(heading, &figures, arguments.json);
        if !beside_actions.is_empty() {
            print("asked of actions ÷ asked of Reel", &beside_actions, arguments.json);
        }
    }
    Ok(times)
}

/// The time of each call with more stored ÷ with less.
pub fn growth(before: &Times, after: &Times) -> Vec<Figure> {
    let mut names: Vec<_> = before.keys().copied().collect();
    names.sort_unstable();
    let figure = |name: &'static str| {
        let figure = Figure::new(name, *after.get(name)?, "ms").beside(*before.get(name)?);
        let is_page = !name.contains("count") && name.contains("newest");
        Some(if is_page { figure.goal(Goal::RatioAtMost(1.3)) } else { figure })
    };
    names.into_iter().filter_map(figure).collect()
}

async fn ask(arguments: &Arguments, archive: &mut Archive, call: &Call, sql: &str) -> Result<Rounds> {
    let mut rounds = Rounds::default();
    // Once for nothing, so that both know the way.
    let once = call.time(&archive.channel).await? + time_sql(&mut archive.connection, sql).await?;
    let repeats = (arguments.measurement().as_secs_f64() / once.as_secs_f64()).clamp(1.0, 40.0) as usize;
    for _ in 0..arguments.rounds() {
        let (mut calls, mut statements) = (Vec::new(), Vec::new());
        for _ in 0..repeats {
            calls.push(call.time(&archive.channel).await?.as_secs_f64() * 1e3);
            statements.push(time_sql(&mut archive.connection, sql).await?.as_secs_f64() * 1e3);
        }
        rounds.add(crate::support::statistics::median(&calls), crate::support::statistics::median(&statements));
    }
    Ok(rounds)
}

async fn time_sql(connection: &mut PgConnection, sql: &str) -> Result<Duration> {
    let begun = Instant::now();
    let rows = connection.fetch_all(query(AssertSqlSafe(sql.to_owned()))).await?;
    let took = begun.elapsed();
    if rows.is_empty() {
        return Err(format!("nothing is found by: {sql}").into());
    }
    Ok(took)
}

impl Call {
    async fn time(&self, channel: &Channel) -> Result<Duration> {
        let (mut sessions, mut analytics) =
            (SessionServiceClient::new(channel.clone()), AnalyticsServiceClient::new(channel.clone()));
        let begun = Instant::now();
        let is_empty = match self {
            Self::Sessions(request) => {
                sessions.list_sessions((**request).clone()).await?.into_inner().sessions.is_empty()
            }
            Self::Counts(request) => analytics.count_actions((**request).clone()).await?.into_inner().groups.is_empty(),
            Self::Durations(request) => {
                analytics.get_session_durations((**request).clone()).await?.into_inner().days.is_empty()
            }
            Self::Errors(request) => {
                analytics.get_error_frequency((**request).clone()).await?.into_inner().intervals.is_empty()
            }
            Self::Transitions(request) => {
                analytics.list_transitions((**request).clone()).await?.into_inner().transitions.is_empty()
            }
            Self::Funnel(request) => analytics.get_funnel((**request).clone()).await?.into_inner().steps.is_empty(),
        };
        let took = begun.elapsed();
        if is_empty { Err("a call finds nothing".into()) } else { Ok(took) }
    }
}

fn matching(kind: &str, target: &str) -> ActionMatch {
    let target_match = (!target.is_empty()).then(|| TargetMatch::Target(target.to_owned()));
    ActionMatch { r#type: kind.to_owned(), target_match, ..ActionMatch::default() }
}

fn sessions(filter: SessionFilter) -> Call {
    Call::Sessions(Box::new(ListSessionsRequest { filter: Some(filter), ..ListSessionsRequest::default() }))
}

async fn search(archive: &mut Archive) -> Result<Vec<Question>> {
    const COMMON: (&str, &str) = ("click", "Create Post");
    const OTHER: (&str, &str) = ("click", "Save Comment");
    // Whatever is clicked least, and a page that was visited in about ten sessions.
    let connection = &mut archive.connection;
    let rare: String = query_scalar(
        "SELECT target FROM facets JOIN facet_days ON facet_id = id WHERE type = 'click' \
         GROUP BY target ORDER BY sum(session_count), target LIMIT 1",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (few,): (String,) = query_as(
        "SELECT target FROM facets JOIN facet_days ON facet_id = id WHERE type = 'scroll' \
         GROUP BY target ORDER BY abs(sum(session_count) - 10), target LIMIT 1",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (user, email, release) = ("user-7", "user-7@example.com", "2026.11.7");
    let of = |all_of: Vec<ActionMatch>| SessionFilter { all_of, ..SessionFilter::default() };
    let of_email = format!("user_id IN (SELECT id FROM users WHERE email = '{email}')");
    let sequence = vec![
        SequenceStep { r#match: Some(matching(COMMON.0, COMMON.1)), within: None },
        SequenceStep {
            r#match: Some(matching("error", "")),
            within: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        },
    ];
    let question =
        |name, filter, sql| Question { name, call: sessions(filter), sql, goal: Some(SEARCH_GOAL), of_actions: None };
    let attribute = AttributeMatch { key: "release".to_owned(), values: vec![release.to_owned()] };
    let mut questions = vec![
        question(
            "newest 50 by a common facet",
            of(vec![matching(COMMON.0, COMMON.1)]),
            sql::by_facet(COMMON.0, COMMON.1),
        ),
        question("newest 50 by a rare facet", of(vec![matching("click", &rare)]), sql::by_facet("click", &rare)),
        question("all of a facet of few", of(vec![matching("scroll", &few)]), sql::by_facet("scroll", &few)),
        question(
            "newest 50 by two facets",
            of(vec![matching(COMMON.0, COMMON.1), matching(OTHER.0, OTHER.1)]),
            sql::by_two_facets(COMMON, OTHER),
        ),
        question(
            "newest 50 of a user",
            SessionFilter { user_id: user.to_owned(), ..SessionFilter::default() },
            sql::by_session(&format!("user_id = '{user}'"), "started_at DESC, id DESC"),
        ),
        question(
            "newest 50 of an e-mail",
            SessionFilter { email: email.to_owned(), ..SessionFilter::default() },
            sql::by_session(&of_email, "id DESC"),
        ),
        question(
            "newest 50 with errors",
            SessionFilter { min_error_count: Some(1), ..SessionFilter::default() },
            sql::by_session("error_count > 0", "started_at DESC, id DESC"),
        ),
        question(
            "newest 50 by an attribute",
            SessionFilter { attributes: vec![attribute], ..SessionFilter::default() },
            sql::by_session(&format!("attributes @> '{{\"release\": \"{release}\"}}'"), "id DESC"),
        ),
        question(
            "newest 50 by a sequence",
            SessionFilter { sequence, ..SessionFilter::default() },
            sql::by_sequence(COMMON.1),
        ),
    ];
    let counted = ListSessionsRequest {
        filter: Some(of(vec![matching(COMMON.0, COMMON.1)])),
        page_size: 1,
        count_total: true,
        ..ListSessionsRequest::default()
    };
    questions.push(Question {
        name: "number by a common facet, counted",
        call: Call::Sessions(Box::new(counted)),
        sql: sql::number_by_facet(COMMON.0, COMMON.1),
        goal: None,
        of_actions: None,
    });
    Ok(questions)
}

fn analytics(archive: &Archive) -> Vec<Question> {
    let week = (archive.until - TimeDelta::days(7), archive.until);
    let day = (archive.until - TimeDelta::days(1), archive.until);
    let filter = |(from, to)| SessionFilter {
        started_after: Some(proto_time(from)),
        started_before: Some(proto_time(to)),
        ..SessionFilter::default()
    };
    let range = |(from, to)| sql::range(SessionId::least_at(from), SessionId::least_at(to));
    let date = |time: chrono::DateTime<chrono::Utc>| time.date_naive().to_string();
    let step = |kind: &str, target: &str| SequenceStep { r#match: Some(matching(kind, target)), within: None };
    let by = |dimensions: &[ActionDimension]| dimensions.iter().map(|dimension| i32::from(*dimension)).collect();
    let most_common = CountActionsRequest {
        filter: Some(filter(week)),
        group_by: by(&[ActionDimension::Type, ActionDimension::Target]),
        ..CountActionsRequest::default()
    };
    let per_user = CountActionsRequest { group_by: by(&[ActionDimension::User]), ..CountActionsRequest::default() };
    let errors = GetErrorFrequencyRequest { filter: Some(filter(week)), ..GetErrorFrequencyRequest::default() };
    let transitions = ListTransitionsRequest {
        filter: Some(filter(day)),
        types: vec!["click".to_owned(), "navigation".to_owned()],
        ..ListTransitionsRequest::default()
    };
    let funnel = GetFunnelRequest {
        filter: Some(filter(week)),
        steps: vec![step("click", "Create Post"), step("click", "Save Comment"), step("error", "")],
        exit_limit: 0,
    };
    let question = |name, call, sql, of_actions| Question { name, call, sql, goal: None, of_actions };
    vec![
        question(
            "most common actions, 7 days",
            Call::Counts(Box::new(most_common)),
            sql::most_common(&date(week.0), &date(week.1)),
            Some(sql::most_common_of_actions(&range(week))),
        ),
        question(
            "actions per user",
            Call::Counts(Box::new(per_user)),
            sql::PER_USER.to_owned(),
            Some(sql::PER_USER_OF_ACTIONS.to_owned()),
        ),
        question(
            "errors by hour, 7 days",
            Call::Errors(Box::new(errors)),
            sql::errors_by_hour(&range(week)),
            Some(sql::errors_by_hour_of_actions(&range(week))),
        ),
        question("durations by day", Call::Durations(Box::default()), sql::DURATIONS.to_owned(), None),
        question("transitions, 1 day", Call::Transitions(Box::new(transitions)), sql::transitions(&range(day)), None),
        question(
            "funnel of three steps, 7 days",
            Call::Funnel(Box::new(funnel)),
            sql::funnel(&range(week), "Create Post", "Save Comment"),
            None,
        ),
    ]
}
