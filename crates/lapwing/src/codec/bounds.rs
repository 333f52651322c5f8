//! Bounds on what the payload alone would decide: how deep a value nests, and how many elements it has.
//!
//! postcard has neither. [`Bounded`] stands around a deserializer and around all that serde passes between it
//! and the type: each method calls the same one of the inner value. It allocates nothing.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// How many compound values may lie in one another: options, newtypes, sequences, tuples, structs, maps
/// and enums. serde_json has the same number, for arrays and objects. A large value counts for several: see [`weight`].
pub(super) const DEPTH_MAX: u32 = 128;

/// For how many levels a value of this length in memory counts: one for each 512 bytes or part of them, and 8 at most.
///
/// Reading a value takes stack in proportion to its length, for copies of it. Measured for both readings, with recursion
/// through boxes, options, vectors and maps, on x86-64: a level of small values takes 0.4 to 0.9 KiB (without optimization
/// 2 to 3.4 KiB), and one of large values 2 to 5 times its value's length (5 to 12 times). So the deepest payload takes
/// 0.6 MiB with values of up to 4 KiB (1.5 MiB), and a thread has 2 MiB. Longer values do not count for more, as a type
/// that does not contain itself is to be read however long it is: one that does is to keep what is long in a box of its
/// own.
const fn weight(len_bytes: usize) -> u32 {
    match len_bytes.div_ceil(512) {
        0 => 1,
        pieces @ 1..8 => pieces as u32,
        _ => 8,
    }
}

/// How many elements of sequences and maps there may be beyond the payload's length in bytes: those of a
/// `Vec<()>` take none.
pub(super) const EMPTY_MAX: usize = 4096;

/// The bound that a payload exceeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Exceeded {
    #[error("it is nested deeper than {DEPTH_MAX} levels")]
    Depth,
    #[error("it has more elements than its bytes can say")]
    Elements,
}

/// What is left to the reading of one payload, and what became of it.
///
/// An element of a sequence or a map that takes bytes has a first one, which is no other element's: the
/// length of a sequence comes before its elements. So a payload has as many of them as bytes at most, at
/// all depths together.
pub(super) struct Bounds {
    elements: Cell<usize>,
    exceeded: Cell<Option<Exceeded>>,
}

impl Bounds {
    /// For a payload of this length.
    #[inline]
    pub(super) fn of(len_bytes: usize) -> Bounds {
        Bounds {
            elements: Cell::new(len_bytes.saturating_add(EMPTY_MAX)),
            exceeded: Cell::new(None),
        }
    }

    /// `reader`, within these bounds.
    #[inline]
    pub(super) fn around<D>(&self, reader: D) -> Bounded<'_, D> {
        Level { bounds: self, left: DEPTH_MAX, repeats: false }.around(reader)
    }

    /// The bound that ended the reading, if one did: postcard's errors do not keep what they were made of.
    pub(super) fn exceeded(&self) -> Option<Exceeded> {
        self.exceeded.get()
    }

    #[inline]
    fn take<E: Error>(&self, elements: usize) -> Result<(), E> {
        match self.elements.get().checked_sub(elements) {
            Some(left) => self.elements.set(left),
            None => return Err(self.exceed(Exceeded::Elements)),
        }
        Ok(())
    }

    #[cold]
    fn exceed<E: Error>(&self, what: Exceeded) -> E {
        self.exceeded.set(Some(what));
        E::custom(what)
    }
}

/// Where in the value a part of serde's conversation is.
#[derive(Clone, Copy)]
struct Level<'b> {
    bounds: &'b Bounds,
    /// The levels that may follow below this one.
    left: u32,
    /// Whether the payload says how many elements there are, and not the type.
    repeats: bool,
}

impl<'b> Level<'b> {
    #[inline]
    fn around<T>(self, inner: T) -> Bounded<'b, T> {
        Bounded { inner, level: self }
    }

    #[inline]
    fn repeated(self, repeats: bool) -> Level<'b> {
        Level { repeats, ..self }
    }

    /// Below this one, where a `T` is read.
    #[inline]
    fn deeper<T, E: Error>(self) -> Result<Level<'b>, E> {
        match self.left.checked_sub(const { weight(size_of::<T>()) }) {
            Some(left) => Ok(Level { left, ..self }),
            None => Err(self.bounds.exceed(Exceeded::Depth)),
        }
    }

    /// Below this one, where a `T` is read, among elements of which `hint` says how many there are: counted at once, or
    /// each as it comes.
    #[inline]
    fn deeper_among<T, E: Error>(self, hint: Option<usize>) -> Result<Level<'b>, E> {
        let level = self.deeper::<T, E>()?;
        match hint {
            Some(elements) if self.repeats => {
                self.bounds.take(elements)?;
                Ok(level.repeated(false))
            }
            _ => Ok(level),
        }
    }

    #[inline]
    fn count_one<E: Error>(self) -> Result<(), E> {
        if self.repeats { self.bounds.take(1) } else { Ok(()) }
    }
}

/// A deserializer, a visitor, a seed or an access, that does as the inner one and keeps the bounds.
pub(super) struct Bounded<'b, T> {
    inner: T,
    level: Level<'b>,
}

macro_rules! deserialize {
    ($($method:ident($($argument:ident: $type:ty),*) repeats $repeats:literal;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(
            self,
            $($argument: $type,)*
            visitor: V,
        ) -> Result<V::Value, D::Error> {
            let visitor = self.level.repeated($repeats).around(visitor);
            self.inner.$method($($argument,)* visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = D::Error;

    deserialize! {
        deserialize_any() repeats false;
        deserialize_bool() repeats false;
        deserialize_i8() repeats false;
        deserialize_i16() repeats false;
        deserialize_i32() repeats false;
        deserialize_i64() repeats false;
        deserialize_i128() repeats false;
        deserialize_u8() repeats false;
        deserialize_u16() repeats false;
        deserialize_u32() repeats false;
        deserialize_u64() repeats false;
        deserialize_u128() repeats false;
        deserialize_f32() repeats false;
        deserialize_f64() repeats false;
        deserialize_char() repeats false;
        deserialize_str() repeats false;
        deserialize_string() repeats false;
        deserialize_bytes() repeats false;
        deserialize_byte_buf() repeats false;
        deserialize_option() repeats false;
        deserialize_unit() repeats false;
        deserialize_unit_struct(name: &'static str) repeats false;
        deserialize_newtype_struct(name: &'static str) repeats false;
        deserialize_seq() repeats true;
        deserialize_tuple(len: usize) repeats false;
        deserialize_tuple_struct(name: &'static str, len: usize) repeats false;
        deserialize_map() repeats true;
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) repeats false;
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) repeats false;
        deserialize_identifier() repeats false;
        deserialize_ignored_any() repeats false;
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($type:ty);)*) => {$(
        #[inline]
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

macro_rules! visit_deeper {
    ($($method:ident($bound:ident);)*) => {$(
        #[inline]
        fn $method<A: $bound<'de>>(self, below: A) -> Result<V::Value, A::Error> {
            let level = self.level.deeper::<V::Value, _>()?;
            self.inner.$method(level.around(below))
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Bounded<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool(bool);
        visit_i8(i8);
        visit_i16(i16);
        visit_i32(i32);
        visit_i64(i64);
        visit_i128(i128);
        visit_u8(u8);
        visit_u16(u16);
        visit_u32(u32);
        visit_u64(u64);
        visit_u128(u128);
        visit_f32(f32);
        visit_f64(f64);
        visit_char(char);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    #[inline]
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    visit_deeper! {
        visit_some(Deserializer);
        visit_newtype_struct(Deserializer);
        visit_enum(EnumAccess);
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, below: A) -> Result<V::Value, A::Error> {
        let level = self.level.deeper_among::<V::Value, _>(below.size_hint())?;
        self.inner.visit_seq(level.around(below))
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, below: A) -> Result<V::Value, A::Error> {
        let level = self.level.deeper_among::<V::Value, _>(below.size_hint())?;
        self.inner.visit_map(level.around(below))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(self.level.around(reader))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let element = self.inner.next_element_seed(self.level.around(seed))?;
        if element.is_some() {
            self.level.count_one()?;
        }
        Ok(element)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        let key = self.inner.next_key_seed(self.level.around(seed))?;
        if key.is_some() {
            self.level.count_one()?;
        }
        Ok(key)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(self.level.around(seed))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'b, A> {
    type Error = A::Error;
    type Variant = Bounded<'b, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, variant) = self.inner.variant_seed(self.level.around(seed))?;
        Ok((value, self.level.around(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(self.level.around(seed))
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, self.level.around(visitor))
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, self.level.around(visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, LinkedList};
    use std::net::Ipv4Addr;

    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::codec::{CodecError, Decode, Encode, Postcard};

    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        Postcard::decode(bytes.into())
    }

    fn assert_exceeds<T: DeserializeOwned>(bytes: &[u8], expected: &str) {
        let error = read::<T>(bytes).map(drop).unwrap_err();
        assert_eq!(error.to_string(), expected, "{}", std::any::type_name::<T>());
    }

    /// `steps` times `step`, and then the end of the recursion.
    fn nested(step: &[u8], steps: usize) -> Vec<u8> {
        [&step.repeat(steps)[..], &[0]].concat()
    }

    /// `bytes` say a `T` of 128 levels. A tuple around it is one more, and takes no bytes.
    fn assert_is_deepest<T: DeserializeOwned>(bytes: &[u8]) {
        read::<T>(bytes).map(drop).unwrap();
        assert_exceeds::<(T,)>(bytes, "it is nested deeper than 128 levels");
        // With a length or a variant of 1 these bytes say nothing but another level.
        assert_exceeds::<T>(&[1; 1 << 20], "it is nested deeper than 128 levels");
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Chain {
        next: Option<Box<Chain>>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Branch {
        twigs: Vec<Branch>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Folder {
        inside: BTreeMap<u8, Folder>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    enum Peano {
        Zero,
        Next(Box<Peano>),
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    enum Tuples {
        Leaf,
        Pair(Box<Tuples>, ()),
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    enum Structs {
        Leaf,
        Below { it: Box<Structs> },
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Wrapped(Option<Box<Wrapped>>);

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Endless(Box<Endless>);

    #[test]
    fn every_recursion_is_read_to_the_bound_and_no_deeper() {
        assert_is_deepest::<Branch>(&nested(&[1], 63));
        assert_is_deepest::<Folder>(&nested(&[1, 1], 63));
        assert_is_deepest::<Peano>(&nested(&[1], 127));
        // These end at an odd level: `None` is no level, and the last variant has nothing in it.
        assert_is_deepest::<(Chain,)>(&nested(&[1], 63));
        assert_is_deepest::<(Wrapped,)>(&nested(&[1], 63));
        assert_is_deepest::<(Tuples,)>(&nested(&[1], 63));
        assert_is_deepest::<(Structs,)>(&nested(&[1], 63));
    }

    #[test]
    fn type_that_nests_without_bytes_is_refused() {
        assert_exceeds::<Endless>(&[], "it is nested deeper than 128 levels");
    }

    /// What is beside the box has `N` times 256 bytes.
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    enum Large<const N: usize> {
        Leaf,
        Next(Box<Large<N>>),
        Beside(Box<Large<N>>, Filler<N>),
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct LargeTree<const N: usize> {
        twigs: Vec<LargeTree<N>>,
        filler: Filler<N>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct LargeMap<const N: usize> {
        inside: BTreeMap<u8, LargeMap<N>>,
        filler: Filler<N>,
    }

    /// In a payload it takes no bytes, in memory it does.
    #[derive(Clone, Copy)]
    struct Filler<const N: usize>([[u64; 32]; N]);

    impl<'de, const N: usize> Deserialize<'de> for Filler<N> {
        fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Filler<N>, D::Error> {
            <()>::deserialize(reader)?;
            Ok(Filler([[0; 32]; N]))
        }
    }

    /// As deep as `T` may be, well and badly ended; beyond the bound it says so.
    fn read_in_a_small_thread<T: DeserializeOwned + 'static>(step: &'static [u8], steps: usize) {
        // A sanitizer pads the frames.
        let is_padded = std::env::var_os("LAPWING_SANITIZER").is_some();
        let stack_bytes = if is_padded { 16 << 20 } else { 2 << 20 };
        let reading = std::thread::Builder::new().stack_size(stack_bytes).spawn(move || {
            let name = std::any::type_name::<T>();
            assert!(read::<T>(&nested(step, steps)).is_ok(), "{name}");
            let error = read::<T>(&step.repeat(steps)).map(drop).unwrap_err();
            assert!(!error.to_string().contains("nested"), "{name}: {error}");
            for deeper in [nested(step, steps + 1), step.repeat(1000)] {
                assert_exceeds::<T>(&deeper, "it is nested deeper than 128 levels");
            }
        });
        reading.unwrap().join().unwrap();
    }

    /// On a stack as tokio's threads and `std`'s have.
    #[test]
    fn large_values_count_for_several_levels_so_that_their_recursion_fits_a_stack() {
        assert_eq!([1, 512, 513, 1024, 4096, 1 << 20].map(weight), [1, 1, 2, 2, 8, 8]);
        read_in_a_small_thread::<Large<1>>(&[1], 127);
        read_in_a_small_thread::<Large<3>>(&[1], 63);
        read_in_a_small_thread::<Large<7>>(&[1], 31);
        read_in_a_small_thread::<Large<15>>(&[1], 15);
        read_in_a_small_thread::<Large<15>>(&[2], 7);
        read_in_a_small_thread::<LargeTree<1>>(&[1], 63);
        read_in_a_small_thread::<LargeTree<3>>(&[1], 41);
        read_in_a_small_thread::<LargeTree<7>>(&[1], 24);
        read_in_a_small_thread::<LargeTree<15>>(&[1], 13);
        read_in_a_small_thread::<LargeTree<16>>(&[1], 13);
        read_in_a_small_thread::<LargeMap<1>>(&[1, 1], 63);
        read_in_a_small_thread::<LargeMap<15>>(&[1, 1], 13);
    }

    #[test]
    fn long_value_that_does_not_contain_itself_is_read() {
        // Each is longer than the last, by a little.
        type Long = ((((Filler<256>, u8), u8), u8), u8);
        let read = std::thread::Builder::new()
            .stack_size(64 << 20)
            .spawn(|| read::<Long>(&[1; 4]).is_ok());
        assert!(read.unwrap().join().unwrap());
    }

    #[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord, Debug)]
    struct Unsaid {
        #[serde(skip)]
        place: [u64; 8],
    }

    #[test]
    fn elements_without_bytes_are_bounded() {
        let most = [0x80, 0x20];
        assert_eq!(read::<Vec<()>>(&most).unwrap().len(), EMPTY_MAX);
        assert_eq!(read::<Vec<Unsaid>>(&most).unwrap().len(), EMPTY_MAX);
        let endless = [&[0xFF; 9][..], &[1]].concat();
        let expected = "it has more elements than its bytes can say";
        assert_exceeds::<Vec<()>>(&endless, expected);
        assert_exceeds::<Vec<Unsaid>>(&endless, expected);
        assert_exceeds::<LinkedList<[u8; 0]>>(&endless, expected);
        assert_exceeds::<BTreeMap<(), Unsaid>>(&endless, expected);
        // Each claims fewer than there are bytes, and all together more.
        assert_exceeds::<Vec<Vec<()>>>(&[100; 101], expected);
    }

    #[test]
    fn elements_with_bytes_are_not() {
        let mut bytes = Vec::new();
        let many = vec![vec![Some(7_u8); 100]; 1000];
        Postcard::encode(&many, &mut bytes).unwrap();
        assert_eq!(read(&bytes), Ok(many));
        // What is missing is told as ever.
        assert_eq!(read::<Vec<(u8, ())>>(&[200, 1, 7]).unwrap_err().path, "[1][0]");
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Scalars {
        signed: (i8, i16, i32, i64, i128),
        unsigned: (u8, u16, u32, u64, u128),
        others: (bool, f32, f64, char, String, (), Option<Empty>),
        // Four bytes for programs, text for people.
        address: Ipv4Addr,
    }

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Empty;

    #[test]
    fn every_kind_of_value_passes() {
        let value = Scalars {
            signed: (i8::MIN, i16::MIN, i32::MIN, i64::MIN, i128::MIN),
            unsigned: (u8::MAX, u16::MAX, u32::MAX, u64::MAX, u128::MAX),
            others: (true, 0.5, -0.25, 'ß', "text".into(), (), Some(Empty)),
            address: Ipv4Addr::LOCALHOST,
        };
        let mut bytes = Vec::new();
        Postcard::encode(&value, &mut bytes).unwrap();
        assert_eq!(read(&bytes), Ok(value));
    }
}
