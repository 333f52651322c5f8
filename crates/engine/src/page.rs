//! Keeping a reply within its bound, counted in the very bytes that it takes as JSON.

use std::io;

use serde::Serialize;

/// What is left of the bytes of a reply that is being filled.
#[derive(Debug)]
pub(crate) struct Page {
    used_bytes: usize,
    max_bytes: usize,
    items: u32,
    items_max: u32,
}

impl Page {
    /// A page whose reply without items and with an empty cursor takes `envelope_bytes`.
    pub(crate) fn begin(envelope_bytes: usize, max_bytes: usize, items_max: u32) -> Self {
        Self { used_bytes: envelope_bytes, max_bytes, items: 0, items_max }
    }

    /// A page that everything fits.
    pub(crate) fn unbounded() -> Self {
        Self::begin(0, usize::MAX, u32::MAX)
    }

    /// Takes room for an item if the reply still fits with it, its comma, and a cursor behind it.
    #[must_use]
    pub(crate) fn admit(&mut self, item_bytes: usize, cursor_bytes: usize) -> bool {
        let used_bytes = self.used_bytes.saturating_add(item_bytes).saturating_add(1);
        let fits = used_bytes.saturating_add(cursor_bytes) <= self.max_bytes;
        if !fits || self.items == self.items_max {
            return false;
        }
        if self.max_bytes != usize::MAX {
            self.used_bytes = used_bytes;
            self.items += 1;
        }
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items == 0
    }
}

/// The length of a value as compact JSON, in bytes.
///
/// The types of this crate always serialize; if one did not, it would count as too large.
pub(crate) fn json_bytes(value: &impl Serialize) -> usize {
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value).map_or(usize::MAX, |()| counter.0)
}

/// A writer that only counts.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_serialized_length() {
        let value = ("a\"\n\u{1}é", 17, [true, false]);
        assert_eq!(json_bytes(&value), serde_json::to_vec(&value).unwrap().len());
    }

    #[test]
    fn a_page_is_full_by_bytes_or_by_items() {
        let mut page = Page::begin(10, 31, 9);
        assert!(page.admit(9, 5));
        assert!(!page.admit(9, 5), "10 + 10 + 10 + 5 > 31");
        assert!(!page.admit(7, 4), "the comma counts: 20 + 7 + 1 + 4 > 31");
        assert!(page.admit(5, 5), "10 + 10 + 6 + 5 = 31");
        let mut page = Page::begin(10, 1000, 1);
        assert!(page.is_empty() && page.admit(1, 0));
        assert!(!page.admit(1, 0));
        assert!(!page.admit(usize::MAX, usize::MAX));
    }
}
