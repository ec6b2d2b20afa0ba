//! Page tokens: opaque, and good only for the list they came from, with the same fields that choose and order what is in it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use prost::Message;
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    proto::{ListActionsRequest, ListSessionsRequest, ListUsersRequest, SessionOrder},
};

/// First byte of every token of this layout.
const VERSION: u8 = 2;

/// Bytes of the digest that binds a token to its list.
const BINDING_BYTES: usize = 8;

/// What a token is bound to: the list, and all fields of the request that choose and order what is in it.
///
/// The fields count as they are encoded for the wire, which leaves out what is not set: a release that adds a field takes the
/// tokens of those before it. For the same reason no message in them may have a map, which has no order.
pub struct Scope([u8; BINDING_BYTES]);

impl Scope {
    /// The scope of a list of sessions. How large its pages are and whether to count makes no difference.
    #[must_use]
    pub fn of_sessions(request: &ListSessionsRequest) -> Self {
        let order = match request.order_by() {
            SessionOrder::Unspecified => SessionOrder::StartTime,
            order => order,
        };
        Self::new(
            "sessions",
            &ListSessionsRequest {
                page_size: 0,
                page_token: String::new(),
                count_total: false,
                order_by: order.into(),
                filter: Some(request.filter.clone().unwrap_or_default()),
                ..request.clone()
            },
        )
    }

    /// The scope of a list of actions. How large its pages are makes no difference.
    #[must_use]
    pub fn of_actions(request: &ListActionsRequest) -> Self {
        Self::new(
            "actions",
            &ListActionsRequest {
                page_size: 0,
                page_token: String::new(),
                filter: Some(request.filter.clone().unwrap_or_default()),
                r#match: Some(request.r#match.clone().unwrap_or_default()),
            },
        )
    }

    /// The scope of a list of users. How large its pages are makes no difference.
    #[must_use]
    pub fn of_users(request: &ListUsersRequest) -> Self {
        Self::new("users", &ListUsersRequest { page_size: 0, page_token: String::new(), ..request.clone() })
    }

    fn new(list: &str, fields: &impl Message) -> Self {
        Self(digest(&[list.as_bytes(), &fields.encode_to_vec()]))
    }
}

/// Makes and opens page tokens.
pub struct PageToken;

impl PageToken {
    /// Where the page begins, by the request's token; None for the first page. `place` takes what was sealed: the seal
    /// keeps accidents out, and whoever reads this crate can make one.
    pub fn parse<T>(token: &str, scope: &Scope, place: impl FnOnce(String) -> Option<T>) -> Result<Option<T>> {
        if token.is_empty() {
            return Ok(None);
        }
        let invalid = || Error::invalid("page_token", "not a token of this list with these other fields");
        Self::open(token, scope).and_then(place).map(Some).ok_or_else(invalid)
    }

    /// Seals the place after which the next page begins.
    #[must_use]
    pub fn seal(place: &str, scope: &Scope) -> String {
        let binding = digest(&[&scope.0, place.as_bytes()]);
        BASE64_URL_SAFE_NO_PAD.encode([&[VERSION], binding.as_slice(), place.as_bytes()].concat())
    }

    /// The place, if the token was sealed with this scope.
    #[must_use]
    pub fn open(token: &str, scope: &Scope) -> Option<String> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (binding, place) = rest.split_at_checked(BINDING_BYTES)?;
        let is_ours = *version == VERSION && *binding == digest(&[&scope.0, place]);
        is_ours.then(|| String::from_utf8(place.to_vec()).ok()).flatten()
    }
}

fn digest(parts: &[&[u8]]) -> [u8; BINDING_BYTES] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut short = [0; BINDING_BYTES];
    short.copy_from_slice(&hash.finalize()[..BINDING_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ActionMatch, AttributeMatch, SessionFilter, action_match::TargetMatch};

    fn filter() -> SessionFilter {
        let target_match = Some(TargetMatch::TargetPrefix("Créate".to_owned()));
        SessionFilter {
            user_id: "ada".to_owned(),
            started_after: Some(prost_types::Timestamp { seconds: 1_793_491_200, nanos: 5_000 }),
            min_action_count: Some(0),
            is_live: Some(false),
            attributes: vec![AttributeMatch {
                key: "release".to_owned(),
                values: vec!["1".to_owned(), "2".to_owned()],
            }],
            all_of: vec![ActionMatch { r#type: "click".to_owned(), target_match, ..Default::default() }],
            ..Default::default()
        }
    }

    fn request() -> ListSessionsRequest {
        ListSessionsRequest { filter: Some(filter()), ascending: true, ..Default::default() }
    }

    #[test]
    fn a_token_opens_only_for_what_chooses_and_orders() {
        let scope = Scope::of_sessions(&request());
        let token = PageToken::seal("place", &scope);
        assert_eq!(PageToken::open(&token, &scope).as_deref(), Some("place"));
        let order_by = SessionOrder::StartTime.into();
        let page_token = token.clone();
        for same in [
            ListSessionsRequest { page_token, page_size: 7, count_total: true, ..request() },
            ListSessionsRequest { order_by, ..request() },
        ] {
            assert_eq!(PageToken::open(&token, &Scope::of_sessions(&same)).as_deref(), Some("place"));
        }
        let order_by = SessionOrder::Duration.into();
        let without_counts = SessionFilter { min_action_count: None, ..filter() };
        let of_bob = SessionFilter { user_id: "bob".to_owned(), ..filter() };
        for other in [
            Scope::of_sessions(&ListSessionsRequest { ascending: false, ..request() }),
            Scope::of_sessions(&ListSessionsRequest { order_by, ..request() }),
            Scope::of_sessions(&ListSessionsRequest { filter: Some(without_counts), ..request() }),
            Scope::of_sessions(&ListSessionsRequest { filter: Some(of_bob), ..request() }),
            Scope::of_sessions(&ListSessionsRequest::default()),
            Scope::of_actions(&ListActionsRequest { filter: Some(filter()), ..Default::default() }),
            Scope::of_users(&ListUsersRequest::default()),
        ] {
            assert_eq!(PageToken::open(&token, &other), None);
        }
        let all = Scope::of_sessions(&ListSessionsRequest::default());
        let empty = ListSessionsRequest { filter: Some(SessionFilter::default()), ..Default::default() };
        assert!(PageToken::open(&PageToken::seal("place", &all), &Scope::of_sessions(&empty)).is_some());
    }

    /// Made by this layout's first release. Where this fails, pages break off while a service is brought up to date.
    #[test]
    fn tokens_of_earlier_releases_stay_good() {
        let token = "AjOnx2VlOtdyMCBwbGFjZQ";
        assert_eq!(PageToken::seal("0 place", &Scope::of_sessions(&request())), token);
        assert_eq!(PageToken::open(token, &Scope::of_sessions(&request())).as_deref(), Some("0 place"));
    }

    #[test]
    fn a_field_that_a_release_adds_makes_no_difference_until_it_is_set() {
        #[derive(Clone, PartialEq, Message)]
        struct Before {
            #[prost(string, tag = "1")]
            user_id: String,
        }
        #[derive(Clone, PartialEq, Message)]
        struct After {
            #[prost(string, tag = "1")]
            user_id: String,
            #[prost(bool, optional, tag = "2")]
            is_new: Option<bool>,
        }
        let user_id = || "ada".to_owned();
        let token = PageToken::seal("place", &Scope::new("list", &Before { user_id: user_id() }));
        let after = |is_new| Scope::new("list", &After { user_id: user_id(), is_new });
        assert!(PageToken::open(&token, &after(None)).is_some());
        assert!(PageToken::open(&token, &after(Some(false))).is_none());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let scope = Scope::of_sessions(&request());
        let token = PageToken::seal("place", &scope);
        for forged in ["", "x", "AQ", &token[1..], &format!("{token}A"), "====", "AQEBAQEBAQEBcGxhY2U"] {
            assert_eq!(PageToken::open(forged, &scope), None, "{forged}");
        }
    }
}
