//! Conditions on single values in the data of actions.

use std::{borrow::Cow, cmp::Ordering, fmt};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A condition on one value in an action's data.
#[derive(Clone, Debug, PartialEq)]
pub struct DataCondition {
    /// Where the value is.
    pub path: DataPath,
    /// What it must be like.
    pub test: DataTest,
}

/// Where a value is in a JSON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPath(Vec<PathStep>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum PathStep {
    Name(String),
    Index(usize),
}

/// A step on the way to a value in a JSON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataStep<'a> {
    /// Into the field of an object.
    Name(Cow<'a, str>),
    /// Into the element of an array.
    Index(usize),
}

impl DataPath {
    /// Whether these steps lead there.
    #[must_use]
    pub fn is(&self, steps: &[DataStep<'_>]) -> bool {
        let is_step = |(one, other): (&PathStep, &DataStep<'_>)| match (one, other) {
            (PathStep::Name(one), DataStep::Name(other)) => one == other,
            (PathStep::Index(one), DataStep::Index(other)) => one == other,
            _ => false,
        };
        self.0.len() == steps.len() && self.0.iter().zip(steps).all(is_step)
    }
}

/// What a value must be like. A value of another kind is neither equal nor less nor greater.
#[derive(Clone, Debug, PartialEq)]
pub enum DataTest {
    /// There is one.
    Exists,
    /// It is this.
    Equal(Scalar),
    /// It is another.
    NotEqual(Scalar),
    /// It is less.
    Less(Scalar),
    /// It is less or equal.
    LessOrEqual(Scalar),
    /// It is greater.
    Greater(Scalar),
    /// It is greater or equal.
    GreaterOrEqual(Scalar),
    /// It is a text with this in it, or an array with this as an element.
    Contains(Scalar),
}

/// What a value is compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// A text, compared byte by byte.
    Text(String),
    /// A number.
    Number(f64),
    /// True or false.
    Boolean(bool),
}

/// The text is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `$` and at most 16 steps, each one of `.name`, `[\"name\"]` and `[0]`")]
pub struct NotAPath;

/// Steps of a path at most.
const MAX_STEPS: usize = 16;

impl std::str::FromStr for DataPath {
    type Err = NotAPath;

    fn from_str(text: &str) -> Result<Self, NotAPath> {
        let mut rest = text.strip_prefix('$').ok_or(NotAPath)?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = if let Some(name) = rest.strip_prefix('.') {
                let length = name.find(['.', '[']).unwrap_or(name.len());
                let (name, after) = name.split_at(length);
                (Some(name).filter(|name| !name.is_empty()).map(|name| PathStep::Name(name.to_owned())), after)
            } else if rest.starts_with("[\"") {
                // As JSON spells a text, so that any name can be said.
                let mut names = serde_json::Deserializer::from_str(&rest[1..]).into_iter::<String>();
                let name = names.next().and_then(Result::ok);
                let after = rest.get(1 + names.byte_offset()..).and_then(|after| after.strip_prefix(']'));
                (name.map(PathStep::Name), after.ok_or(NotAPath)?)
            } else {
                let (index, after) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).ok_or(NotAPath)?;
                let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
                (index.parse().ok().filter(|_| is_number).map(PathStep::Index), after)
            };
            steps.push(step.ok_or(NotAPath)?);
            rest = after;
        }
        if steps.len() > MAX_STEPS { Err(NotAPath) } else { Ok(Self(steps)) }
    }
}

impl DataCondition {
    /// Whether all of these hold for an action with this data. What is empty, or no JSON, meets no condition.
    #[must_use]
    pub fn all_hold(conditions: &[Self], data: &str) -> bool {
        conditions.iter().all(|condition| condition.holds(data))
    }

    fn holds(&self, data: &str) -> bool {
        let mut json = serde_json::Deserializer::from_str(data);
        let Ok(Some(value)) = Seek(&self.path.0).deserialize(&mut json) else { return false };
        match &self.test {
            DataTest::Exists => true,
            DataTest::Equal(wanted) => value.compare(wanted) == Some(Ordering::Equal),
            DataTest::NotEqual(wanted) => value.compare(wanted) != Some(Ordering::Equal),
            DataTest::Less(wanted) => value.compare(wanted) == Some(Ordering::Less),
            DataTest::LessOrEqual(wanted) => value.compare(wanted).is_some_and(Ordering::is_le),
            DataTest::Greater(wanted) => value.compare(wanted) == Some(Ordering::Greater),
            DataTest::GreaterOrEqual(wanted) => value.compare(wanted).is_some_and(Ordering::is_ge),
            DataTest::Contains(wanted) => match (&value, wanted) {
                (Found::Scalar(Scalar::Text(text)), Scalar::Text(part)) => text.contains(part.as_str()),
                (Found::Array(elements), _) => {
                    elements.iter().any(|element| element.compare(wanted) == Some(Ordering::Equal))
                }
                _ => false,
            },
        }
    }
}

/// A value in an action's data, as far as conditions look at it.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Scalar(Scalar),
    Array(Vec<Found>),
    /// Null, an object, or an array in an array.
    Other,
}

impl Found {
    /// How it compares with a scalar. None where it is of another kind.
    fn compare(&self, wanted: &Scalar) -> Option<Ordering> {
        match (self, wanted) {
            (Self::Scalar(Scalar::Text(text)), Scalar::Text(wanted)) => Some(text.cmp(wanted)),
            (Self::Scalar(Scalar::Number(number)), Scalar::Number(wanted)) => number.partial_cmp(wanted),
            (Self::Scalar(Scalar::Boolean(boolean)), Scalar::Boolean(wanted)) => Some(boolean.cmp(wanted)),
            _ => None,
        }
    }
}

/// Finds the value at the end of these steps. Passes over all others without taking them apart: they may be nested deeper
/// than the stack allows.
struct Seek<'a>(&'a [PathStep]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Option<Found>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<Found>, D::Error> {
        json.deserialize_any(self)
    }
}

impl Seek<'_> {
    fn scalar(&self, scalar: Scalar) -> Option<Found> {
        self.0.is_empty().then_some(Found::Scalar(scalar))
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Option<Found>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Option<Found>, E> {
        Ok(self.0.is_empty().then_some(Found::Other))
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Option<Found>, E> {
        Ok(self.scalar(Scalar::Boolean(boolean)))
    }

    #[allow(clippy::cast_precision_loss)] // Numbers are compared as doubles.
    fn visit_u64<E>(self, number: u64) -> Result<Option<Found>, E> {
        Ok(self.scalar(Scalar::Number(number as f64)))
    }

    #[allow(clippy::cast_precision_loss)]
    fn visit_i64<E>(self, number: i64) -> Result<Option<Found>, E> {
        Ok(self.scalar(Scalar::Number(number as f64)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Option<Found>, E> {
        Ok(self.scalar(Scalar::Number(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Option<Found>, E> {
        Ok(if self.0.is_empty() { self.scalar(Scalar::Text(text.to_owned())) } else { None })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Option<Found>, A::Error> {
        let (wanted, rest) = match self.0.split_first() {
            None => {
                let mut found = Vec::new();
                while let Some(element) = elements.next_element_seed(Element)? {
                    found.push(element);
                }
                return Ok(Some(Found::Array(found)));
            }
            Some((PathStep::Index(index), rest)) => (Some(*index), rest),
            Some((PathStep::Name(_), rest)) => (None, rest),
        };
        let (mut found, mut index) = (None, 0);
        loop {
            if wanted == Some(index) {
                match elements.next_element_seed(Seek(rest))? {
                    Some(value) => found = value,
                    None => return Ok(found),
                }
            } else if elements.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Option<Found>, A::Error> {
        let (wanted, rest) = match self.0.split_first() {
            Some((PathStep::Name(name), rest)) => (Some(name), rest),
            _ => (None, self.0),
        };
        let mut found = self.0.is_empty().then_some(Found::Other);
        while let Some(name) = entries.next_key::<String>()? {
            if wanted == Some(&name) {
                found = entries.next_value_seed(Seek(rest))?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// An element of an array that is looked through.
struct Element;

impl<'de> DeserializeSeed<'de> for Element {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Found, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Found, E> {
        Ok(Found::Scalar(Scalar::Boolean(boolean)))
    }

    #[allow(clippy::cast_precision_loss)]
    fn visit_u64<E>(self, number: u64) -> Result<Found, E> {
        Ok(Found::Scalar(Scalar::Number(number as f64)))
    }

    #[allow(clippy::cast_precision_loss)]
    fn visit_i64<E>(self, number: i64) -> Result<Found, E> {
        Ok(Found::Scalar(Scalar::Number(number as f64)))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Found, E> {
        Ok(Found::Scalar(Scalar::Number(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Found, E> {
        Ok(Found::Scalar(Scalar::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Found, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Found, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(path: &str, test: DataTest, data: &str) -> bool {
        let condition = DataCondition { path: path.parse().expect("a path"), test };
        DataCondition::all_hold(&[condition], data)
    }

    #[test]
    fn a_path_names_what_it_says_and_nothing_else() {
        let data = r#"{"a":{"b c":[10,{"x.y":null}]},"a":{"b c":[11,{"x.y":null,"[\"":1}]}}"#;
        let number = |wanted| DataTest::Equal(Scalar::Number(wanted));
        // The last of two equal names counts.
        assert!(holds(r#"$.a["b c"][0]"#, number(11.0), data));
        assert!(holds(r#"$["a"]["b c"][1]["x.y"]"#, DataTest::Exists, data));
        assert!(holds(r#"$.a.b c[1]["[\""]"#, number(1.0), data));
        assert!(holds("$", DataTest::Exists, "7"));
        for absent in [r#"$.a["b c"][2]"#, "$.b", "$[0]", "$.a.x"] {
            assert!(!holds(absent, DataTest::Exists, data), "{absent}");
        }
        for wrong in [
            "", "a", "$a", "$.", "$..a", "$[", "$[]", "$[-1]", "$[+1]", "$[\"a\"", "$[\"a]", "$['a']", "$.a.", "$[1.0]",
        ] {
            assert_eq!(wrong.parse::<DataPath>(), Err(NotAPath), "{wrong}");
        }
        assert!(format!("${}", ".a".repeat(16)).parse::<DataPath>().is_ok());
        assert!(format!("${}", ".a".repeat(17)).parse::<DataPath>().is_err());
    }

    #[test]
    fn values_of_different_kinds_are_neither_equal_nor_ordered() {
        let text = |wanted: &str| Scalar::Text(wanted.to_owned());
        for (test, data, expected) in [
            (DataTest::Equal(text("1")), "1", false),
            (DataTest::NotEqual(text("1")), "1", true),
            (DataTest::NotEqual(text("1")), "null", true),
            (DataTest::Less(Scalar::Number(2.0)), "1", true),
            (DataTest::Less(Scalar::Number(2.0)), "2", false),
            (DataTest::LessOrEqual(Scalar::Number(2.0)), "2.0", true),
            (DataTest::Greater(Scalar::Number(2.0)), "\"3\"", false),
            (DataTest::GreaterOrEqual(text("b")), "\"b\"", true),
            (DataTest::Contains(text("b")), "\"abc\"", true),
            (DataTest::Contains(Scalar::Boolean(true)), "[1,true]", true),
            (DataTest::Contains(text("b")), "[\"abc\"]", false),
            (DataTest::Contains(text("b")), "{\"b\":1}", false),
            (DataTest::Exists, "null", true),
            (DataTest::Exists, "", false),
        ] {
            assert_eq!(holds("$", test.clone(), data), expected, "{test:?} of {data}");
        }
    }
}
