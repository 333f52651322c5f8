//! Which handler a kind goes to.

use lapwing_proto::{Description, Kind, MethodDescription, MethodShape, limits::METHOD_NAME_BYTES};

use super::handler::Handler;

/// Why a set of routes cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RouteError {
    /// The kind belongs to the connection, or to nobody.
    #[error("kind {kind:#06x} of '{name}' is not an application's: use 0x0100 to 0xFFFF")]
    BadKind {
        /// The kind.
        kind: u16,
        /// The route's name.
        name: String,
    },
    /// Two routes with one kind.
    #[error("'{name}' and '{other}' have the same kind {kind:#06x}; give one of them another")]
    SameKind {
        /// The kind.
        kind: u16,
        /// The later route's name.
        name: String,
        /// The earlier route's name.
        other: String,
    },
    /// Two routes with one name.
    #[error("two routes are called '{0}'; give one of them another name")]
    SameName(String),
    /// The name is empty, too long, or not plain.
    #[error(
        "'{0}' is no method name: use 1 to {METHOD_NAME_BYTES} letters, digits, '.', '_', '-', '/'"
    )]
    BadName(String),
}

/// A route as it was added.
#[derive(Debug)]
pub(crate) struct Route {
    /// Its place among the routes of its server.
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) shape: MethodShape,
    pub(crate) handler: Handler,
}

/// All routes of a server. Finding one is two array look-ups.
#[derive(Debug)]
pub(crate) struct Router {
    routes: Vec<Route>,
    /// For the high byte of a kind: which page of `pages`; page 0 is empty.
    page_of: [u8; 256],
    /// For the low byte of a kind: its route plus one; 0 is none.
    pages: Vec<[u16; 256]>,
}

impl Router {
    pub(crate) fn new() -> Router {
        Router { routes: Vec::new(), page_of: [0; 256], pages: vec![[0; 256]] }
    }

    pub(crate) fn add(
        &mut self,
        kind: u16,
        name: &str,
        shape: MethodShape,
        handler: Handler,
    ) -> Result<(), RouteError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if name.is_empty() || name.len() > METHOD_NAME_BYTES as usize || !name.chars().all(plain) {
            return Err(RouteError::BadName(name.to_owned()));
        }
        let name = name.to_owned();
        let Some(kind) = Kind::application(kind) else {
            return Err(RouteError::BadKind { kind, name });
        };
        if let Some(other) = self.find(kind) {
            let (kind, other) = (kind.number(), other.name.clone());
            return Err(RouteError::SameKind { kind, name, other });
        }
        if self.routes.iter().any(|route| route.name == name) {
            return Err(RouteError::SameName(name));
        }
        let index = self.routes.len();
        self.routes.push(Route { index, name, kind, shape, handler });
        let [high, low] = kind.number().to_be_bytes();
        if self.page_of[usize::from(high)] == 0 {
            // Pages 1 to 255: kinds from 0x0100 on have 255 high bytes.
            self.page_of[usize::from(high)] = self.pages.len() as u8;
            self.pages.push([0; 256]);
        }
        let page = usize::from(self.page_of[usize::from(high)]);
        self.pages[page][usize::from(low)] = self.routes.len() as u16;
        Ok(())
    }

    #[inline]
    pub(crate) fn find(&self, kind: Kind) -> Option<&Route> {
        let [high, low] = kind.number().to_be_bytes();
        let page = &self.pages[usize::from(self.page_of[usize::from(high)])];
        let route = usize::from(page[usize::from(low)]);
        self.routes.get(route.checked_sub(1)?)
    }

    pub(crate) fn len(&self) -> usize {
        self.routes.len()
    }

    pub(crate) fn describe(&self) -> Description {
        let methods = self.routes.iter().map(|route| MethodDescription {
            kind: route.kind.number(),
            name: route.name.clone(),
            shape: route.shape,
        });
        Description { methods: methods.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline() -> Handler {
        Handler::Inline(Box::new(|_, _, _| Ok(())))
    }

    #[test]
    fn routes_are_found_by_kind_over_the_whole_range() {
        let mut router = Router::new();
        let kinds = [0x0100, 0x01FF, 0x0200, 0x0310, 0xFF00, 0xFFFF];
        for kind in kinds {
            router.add(kind, &format!("m{kind}"), MethodShape::Unary, inline()).unwrap();
        }
        for number in 0x0100..=0xFFFF_u16 {
            let found = router.find(Kind::new(number).unwrap());
            assert_eq!(
                found.map(|route| route.kind.number()),
                kinds.contains(&number).then_some(number)
            );
        }
        assert!(router.find(Kind::PING).is_none());
    }

    #[test]
    fn every_high_byte_can_have_a_page() {
        let mut router = Router::new();
        for high in 1..=255_u16 {
            router.add(high << 8, &format!("m{high}"), MethodShape::Unary, inline()).unwrap();
        }
        for high in 1..=255_u16 {
            let route = router.find(Kind::new(high << 8).unwrap()).unwrap();
            assert_eq!(route.name, format!("m{high}"));
        }
    }

    #[test]
    fn conflicting_and_impossible_routes_are_refused_by_name() {
        let mut router = Router::new();
        router.add(0x0300, "fs.list", MethodShape::Unary, inline()).unwrap();
        let same_kind = router.add(0x0300, "fs.read", MethodShape::Unary, inline()).unwrap_err();
        assert!(matches!(same_kind, RouteError::SameKind { kind: 0x0300, .. }));
        let same_name = router.add(0x0301, "fs.list", MethodShape::Unary, inline());
        assert_eq!(same_name, Err(RouteError::SameName("fs.list".into())));
        assert!(matches!(
            router.add(0x00FF, "low", MethodShape::Unary, inline()),
            Err(RouteError::BadKind { .. })
        ));
        assert!(matches!(
            router.add(0, "never", MethodShape::Unary, inline()),
            Err(RouteError::BadKind { .. })
        ));
        for name in ["", "has space", "new\nline", &"x".repeat(129)] {
            assert!(matches!(
                router.add(0x0400, name, MethodShape::Unary, inline()),
                Err(RouteError::BadName(_))
            ));
        }
    }
}
