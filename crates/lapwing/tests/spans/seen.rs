//! A subscriber that keeps all it is told, for the tests of spans.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, Once};

use lapwing_testkit::eventually;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// One span, as far as it has come.
#[derive(Clone, Default, Debug)]
pub(crate) struct Span {
    pub(crate) name: &'static str,
    pub(crate) target: String,
    pub(crate) fields: HashMap<&'static str, String>,
    /// The name of the span it is in, in this process.
    pub(crate) inside: Option<&'static str>,
    pub(crate) entered: usize,
    pub(crate) closed: bool,
    /// Messages of events within it.
    pub(crate) events: Vec<String>,
}

impl Span {
    /// A field's text, or nothing.
    pub(crate) fn get(&self, field: &str) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Seen {
    spans: Vec<Span>,
    /// Ids are used again once a span is closed.
    by_id: HashMap<u64, usize>,
    /// Everything that was told, in one text.
    text: String,
}

static SEEN: Mutex<Option<Seen>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Seen>> {
    SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn with<R>(work: impl FnOnce(&mut Seen) -> R) -> R {
    work(lock().get_or_insert_default())
}

fn of<R>(id: &Id, work: impl FnOnce(&mut Span) -> R) -> R {
    with(|seen| {
        let at = seen.by_id[&id.into_u64()];
        work(&mut seen.spans[at])
    })
}

/// Takes what is told in this process from now on, down to this level.
pub(crate) fn listen(level: LevelFilter) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = Registry::default().with(Keep.with_filter(level));
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// The spans of this name and method, closed or not.
pub(crate) fn spans(name: &str, method: &str) -> Vec<Span> {
    let wanted = |span: &&Span| span.name == name && span.get("method") == method;
    with(|seen| seen.spans.iter().filter(wanted).cloned().collect())
}

/// The only span of this name and method, once it is closed.
pub(crate) fn closed(name: &str, method: &str) -> Span {
    eventually(&format!("{name} of {method} closes"), || {
        let found = spans(name, method);
        assert!(found.len() < 2, "{found:?}");
        found.into_iter().find(|span| span.closed)
    })
}

/// How many spans there were.
pub(crate) fn count() -> usize {
    with(|seen| seen.spans.len())
}

/// Everything that was told so far.
pub(crate) fn text() -> String {
    with(|seen| seen.text.clone())
}

struct Keep;

#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }
}

fn noted(fields: &Fields) {
    with(|seen| {
        for (name, value) in &fields.0 {
            seen.text.push_str(&format!("{name}={value}\n"));
        }
    });
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keep {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        noted(&fields);
        let inside = context.span(id).and_then(|span| span.parent()).map(|parent| parent.name());
        let metadata = attributes.metadata();
        with(|seen| {
            seen.by_id.insert(id.into_u64(), seen.spans.len());
            seen.spans.push(Span {
                name: metadata.name(),
                target: metadata.target().to_owned(),
                fields: fields.0.into_iter().collect(),
                inside,
                ..Span::default()
            });
        });
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        record.record(&mut fields);
        noted(&fields);
        of(id, |span| {
            for (name, value) in fields.0 {
                let before = span.fields.insert(name, value);
                assert_eq!(before, None, "{name} is said once");
            }
        });
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        noted(&fields);
        if let Some(span) = context.event_span(event) {
            let said = fields.0.into_iter().map(|(_, value)| value);
            of(&span.id(), |span| span.events.extend(said));
        }
    }

    fn on_enter(&self, id: &Id, _: Context<'_, S>) {
        of(id, |span| span.entered += 1);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        of(&id, |span| span.closed = true);
    }
}
