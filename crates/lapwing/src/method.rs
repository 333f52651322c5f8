//! Methods as values: one constant serves client and server.

use std::fmt;
use std::marker::PhantomData;

use lapwing_proto::MethodShape;

use crate::codec::Postcard;

/// What a method's calls look like; sealed.
pub trait Shape: 'static {
    #[doc(hidden)]
    const SHAPE: MethodShape;
}

macro_rules! shapes {
    ($($(#[doc = $doc:literal])+ $name:ident, $marker:ident;)+) => {
        /// Markers of the shapes of methods.
        pub mod shape {
            $($(#[doc = $doc])+ #[derive(Clone, Copy, Debug)] pub enum $marker {})+
        }
        $(
            impl Shape for shape::$marker {
                const SHAPE: MethodShape = MethodShape::$name;
            }
        )+
    };
}

shapes! {
    /// One request, one reply.
    Unary, OfUnary;
    /// One message, no reply.
    OneWay, OfOneWay;
    /// One request, a stream of replies.
    ServerStream, OfServerStream;
    /// A stream of requests, one reply.
    ClientStream, OfClientStream;
    /// A stream in each direction.
    Duplex, OfDuplex;
}

/// A method: its number, its name, its types and how they are written.
///
/// Use it through [`Unary`], [`OneWay`], [`ServerStream`], [`ClientStream`] and [`Duplex`].
///
/// # Examples
///
/// ```
/// use lapwing::{Json, ServerStream, Unary};
///
/// const LENGTH: Unary<String, u64> = Unary::new(0x0400, "text.length");
/// const WORDS: ServerStream<String, String, Json> = ServerStream::new(0x0401, "text.words");
/// assert_eq!(WORDS.name(), "text.words");
/// ```
///
/// A number that belongs to the connection does not compile:
///
/// ```compile_fail,E0080
/// const WRONG: lapwing::Unary<u8, u8> = lapwing::Unary::new(0x00FF, "wrong");
/// let _ = WRONG;
/// ```
///
/// Nor does a call with other types. This does:
///
/// ```
/// # use lapwing::{CallError, Unary, blocking::IpcClient};
/// # const LENGTH: Unary<String, u64> = Unary::new(0x0400, "text.length");
/// fn length(client: &IpcClient, text: String) -> Result<u64, CallError> {
///     client.call(LENGTH, &text)
/// }
/// ```
///
/// A request of another type does not:
///
/// ```compile_fail,E0308
/// # use lapwing::{CallError, Unary, blocking::IpcClient};
/// # const LENGTH: Unary<String, u64> = Unary::new(0x0400, "text.length");
/// fn length(client: &IpcClient, text: u32) -> Result<u64, CallError> {
///     client.call(LENGTH, &text)
/// }
/// ```
///
/// Nor a reply of another type:
///
/// ```compile_fail,E0308
/// # use lapwing::{CallError, Unary, blocking::IpcClient};
/// # const LENGTH: Unary<String, u64> = Unary::new(0x0400, "text.length");
/// fn length(client: &IpcClient, text: String) -> Result<String, CallError> {
///     client.call(LENGTH, &text)
/// }
/// ```
///
/// Nor a call of another shape:
///
/// ```compile_fail,E0308
/// # use lapwing::{CallError, Unary, blocking::IpcClient};
/// # const LENGTH: Unary<String, u64> = Unary::new(0x0400, "text.length");
/// fn length(client: &IpcClient, text: String) -> Result<u64, CallError> {
///     client.send(LENGTH, &text)?;
///     Ok(0)
/// }
/// ```
pub struct Method<S, Request, Reply, C = Postcard> {
    kind: u16,
    name: &'static str,
    types: PhantomData<Types<S, Request, Reply, C>>,
}

/// A method needs nothing of its types but their names.
type Types<S, Request, Reply, C> = fn(S, Request) -> (Reply, C);

/// One request, one reply.
pub type Unary<Request, Reply, C = Postcard> = Method<shape::OfUnary, Request, Reply, C>;

/// One message, no reply.
pub type OneWay<Message, C = Postcard> = Method<shape::OfOneWay, Message, (), C>;

/// One request, a stream of replies.
pub type ServerStream<Request, Item, C = Postcard> =
    Method<shape::OfServerStream, Request, Item, C>;

/// A stream of requests, one reply.
pub type ClientStream<Item, Reply, C = Postcard> = Method<shape::OfClientStream, Item, Reply, C>;

/// A stream in each direction.
pub type Duplex<In, Out, C = Postcard> = Method<shape::OfDuplex, In, Out, C>;

impl<S: Shape, Request, Reply, C> Method<S, Request, Reply, C> {
    /// The method of this number, `0x0100` to `0xFFFF`, and this name: at most 128 letters, digits, `.`,
    /// `_`, `-` and `/`.
    ///
    /// # Panics
    ///
    /// For a number below `0x0100`; in a constant that is an error of the compiler. Names are checked when
    /// the server is built.
    #[must_use]
    pub const fn new(kind: u16, name: &'static str) -> Self {
        assert!(kind >= 0x0100, "kinds below 0x0100 belong to the connection");
        Method { kind, name, types: PhantomData }
    }

    /// Its number.
    #[must_use]
    pub const fn kind(&self) -> u16 {
        self.kind
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) const fn shape(&self) -> MethodShape {
        S::SHAPE
    }
}

impl<S, Request, Reply, C> Clone for Method<S, Request, Reply, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, Request, Reply, C> Copy for Method<S, Request, Reply, C> {}

impl<S, Request, Reply, C> fmt::Debug for Method<S, Request, Reply, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#06x})", self.name, self.kind)
    }
}
