//! What people do in a web application: types, targets and data of the generated actions.

use rand::{Rng, RngExt as _};

const NOUNS: [&str; 20] = [
    "Post",
    "Comment",
    "Invoice",
    "Report",
    "Photo",
    "Message",
    "Profile",
    "Project",
    "Task",
    "Ticket",
    "Order",
    "Cart",
    "Account",
    "Team",
    "Event",
    "File",
    "Folder",
    "Ledger",
    "Payment",
    "Subscription",
];
const VERBS: [&str; 10] = ["Create", "Save", "Delete", "Share", "Open", "Export", "Edit", "Send", "Copy", "Archive"];
const METHODS: [&str; 4] = ["GET", "GET", "POST", "PUT"];
const ERRORS: [&str; 6] =
    ["TypeError", "NetworkError", "ChunkLoadError", "AbortError", "PostFailed", "QuotaExceededError"];
const WORDS: [&str; 12] = [
    "render", "commit", "dispatch", "handler", "promise", "effect", "router", "query", "cache", "layout", "resolve",
    "schedule",
];

/// An action without its time.
pub struct Content {
    pub kind: &'static str,
    pub target: String,
    /// 20 to 400 bytes of JSON.
    pub data: String,
}

/// Some are asked for again and again, most are rare.
fn favourite<'a>(random: &mut impl Rng, from: &[&'a str]) -> &'a str {
    let share: f64 = random.random();
    from[(share * share * from.len() as f64) as usize]
}

fn button(random: &mut impl Rng) -> String {
    format!("{} {}", favourite(random, &VERBS), favourite(random, &NOUNS))
}

fn page(random: &mut impl Rng) -> String {
    let noun = favourite(random, &NOUNS).to_lowercase();
    if random.random_bool(0.4) { format!("/{noun}s/{}", random.random_range(1..5_000)) } else { format!("/{noun}s") }
}

/// What happens next: 0.7 % are errors.
pub fn content(random: &mut impl Rng) -> Content {
    match random.random_range(0..1_000) {
        0..300 => click(random),
        300..470 => scroll(random),
        470..600 => input(random),
        600..700 => navigation(random),
        700..900 => request(random),
        900..993 => mutation(random),
        _ => error(random),
    }
}

fn click(random: &mut impl Rng) -> Content {
    let (x, y, child) = (random.random_range(0..1_920), random.random_range(0..1_080), random.random_range(1..12));
    let data = format!(
        r#"{{"x":{x},"y":{y},"selector":"main > section:nth-child({child}) > div.toolbar > button","button":0,"path":"{}","viewport":[1440,900]}}"#,
        page(random)
    );
    Content { kind: "click", target: button(random), data }
}

fn scroll(random: &mut impl Rng) -> Content {
    let data =
        format!(r#"{{"x":0,"y":{},"height":{}}}"#, random.random_range(0..9_000), random.random_range(900..12_000));
    Content { kind: "scroll", target: page(random), data }
}

fn input(random: &mut impl Rng) -> Content {
    let field = favourite(random, &NOUNS).to_lowercase();
    let data = format!(
        r#"{{"field":"{field}-name","length":{},"masked":true,"selector":"form#edit-{field} input[name={field}]"}}"#,
        random.random_range(1..80)
    );
    Content { kind: "input", target: format!("{field}-name"), data }
}

fn navigation(random: &mut impl Rng) -> Content {
    let data = format!(
        r#"{{"from":"{}","title":"{} · Example","load_ms":{},"first_paint_ms":{},"transferred":{},"kind":"navigate"}}"#,
        page(random),
        favourite(random, &NOUNS),
        random.random_range(80..2_500),
        random.random_range(40..900),
        random.random_range(4_000..900_000)
    );
    Content { kind: "navigation", target: page(random), data }
}

fn request(random: &mut impl Rng) -> Content {
    let (milliseconds, bytes) = (random.random_range(3..900), random.random_range(100..90_000));
    let data = format!(
        r#"{{"status":200,"duration_ms":{milliseconds},"bytes":{bytes},"request_id":"{:032x}","cache":"miss","protocol":"h2","initiator":"fetch"}}"#,
        random.random::<u128>()
    );
    let target = format!("{} /api{}", favourite(random, &METHODS), page(random));
    Content { kind: "request", target, data }
}

/// A change of the page, as a recorder tells it: the largest of them.
fn mutation(random: &mut impl Rng) -> Content {
    let nodes: Vec<_> = (0..random.random_range(3..10))
        .map(|_| format!(r#"{{"id":{},"text":"{}"}}"#, random.random_range(1..90_000), favourite(random, &WORDS)))
        .collect();
    Content { kind: "mutation", target: page(random), data: format!(r#"{{"source":0,"adds":[{}]}}"#, nodes.join(",")) }
}

fn error(random: &mut impl Rng) -> Content {
    let frames: Vec<_> = (0..random.random_range(2..6))
        .map(|_| {
            let (word, line) = (favourite(random, &WORDS), random.random_range(1..9_999));
            format!(r"at {word} (https://app.example/assets/{word}.js:{line})")
        })
        .collect();
    let data = format!(r#"{{"message":"{} failed","stack":"{}"}}"#, button(random), frames.join(r"\n"));
    Content { kind: "error", target: favourite(random, &ERRORS).to_owned(), data }
}
