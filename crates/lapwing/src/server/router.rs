//! Which handler a kind goes to.

use lapwing_proto::limits::{CODEC_NAME_BYTES, METHOD_NAME_BYTES, SCHEMA_BYTES};
use lapwing_proto::{Description, Kind, MethodDescription, MethodDetails, MethodShape};

use super::handler::Handler;
use crate::codec::{Codec, Json, Raw};

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
    /// A codec's name is empty, too long, or not plain.
    #[error(
        "'{0}' is no codec's name: use 1 to {CODEC_NAME_BYTES} letters, digits, '.', '_', '-', '/'"
    )]
    BadCodec(String),
    /// Schemas without a route for them.
    #[error(
        "the schemas of '{name}' ({kind:#06x}) have no route: before them, add one of this number, name, shape and codec"
    )]
    NoRoute {
        /// The kind.
        kind: u16,
        /// The name.
        name: String,
    },
    /// A schema is too long to be described.
    #[error("a schema of '{name}' has {bytes} bytes, and may have {SCHEMA_BYTES}")]
    SchemaTooLong {
        /// The route's name.
        name: String,
        /// The schema's length, in bytes.
        bytes: usize,
    },
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

/// What a route is called with beyond its shape; nothing that a call looks at.
#[derive(Debug)]
struct Payloads {
    codec: &'static str,
    schemas: Schemas,
}

/// JSON Schema of what a method takes and gives, where its types have one.
#[derive(Default, Debug)]
pub(crate) struct Schemas {
    pub(crate) request: Option<String>,
    pub(crate) reply: Option<String>,
}

/// All routes of a server. Finding one is two array look-ups.
#[derive(Debug)]
pub(crate) struct Router {
    routes: Vec<Route>,
    /// For each route, in the same order.
    payloads: Vec<Payloads>,
    /// For the high byte of a kind: which page of `pages`; page 0 is empty.
    page_of: [u8; 256],
    /// For the low byte of a kind: its route plus one; 0 is none.
    pages: Vec<[u16; 256]>,
}

impl Router {
    pub(crate) fn new() -> Router {
        Router {
            routes: Vec::new(),
            payloads: Vec::new(),
            page_of: [0; 256],
            pages: vec![[0; 256]],
        }
    }

    pub(crate) fn add(
        &mut self,
        kind: u16,
        name: &str,
        shape: MethodShape,
        codec: &'static str,
        handler: Handler,
    ) -> Result<(), RouteError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if name.is_empty() || name.len() > METHOD_NAME_BYTES as usize || !name.chars().all(plain) {
            return Err(RouteError::BadName(name.to_owned()));
        }
        let codec_max = CODEC_NAME_BYTES as usize;
        if codec.is_empty() || codec.len() > codec_max || !codec.chars().all(plain) {
            return Err(RouteError::BadCodec(codec.to_owned()));
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
        self.payloads.push(Payloads { codec, schemas: Schemas::default() });
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

    /// Says what a route takes and gives. One of bytes may so say, too, that they are JSON.
    pub(crate) fn add_schemas(
        &mut self,
        kind: u16,
        name: &str,
        shape: MethodShape,
        codec: &'static str,
        schemas: Schemas,
    ) -> Result<(), RouteError> {
        for schema in [&schemas.request, &schemas.reply].into_iter().flatten() {
            let (name, bytes) = (name.to_owned(), schema.len());
            if bytes > SCHEMA_BYTES as usize {
                return Err(RouteError::SchemaTooLong { name, bytes });
            }
        }
        let no_route = || RouteError::NoRoute { kind, name: name.to_owned() };
        let at = Kind::new(kind).and_then(|kind| self.place(kind)).ok_or_else(no_route)?;
        let (route, payloads) = (&self.routes[at], &mut self.payloads[at]);
        let bytes_as_json = payloads.codec == Raw::NAME && codec == Json::NAME;
        if route.name != name || route.shape != shape || payloads.codec != codec && !bytes_as_json {
            return Err(no_route());
        }
        *payloads = Payloads { codec, schemas };
        Ok(())
    }

    #[inline]
    pub(crate) fn find(&self, kind: Kind) -> Option<&Route> {
        self.routes.get(self.place(kind)?)
    }

    #[inline]
    fn place(&self, kind: Kind) -> Option<usize> {
        let [high, low] = kind.number().to_be_bytes();
        let page = &self.pages[usize::from(self.page_of[usize::from(high)])];
        usize::from(page[usize::from(low)]).checked_sub(1)
    }

    /// One method in full.
    pub(crate) fn details(&self, kind: Kind) -> Option<MethodDetails> {
        let at = self.place(kind)?;
        let (route, Payloads { codec, schemas }) = (&self.routes[at], &self.payloads[at]);
        Some(MethodDetails {
            kind: route.kind.number(),
            name: route.name.clone(),
            shape: route.shape,
            codec: (*codec).to_owned(),
            request_schema: schemas.request.clone(),
            reply_schema: schemas.reply.clone(),
        })
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
            router.add(kind, &format!("m{kind}"), MethodShape::Unary, "raw", inline()).unwrap();
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
            router
                .add(high << 8, &format!("m{high}"), MethodShape::Unary, "raw", inline())
                .unwrap();
        }
        for high in 1..=255_u16 {
            let route = router.find(Kind::new(high << 8).unwrap()).unwrap();
            assert_eq!(route.name, format!("m{high}"));
        }
    }

    #[test]
    fn conflicting_and_impossible_routes_are_refused_by_name() {
        let mut router = Router::new();
        router.add(0x0300, "fs.list", MethodShape::Unary, "raw", inline()).unwrap();
        let same_kind =
            router.add(0x0300, "fs.read", MethodShape::Unary, "raw", inline()).unwrap_err();
        assert!(matches!(same_kind, RouteError::SameKind { kind: 0x0300, .. }));
        let same_name = router.add(0x0301, "fs.list", MethodShape::Unary, "raw", inline());
        assert_eq!(same_name, Err(RouteError::SameName("fs.list".into())));
        assert!(matches!(
            router.add(0x00FF, "low", MethodShape::Unary, "raw", inline()),
            Err(RouteError::BadKind { .. })
        ));
        assert!(matches!(
            router.add(0, "never", MethodShape::Unary, "raw", inline()),
            Err(RouteError::BadKind { .. })
        ));
        for name in ["", "has space", "new\nline", &"x".repeat(129)] {
            assert!(matches!(
                router.add(0x0400, name, MethodShape::Unary, "raw", inline()),
                Err(RouteError::BadName(_))
            ));
        }
    }

    #[test]
    fn schemas_belong_to_a_route_of_the_same_number_name_shape_and_codec() {
        let mut router = Router::new();
        router.add(0x0300, "fs.list", MethodShape::Unary, "raw", inline()).unwrap();
        router.add(0x0301, "fs.each", MethodShape::ServerStream, "postcard", inline()).unwrap();
        let schemas = || Schemas { request: Some("true".into()), reply: Some("false".into()) };
        let mut add =
            |kind, name, shape, codec| router.add_schemas(kind, name, shape, codec, schemas());
        for (kind, name, shape, codec) in [
            (0, "fs.list", MethodShape::Unary, "json"),
            (0x0302, "fs.list", MethodShape::Unary, "json"),
            (0x0300, "fs.lists", MethodShape::Unary, "json"),
            (0x0300, "fs.list", MethodShape::OneWay, "json"),
            (0x0300, "fs.list", MethodShape::Unary, "postcard"),
            (0x0301, "fs.each", MethodShape::ServerStream, "json"),
        ] {
            let name_too = name.to_owned();
            let refused = Err(RouteError::NoRoute { kind, name: name_too });
            assert_eq!(add(kind, name, shape, codec), refused);
        }
        add(0x0300, "fs.list", MethodShape::Unary, "json").unwrap();
        add(0x0301, "fs.each", MethodShape::ServerStream, "postcard").unwrap();
        let details = router.details(Kind::new(0x0300).unwrap()).unwrap();
        assert_eq!(
            (details.codec.as_str(), details.reply_schema.as_deref()),
            ("json", Some("false"))
        );
        assert!(router.details(Kind::new(0x0302).unwrap()).is_none());

        let request = Some("x".repeat(SCHEMA_BYTES as usize + 1));
        let long = Schemas { request, reply: None };
        assert!(matches!(
            router.add_schemas(0x0300, "fs.list", MethodShape::Unary, "json", long),
            Err(RouteError::SchemaTooLong { bytes: 65_537, .. })
        ));
    }
}
