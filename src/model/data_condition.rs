//! Conditions on single values in the data of actions.

use std::{borrow::Cow, cmp::Ordering};

use crate::json::{self, Step, Value};

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

/// What a value must be like. A value of another kind is neither equal nor less nor greater. A number beyond all doubles is less
/// or greater than each, and a surrogate that stands alone is a character that no text has that is given.
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
        let steps = self.path.0.iter().map(|step| match step {
            PathStep::Name(name) => Step::Name(name),
            PathStep::Index(index) => Step::Index(*index),
        });
        let Some(value) = json::find(data, steps) else { return false };
        match &self.test {
            DataTest::Exists => true,
            DataTest::Equal(wanted) => compare(&value, wanted) == Some(Ordering::Equal),
            DataTest::NotEqual(wanted) => compare(&value, wanted) != Some(Ordering::Equal),
            DataTest::Less(wanted) => compare(&value, wanted) == Some(Ordering::Less),
            DataTest::LessOrEqual(wanted) => compare(&value, wanted).is_some_and(Ordering::is_le),
            DataTest::Greater(wanted) => compare(&value, wanted) == Some(Ordering::Greater),
            DataTest::GreaterOrEqual(wanted) => compare(&value, wanted).is_some_and(Ordering::is_ge),
            DataTest::Contains(wanted) => match (&value, wanted) {
                (Value::Text(text), Scalar::Text(part)) => contains(text, part),
                (Value::Array(elements), _) => {
                    elements.iter().any(|element| compare(element, wanted) == Some(Ordering::Equal))
                }
                _ => false,
            },
        }
    }
}

/// How a value compares with a scalar. None where it is of another kind.
fn compare(value: &Value<'_>, wanted: &Scalar) -> Option<Ordering> {
    match (value, wanted) {
        (Value::Text(text), Scalar::Text(wanted)) => Some((**text).cmp(wanted.as_bytes())),
        (Value::Number(number), Scalar::Number(wanted)) => number.partial_cmp(wanted),
        (Value::Boolean(boolean), Scalar::Boolean(wanted)) => Some(boolean.cmp(wanted)),
        _ => None,
    }
}

/// Whether a part is in a text, in which surrogates may stand alone: in the part they do not.
fn contains(text: &[u8], part: &str) -> bool {
    part.is_empty() || text.utf8_chunks().any(|chunk| chunk.valid().contains(part))
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
            (DataTest::Exists, r#""hi \ud83d""#, true),
            (DataTest::Contains(text("hi ")), r#""\ud83dhi \ud83d""#, true),
            (DataTest::Contains(text("hi!")), r#""hi\ud83d!""#, false),
            (DataTest::Contains(text("")), r#""""#, true),
            (DataTest::NotEqual(text("hi")), r#""hi \ud83d""#, true),
            (DataTest::Greater(text("hi z")), r#""hi \ud83d""#, true),
            (DataTest::Exists, "1e309", true),
            (DataTest::Greater(Scalar::Number(f64::MAX)), "1e309", true),
            (DataTest::Equal(Scalar::Number(f64::MAX)), "1e309", false),
            (DataTest::Less(Scalar::Number(f64::MIN)), "-1e309", true),
        ] {
            assert_eq!(holds("$", test.clone(), data), expected, "{test:?} of {data}");
        }
    }
}
