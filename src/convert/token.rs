//! Page tokens: opaque, and good only for the list they came from with the same other fields.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

/// First byte of every token of this layout.
const VERSION: u8 = 1;

/// Bytes of the digest that binds a token to its list.
const BINDING_BYTES: usize = 8;

/// What a token is bound to: the list, and all fields of the request that decide what is in it.
pub struct Scope([u8; BINDING_BYTES]);

impl Scope {
    /// The scope of a list with these fields.
    #[must_use]
    pub fn new(list: &str, fields: &impl std::fmt::Debug) -> Self {
        Self(digest(&[list.as_bytes(), format!("{fields:?}").as_bytes()]))
    }
}

/// Makes and opens page tokens.
pub struct PageToken;

impl PageToken {
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

    #[test]
    fn a_token_opens_only_for_the_list_and_fields_it_was_made_for() {
        let scope = Scope::new("sessions", &("ada", 1));
        let token = PageToken::seal("place", &scope);
        assert_eq!(PageToken::open(&token, &scope).as_deref(), Some("place"));
        for other in [Scope::new("users", &("ada", 1)), Scope::new("sessions", &("ada", 2))] {
            assert_eq!(PageToken::open(&token, &other), None);
        }
        for forged in ["", "x", "AQ", &token[1..], &format!("{token}A"), "====", "AQEBAQEBAQEBcGxhY2U"] {
            assert_eq!(PageToken::open(forged, &scope), None, "{forged}");
        }
    }
}
