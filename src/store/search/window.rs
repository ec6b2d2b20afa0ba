//! Where newest sessions are looked for first: `session_facets` has a partition a day, and the roll-up tells how many sessions
//! each has of a facet. A search that knows where enough of them are does not touch the others.

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};

use super::condition::Survey;
use crate::model::{SessionOrder, SessionSearch};

/// Beyond so many days, all are looked at.
const DAYS: u64 = 8;

/// The days that are asked about, the latest first. None where the newest are not what is wanted.
pub(super) fn days(search: &SessionSearch, now: DateTime<Utc>) -> Vec<NaiveDate> {
    if search.order != SessionOrder::StartTime || search.ascending || search.filter.needs_actions() {
        return Vec::new();
    }
    let after = search.after.map(|place| place.session.started_at());
    let until = [after, search.filter.started_before].into_iter().flatten().fold(now, DateTime::min).date_naive();
    (0..DAYS).filter_map(|days| until.checked_sub_days(Days::new(days))).collect()
}

/// Since when there are enough of the rarest of what is wanted: twice as many as wanted, because the first day may be cut off
/// and other conditions may not hold. None where the days that were asked about have not as many.
pub(super) fn choose(search: &SessionSearch, survey: &Survey) -> Option<DateTime<Utc>> {
    let wanted = i64::try_from(search.limit.saturating_mul(2)).ok()?;
    let mut window: Option<DateTime<Utc>> = None;
    for (number, _) in search.filter.all_of.iter().enumerate().filter(|(_, wanted)| wanted.is_of_one_facet()) {
        let mut days: Vec<_> = survey.days.iter().filter(|(of, ..)| *of == number).collect();
        days.sort_unstable_by_key(|(_, day, _)| std::cmp::Reverse(*day));
        let mut count = 0;
        let (_, since, _) = days.into_iter().find(|(.., sessions)| {
            count += sessions;
            count >= wanted
        })?;
        let since = since.and_time(NaiveTime::MIN).and_utc();
        window = Some(window.map_or(since, |window| window.min(since)));
    }
    window
}
