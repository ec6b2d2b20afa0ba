//! Rows about searching and counting.

use prost_types::Duration;
use reel::proto::{
    ActionDimension, ActionMatch, ApplyRetentionRequest, AttributeMatch, CountActionsRequest, DataCondition,
    DataOperator, Expiry, GetErrorFrequencyRequest, GetFunnelRequest, GetSessionDurationsRequest,
    GetStorageStatsRequest, ListActionsRequest, ListSessionsRequest, ListTransitionsRequest, Pin,
    PreviewRetentionRequest, SequenceStep, SessionFilter, UpdateSessionRequest, action_match::TargetMatch,
    data_condition::Value,
};

use super::{
    table::{ACCEPTED, Expected, Table, invalid, text},
    world::World,
};
use crate::harness::{NOON_MS, seconds, timestamp};

pub fn rows(table: &mut Table, world: &World) {
    bounds(table);
    attributes(table);
    matches(table);
    conditions(table);
    sequences(table);
    injections(table);
    sessions_and_actions(table, world);
    counts(table);
    durations_and_errors(table);
    transitions_and_funnels(table);
    pins(table, world);
    expiries(table, world);
    // They have no fields that could be bad.
    table.row("a dry run", PreviewRetentionRequest {}, ACCEPTED);
    table.row("retention by hand", ApplyRetentionRequest {}, ACCEPTED);
    table.row("what is stored", GetStorageStatsRequest {}, ACCEPTED);
}

fn expiries(table: &mut Table, world: &World) {
    let expiry = |expire_time| UpdateSessionRequest {
        session_id: world.session.clone(),
        expiry: Some(Expiry { expire_time }),
        ..Default::default()
    };
    let far = prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 };
    table.row("an expiry", expiry(Some(far)), ACCEPTED);
    table.row("no expiry", expiry(None), ACCEPTED);
    for (seconds, nanos) in [(-1, 0), (253_402_300_800, 0), (0, -1), (0, 1_000_000_000)] {
        let malformed = Some(prost_types::Timestamp { seconds, nanos });
        table.row(format!("an expiry at {seconds} s {nanos} ns"), expiry(malformed), invalid("expiry.expire_time"));
    }
}

fn list(filter: SessionFilter) -> ListSessionsRequest {
    ListSessionsRequest { filter: Some(filter), ..Default::default() }
}

fn clicked() -> ActionMatch {
    ActionMatch { r#type: "click".to_owned(), ..Default::default() }
}

fn in_time(filter: SessionFilter) -> SessionFilter {
    let (after, before) = (Some(timestamp(NOON_MS)), Some(timestamp(NOON_MS + 1)));
    SessionFilter { started_after: after, started_before: before, ..filter }
}

fn of_all(wanted: ActionMatch) -> SessionFilter {
    SessionFilter { all_of: vec![wanted], ..Default::default() }
}

fn good_if(is_good: bool, field: &'static str) -> Expected {
    if is_good { ACCEPTED } else { invalid(field) }
}

fn bounds(table: &mut Table) {
    let negative = Some(Duration { seconds: -1, nanos: 0 });
    let bad = Some(Duration { seconds: 0, nanos: 1_000_000_000 });
    for duration in [negative, bad] {
        let of = |filter: SessionFilter| list(filter);
        let row =
            |table: &mut Table, filter, field| table.row(format!("{field}: {duration:?}"), of(filter), invalid(field));
        let filter = SessionFilter::default;
        row(table, SessionFilter { min_duration: duration, ..filter() }, "filter.min_duration");
        row(table, SessionFilter { max_duration: duration, ..filter() }, "filter.max_duration");
        row(table, SessionFilter { min_active_time: duration, ..filter() }, "filter.min_active_time");
        row(table, SessionFilter { max_active_time: duration, ..filter() }, "filter.max_active_time");
    }
    for (least, most, is_good) in [(0, 0, true), (5, 5, true), (5, 4, false)] {
        let name = format!("from {least} to {most}");
        let of = |filter| list(filter);
        let time = SessionFilter {
            min_duration: Some(seconds(least)),
            max_duration: Some(seconds(most)),
            ..Default::default()
        };
        table.row(&name, of(time), good_if(is_good, "filter.max_duration"));
        let actions =
            SessionFilter { min_action_count: Some(least), max_action_count: Some(most), ..Default::default() };
        table.row(&name, of(actions), good_if(is_good, "filter.max_action_count"));
        let errors = SessionFilter { min_error_count: Some(least), max_error_count: Some(most), ..Default::default() };
        table.row(&name, of(errors), good_if(is_good, "filter.max_error_count"));
    }
    for (count, is_good) in [(i64::MIN, false), (-1, false), (0, true), (i64::MAX, true)] {
        let name = format!("at least {count}");
        let rage = SessionFilter { min_rage_click_count: Some(count), ..Default::default() };
        table.row(&name, list(rage), good_if(is_good, "filter.min_rage_click_count"));
        let actions = SessionFilter { min_action_count: Some(count), ..Default::default() };
        table.row(&name, list(actions), good_if(is_good, "filter.min_action_count"));
        let errors = SessionFilter { max_error_count: Some(count), ..Default::default() };
        table.row(&name, list(errors), good_if(is_good, "filter.max_error_count"));
    }
    for (email_prefix, is_good) in [(text(320), true), (text(321), false), ("a\n".to_owned(), false)] {
        let filter = SessionFilter { email_prefix, ..Default::default() };
        table.row("the beginning of an e-mail address", list(filter), good_if(is_good, "filter.email_prefix"));
    }
}

fn attributes(table: &mut Table) {
    let of = |key: &str, values: Vec<String>| {
        let attributes = vec![AttributeMatch { key: key.to_owned(), values }];
        list(SessionFilter { attributes, ..Default::default() })
    };
    for (key, is_good) in [(String::new(), false), (text(64), true), (text(65), false), ("\0".to_owned(), false)] {
        table.row("an attribute's key", of(&key, vec![]), good_if(is_good, "filter.attributes[0].key"));
    }
    for (count, is_good) in [(0, true), (64, true), (65, false)] {
        table.row("values", of("k", vec![text(3); count]), good_if(is_good, "filter.attributes[0].values"));
    }
    for (value, is_good) in [(text(1_024), true), (text(1_025), false), ("\0".to_owned(), false)] {
        table.row("a value", of("k", vec![value]), good_if(is_good, "filter.attributes[0].values"));
    }
    for (count, is_good) in [(16, true), (17, false)] {
        let attributes = vec![AttributeMatch { key: "k".to_owned(), values: vec![] }; count];
        let filter = SessionFilter { attributes, ..Default::default() };
        table.row("attributes", list(filter), good_if(is_good, "filter.attributes"));
    }
}

type Make = fn(String) -> TargetMatch;

fn matches(table: &mut Table) {
    for (count, is_good) in [(16, true), (17, false)] {
        let filter = SessionFilter {
            any_of: vec![clicked(); count - 2],
            none_of: vec![clicked()],
            all_of: vec![clicked()],
            ..Default::default()
        };
        table.row(format!("{count} matches"), list(filter), good_if(is_good, "filter.all_of"));
    }
    for (min_count, is_good) in [(-1, false), (0, true), (1_000_000, true), (1_000_001, false)] {
        let filter = of_all(ActionMatch { min_count, ..clicked() });
        table.row("a min_count", list(filter), good_if(is_good, "filter.all_of[0].min_count"));
    }
    let kinds: [(&'static str, bool, Make); 3] = [
        ("filter.all_of[0].target", true, TargetMatch::Target),
        ("filter.all_of[0].target_prefix", false, TargetMatch::TargetPrefix),
        ("filter.all_of[0].target_contains", false, TargetMatch::TargetContains),
    ];
    for (field, may_be_empty, make) in kinds {
        let texts =
            [(String::new(), may_be_empty), (text(8_192), true), (text(8_193), false), ("\0".to_owned(), false)];
        for (target, is_good) in texts {
            let filter = of_all(ActionMatch { target_match: Some(make(target)), ..Default::default() });
            table.row("a target", list(filter), good_if(is_good, field));
        }
    }
    for (kind, is_good) in [(text(1_024), true), (text(1_025), false), ("a\nb".to_owned(), false)] {
        let filter = of_all(ActionMatch { r#type: kind, ..Default::default() });
        table.row("a type", list(filter), good_if(is_good, "filter.all_of[0].type"));
    }
    for (from, until, is_good) in [(0, 1, true), (1, 1, false), (2, 1, false)] {
        let wanted = ActionMatch { from: Some(seconds(from)), until: Some(seconds(until)), ..clicked() };
        table.row(
            format!("from {from} until {until}"),
            list(of_all(wanted)),
            good_if(is_good, "filter.all_of[0].until"),
        );
    }
    // What would read every action there is.
    let broad = ActionMatch { from: Some(seconds(1)), ..Default::default() };
    table.row("a time alone", list(of_all(broad.clone())), invalid("filter.all_of"));
    table.row("a time alone, in a time range", list(in_time(of_all(broad))), ACCEPTED);
}

fn conditions(table: &mut Table) {
    let of = |condition: DataCondition| list(of_all(ActionMatch { data: vec![condition], ..clicked() }));
    let equal = |path: &str| DataCondition {
        path: path.to_owned(),
        operator: DataOperator::Equal.into(),
        value: Some(Value::Number(1.0)),
    };
    let long = format!("$.{}", text(510));
    let deep = format!("${}", "[0]".repeat(16));
    for (path, is_good) in [
        ("$", true),
        ("$.a[0][\"b\"]", true),
        (long.as_str(), true),
        (deep.as_str(), true),
        (&format!("{deep}[0]"), false),
        (&format!("{long}x"), false),
        ("", false),
        ("a", false),
        ("$[", false),
        ("$.a'; DROP TABLE sessions; --\"", true),
    ] {
        table.row(format!("the path {path}"), of(equal(path)), good_if(is_good, "filter.all_of[0].data[0].path"));
    }
    let with = |operator: i32, value| of(DataCondition { path: "$".to_owned(), operator, value });
    let (number, truth) = (Some(Value::Number(1.0)), Some(Value::Boolean(true)));
    table.row("no operator", with(0, number.clone()), invalid("filter.all_of[0].data[0].operator"));
    table.row("an unknown operator", with(99, number.clone()), invalid("filter.all_of[0].data[0].operator"));
    table.row("no value", with(DataOperator::Equal.into(), None), invalid("filter.all_of[0].data[0].value"));
    table.row("EXISTS", with(DataOperator::Exists.into(), None), ACCEPTED);
    table.row(
        "EXISTS with a value",
        with(DataOperator::Exists.into(), number),
        invalid("filter.all_of[0].data[0].value"),
    );
    let nan = Some(Value::Number(f64::NAN));
    table.row("NaN", with(DataOperator::Less.into(), nan), invalid("filter.all_of[0].data[0].number"));
    let infinite = Some(Value::Number(f64::INFINITY));
    table.row("infinity", with(DataOperator::Less.into(), infinite), ACCEPTED);
    table.row(
        "less than true",
        with(DataOperator::Less.into(), truth.clone()),
        invalid("filter.all_of[0].data[0].boolean"),
    );
    table.row("true", with(DataOperator::Equal.into(), truth), ACCEPTED);
    for (bytes, is_good) in [(1_024, true), (1_025, false)] {
        let value = Some(Value::Text(text(bytes)));
        table.row("a text", with(DataOperator::Equal.into(), value), good_if(is_good, "filter.all_of[0].data[0].text"));
    }
    for (count, is_good) in [(8, true), (9, false)] {
        let filter = of_all(ActionMatch { data: vec![equal("$"); count], ..clicked() });
        table.row("conditions", list(filter), good_if(is_good, "filter.all_of[0].data"));
    }
    let broad = ActionMatch { data: vec![equal("$.a")], ..Default::default() };
    table.row("data alone", list(of_all(broad.clone())), invalid("filter.all_of"));
    table.row("data alone, in a time range", list(in_time(of_all(broad))), ACCEPTED);
}

fn steps(count: usize) -> Vec<SequenceStep> {
    vec![SequenceStep { r#match: Some(clicked()), within: None }; count]
}

fn sequences(table: &mut Table) {
    let of = |sequence| list(SessionFilter { sequence, ..Default::default() });
    for (count, is_good) in [(0, true), (1, false), (2, true), (10, true), (11, false)] {
        table.row(format!("{count} steps"), of(steps(count)), good_if(is_good, "filter.sequence"));
    }
    let mut first = steps(2);
    first[0].within = Some(seconds(1));
    table.row("the first step within", of(first), invalid("filter.sequence[0].within"));
    let mut no_time = steps(2);
    no_time[1].within = Some(seconds(0));
    table.row("within no time", of(no_time), invalid("filter.sequence[1].within"));
    let mut nothing = steps(2);
    nothing[1].r#match = None;
    table.row("a step of nothing", of(nothing), invalid("filter.sequence[1].match"));
    let mut counted = steps(2);
    counted[0].r#match = Some(ActionMatch { min_count: 2, ..clicked() });
    table.row("a step that is counted", of(counted), invalid("filter.sequence[0].match.min_count"));
}

/// What would be SQL if it were not a parameter.
fn injections(table: &mut Table) {
    for evil in
        ["' OR 1 = 1 --", "\"; DROP TABLE sessions; --", "$1", "?", "??", "%", "_", "\\", "{}", "[]", "\u{10ffff}"]
    {
        let target = |make: fn(String) -> TargetMatch| ActionMatch {
            target_match: Some(make(evil.to_owned())),
            r#type: evil.to_owned(),
            ..Default::default()
        };
        let filter = SessionFilter {
            user_id: evil.to_owned(),
            email_prefix: evil.to_owned(),
            attributes: vec![
                AttributeMatch { key: evil.to_owned(), values: vec![evil.to_owned()] },
                AttributeMatch { key: evil.to_owned(), values: vec![] },
            ],
            all_of: vec![target(TargetMatch::Target), target(TargetMatch::TargetPrefix)],
            any_of: vec![target(TargetMatch::TargetContains)],
            ..Default::default()
        };
        table.row(format!("{evil} everywhere"), list(filter), ACCEPTED);
        let group_by = vec![ActionDimension::Attribute.into(), ActionDimension::User.into()];
        let request = CountActionsRequest { group_by, attribute_key: evil.to_owned(), ..Default::default() };
        table.row(format!("{evil} as an attribute"), request, ACCEPTED);
    }
}

fn sessions_and_actions(table: &mut Table, world: &World) {
    for (order_by, is_good) in [(-1, false), (0, true), (5, true), (6, false)] {
        let request = ListSessionsRequest { order_by, ..Default::default() };
        table.row(format!("the order {order_by}"), request, good_if(is_good, "order_by"));
    }
    let token = |page_token: &str, ascending| ListSessionsRequest {
        page_token: page_token.to_owned(),
        ascending,
        ..Default::default()
    };
    table.row("a page token of another order", token(&world.session_token, true), invalid("page_token"));

    let actions = |wanted: Option<ActionMatch>| ListActionsRequest { r#match: wanted, ..Default::default() };
    table.row("actions of a type", actions(Some(clicked())), ACCEPTED);
    table.row("all actions", actions(None), invalid("match"));
    table.row("all actions of any kind", actions(Some(ActionMatch::default())), invalid("match"));
    let in_range = ListActionsRequest { filter: Some(in_time(SessionFilter::default())), ..Default::default() };
    table.row("all actions of a time range", in_range, ACCEPTED);
    let counted = ActionMatch { min_count: 2, ..clicked() };
    table.row("actions that are counted", actions(Some(counted)), invalid("match.min_count"));
    let foreign = ListActionsRequest { page_token: world.session_token.clone(), ..actions(Some(clicked())) };
    table.row("a page token of a list of sessions", foreign, invalid("page_token"));
    for (page_size, is_good) in [(-1, false), (0, true), (i32::MAX, true)] {
        let request = ListActionsRequest { page_size, ..actions(Some(clicked())) };
        table.row(format!("a page of {page_size}"), request, good_if(is_good, "page_size"));
    }
}

fn counts(table: &mut Table) {
    let by = |group_by: &[i32]| CountActionsRequest { group_by: group_by.to_vec(), ..Default::default() };
    let (user, attribute) = (ActionDimension::User.into(), ActionDimension::Attribute.into());
    table.row("no dimensions", by(&[]), ACCEPTED);
    table.row("four dimensions", by(&[1, 2, 3, 6]), ACCEPTED);
    table.row("five dimensions", by(&[1, 2, 3, 4, 6]), invalid("group_by"));
    table.row("no dimension", by(&[user, 0]), invalid("group_by[1]"));
    table.row("an unknown dimension", by(&[99]), invalid("group_by[0]"));
    table.row("a dimension twice", by(&[user, user]), invalid("group_by[1]"));
    table.row("no attribute", by(&[attribute]), invalid("attribute_key"));
    for (attribute_key, is_good) in [(text(64), true), (text(65), false), ("\0".to_owned(), false)] {
        let request = CountActionsRequest { attribute_key, ..by(&[attribute]) };
        table.row("an attribute", request, good_if(is_good, "attribute_key"));
    }
    let useless = CountActionsRequest { attribute_key: "k".to_owned(), ..by(&[user]) };
    table.row("an attribute that nobody groups by", useless, invalid("attribute_key"));
    for (limit, is_good) in [(-1, false), (0, true), (i32::MAX, true)] {
        table.row("a limit", CountActionsRequest { limit, ..by(&[]) }, good_if(is_good, "limit"));
    }
    let hour = ActionDimension::Hour.into();
    table.row("all actions by hour", by(&[hour]), invalid("group_by"));
    let of_type = CountActionsRequest { r#match: Some(clicked()), ..by(&[hour]) };
    table.row("clicks by hour", of_type, ACCEPTED);
    let in_range = CountActionsRequest { filter: Some(in_time(SessionFilter::default())), ..by(&[hour]) };
    table.row("all actions of a time range by hour", in_range, ACCEPTED);
}

fn durations_and_errors(table: &mut Table) {
    let durations = |bounds: Vec<Duration>| GetSessionDurationsRequest { bucket_bounds: bounds, ..Default::default() };
    let rising = |count: i64| (1..=count).map(seconds).collect::<Vec<_>>();
    table.row("50 buckets", durations(rising(50)), ACCEPTED);
    table.row("51 buckets", durations(rising(51)), invalid("bucket_bounds"));
    table.row("an empty bucket", durations(vec![seconds(1), seconds(1)]), invalid("bucket_bounds[1]"));
    table.row("a bucket of nothing", durations(vec![seconds(0)]), invalid("bucket_bounds[0]"));
    table.row("a bad bucket", durations(vec![seconds(-1)]), invalid("bucket_bounds[0]"));

    let errors = |interval: Option<Duration>| GetErrorFrequencyRequest { interval, ..Default::default() };
    let day = 86_400;
    for (interval, is_good) in [(59, false), (60, true), (366 * day, true), (366 * day + 1, false), (-60, false)] {
        table.row(format!("{interval} s"), errors(Some(seconds(interval))), good_if(is_good, "interval"));
    }
    let crooked = Some(Duration { seconds: 60, nanos: 1 });
    table.row("a crooked interval", errors(crooked), invalid("interval"));
    for (target, is_good) in [(text(8_192), true), (text(8_193), false), ("\0".to_owned(), false)] {
        let request = GetErrorFrequencyRequest { target, ..Default::default() };
        table.row("an error", request, good_if(is_good, "target"));
    }
}

fn transitions_and_funnels(table: &mut Table) {
    let in_range = ListTransitionsRequest { filter: Some(in_time(SessionFilter::default())), ..Default::default() };
    table.row("transitions of everything", ListTransitionsRequest::default(), invalid("filter"));
    table.row("transitions of a time range", in_range.clone(), ACCEPTED);
    let of_action = ListTransitionsRequest { filter: Some(of_all(clicked())), ..Default::default() };
    table.row("transitions of sessions with an action", of_action, ACCEPTED);
    for (count, is_good) in [(64, true), (65, false)] {
        let request = ListTransitionsRequest { types: vec!["a".to_owned(); count], ..in_range.clone() };
        table.row(format!("{count} types"), request, good_if(is_good, "types"));
    }
    let bad = ListTransitionsRequest { types: vec!["\0".to_owned()], ..in_range.clone() };
    table.row("a bad type", bad, invalid("types[0]"));
    let bad = ListTransitionsRequest { from_target: text(8_193), ..in_range.clone() };
    table.row("a bad target", bad, invalid("from_target"));
    let bad = ListTransitionsRequest { limit: -1, ..in_range };
    table.row("a bad limit", bad, invalid("limit"));

    let funnel = |steps| GetFunnelRequest { steps, ..Default::default() };
    for (count, is_good) in [(0, false), (1, false), (2, true), (10, true), (11, false)] {
        table.row(format!("a funnel of {count} steps"), funnel(steps(count)), good_if(is_good, "steps"));
    }
    let mut broad = steps(2);
    broad[1].r#match = Some(ActionMatch::default());
    table.row("a step of anything", funnel(broad), invalid("steps[1].match"));
    for (exit_limit, is_good) in [(-1, false), (0, true), (100, true), (101, false)] {
        let request = GetFunnelRequest { exit_limit, ..funnel(steps(2)) };
        table.row(format!("{exit_limit} exits"), request, good_if(is_good, "exit_limit"));
    }
}

fn pins(table: &mut Table, world: &World) {
    let pin = |expire_time, reason: String| UpdateSessionRequest {
        session_id: world.session.clone(),
        pin: Some(Pin { expire_time, reason }),
        ..Default::default()
    };
    let until = Some(timestamp(NOON_MS));
    table.row("a pin", pin(until, text(256)), ACCEPTED);
    table.row("a pin with a long reason", pin(until, text(257)), invalid("pin.reason"));
    table.row("a pin with a reason in two lines", pin(until, "a\nb".to_owned()), invalid("pin.reason"));
    let before_1970 = Some(prost_types::Timestamp { seconds: -1, nanos: 0 });
    table.row("a pin until before 1970", pin(before_1970, String::new()), invalid("pin.expire_time"));
    table.row("no pin for a reason", pin(None, "why".to_owned()), invalid("pin.reason"));
    table.row("no pin", pin(None, String::new()), ACCEPTED);
}
