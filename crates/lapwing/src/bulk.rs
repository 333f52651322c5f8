//! Bulk memory of a connection: what this side lends, what the peer has announced, and giving it back.
//!
//! Only connections over shared memory have it. Payloads too long for a ring lie in blocks
//! ([`lapwing_shm::bulk`]); the ring carries a descriptor. Segments are announced over the socket, which
//! otherwise carries nothing after the handshake.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lapwing_proto::{
    BulkDescriptor, Flags, Kind, MessageId, SegmentAnnounced, SegmentRetired, WireError,
};
use lapwing_shm::{
    Bell, BlockPool, Buffer, BulkShape, CooperativePeers, Doorbell, OwnBlock, OwnMemory, PeerBlock,
    PeerMemory, PeerSegment, Returns, TakeError, layout,
};

use crate::client::lock;
use crate::control::{ControlError, ControlSocket, Message};
use crate::link::{Broken, SendError, misbehaved};
use crate::payload::Payload;
use crate::platform;

/// Frames on the socket that are read in one look. An honest peer has no more under way.
const FRAMES_AT_ONCE: usize = 4096;

/// What a side of a connection may do with bulk memory.
#[derive(Clone, Default, Debug)]
pub(crate) struct BulkTerms {
    /// The most that this side makes, in bytes; never less than a block for the largest message.
    pub(crate) own_bytes_max: u64,
    /// Borrow payloads in place.
    pub(crate) in_place: Option<CooperativePeers>,
    /// What is charged for segments of either side.
    pub(crate) account: Option<Arc<Account>>,
}

/// Bytes of bulk memory that one user's connections may have together.
#[derive(Debug)]
pub(crate) struct Account {
    used: AtomicU64,
    max: u64,
}

impl Account {
    pub(crate) fn new(max: u64) -> Account {
        Account { used: AtomicU64::new(0), max }
    }

    #[cfg(test)]
    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// Bytes that an [`Account`] is charged with, until this is dropped.
#[derive(Debug)]
struct Charge {
    account: Option<Arc<Account>>,
    bytes: u64,
}

impl Charge {
    fn new(account: Option<&Arc<Account>>, bytes: u64) -> Option<Charge> {
        if let Some(account) = account {
            let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= account.max);
            account.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        }
        Some(Charge { account: account.cloned(), bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(account) = &self.account {
            account.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// The blocks that this side lends.
#[derive(Debug)]
pub(crate) struct BulkOut {
    pool: BlockPool,
    socket: ControlSocket,
    account: Option<Arc<Account>>,
    charges: BTreeMap<u32, Charge>,
    /// See [`BulkIn::take_touched`].
    touched: Arc<AtomicBool>,
}

impl BulkOut {
    /// `bytes_max` is the most that the protocol allows where the largest message has `message_max` bytes.
    pub(crate) fn new(
        peer: PeerMemory,
        socket: &Arc<UnixStream>,
        message_max: u32,
        bytes_max: u64,
        terms: &BulkTerms,
        other: &BulkIn,
    ) -> BulkOut {
        let one = layout::block_bytes(message_max as usize) as u64;
        let bytes_max = terms.own_bytes_max.clamp(one.min(bytes_max), bytes_max);
        BulkOut {
            pool: BlockPool::new(peer, usize::try_from(bytes_max).unwrap_or(usize::MAX)),
            socket: ControlSocket::over(Arc::clone(socket)),
            account: terms.account.clone(),
            charges: BTreeMap::new(),
            touched: Arc::clone(&other.touched),
        }
    }

    /// A block for a payload of this length.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<OwnBlock, SendError> {
        self.touched.store(true, Ordering::Relaxed);
        match self.pool.take(bytes) {
            Err(TakeError::NoSegment) => {}
            taken => return taken.map_err(|error| refused(&error)),
        }
        let fresh = self.pool.make(bytes).map_err(|error| failed(&error))?;
        self.tell_retired()?;
        let BulkShape { block_bytes, blocks } = fresh.shape;
        let announced = SegmentAnnounced {
            segment: fresh.number,
            block_bytes_log2: block_bytes.ilog2() as u8,
            blocks,
        };
        let charge =
            Charge::new(self.account.as_ref(), announced.bytes()).ok_or(SendError::OverQuota)?;
        self.tell(Kind::SEGMENT, &announced.encode(), Some(&fresh.file))?;
        self.charges.insert(fresh.number, charge);
        self.pool.adopt(fresh);
        self.pool.take(bytes).map_err(|error| refused(&error))
    }

    pub(crate) fn has_room(&mut self, bytes: usize) -> Result<bool, Broken> {
        self.pool.has_room(bytes).map_err(|error| match refused(&error) {
            SendError::Broken(broken) => broken,
            _ => bad_return(),
        })
    }

    /// Lends a block; `None` when it is not of this connection.
    pub(crate) fn lend(&mut self, block: &mut OwnBlock) -> Option<BulkDescriptor> {
        let length = block.len() as u64;
        let (segment, block) = self.pool.lend(block)?;
        Some(BulkDescriptor { segment, block, length })
    }

    /// The block was not sent after all.
    pub(crate) fn unlend(&mut self, block: &mut OwnBlock) {
        self.pool.unlend(block);
    }

    pub(crate) fn owns(&self, block: &OwnBlock) -> bool {
        self.pool.owns(block)
    }

    /// Gives memory back that was not used since the last time.
    pub(crate) fn sweep(&mut self) -> Result<(), Broken> {
        self.pool.sweep().map_err(|_| bad_return())?;
        self.tell_retired()
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.pool.bytes() > 0
    }

    fn tell_retired(&mut self) -> Result<(), Broken> {
        for segment in self.pool.take_retired() {
            self.charges.remove(&segment);
            self.tell(Kind::SEGMENT_RETIRED, &SegmentRetired { segment }.encode(), None)?;
        }
        Ok(())
    }

    /// The socket has room for what one side can have to tell: its segments are few. A peer that lets
    /// it fill up has stopped reading for good.
    fn tell(&self, kind: Kind, payload: &[u8], file: Option<&OwnedFd>) -> Result<(), Broken> {
        let descriptors = file.map(AsFd::as_fd);
        let sent = self.socket.send(kind, payload, descriptors.as_slice());
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let detail = "it does not read what is announced on the socket";
                misbehaved(WireError::UnexpectedMessage, detail)
            }
            _ => error.into(),
        })
    }
}

fn refused(error: &TakeError) -> SendError {
    match *error {
        TakeError::Full | TakeError::NoSegment => SendError::Full,
        TakeError::TooLong { max, .. } => SendError::TooLarge(max),
        TakeError::BadReturn => SendError::Broken(bad_return()),
    }
}

fn bad_return() -> Broken {
    misbehaved(WireError::BadBlock, "it gave back a block that was not lent to it")
}

fn failed(error: &lapwing_shm::SegmentError) -> SendError {
    SendError::Broken(Broken::Failed(error.to_string().into()))
}

/// Gives the peer's blocks back, from whatever thread drops a payload.
pub(crate) struct Returner {
    inner: Mutex<Returning>,
    bell: Arc<Bell<Doorbell>>,
}

impl fmt::Debug for Returner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Returner").finish_non_exhaustive()
    }
}

struct Returning {
    returns: Returns,
    /// Blocks that payloads borrow in place.
    held: HashSet<(u32, u32)>,
}

impl Returner {
    fn give_back(&self, segment: u32, block: u32) {
        let mut inner = lock(&self.inner);
        inner.held.remove(&(segment, block));
        inner.returns.give_back(segment, block);
        drop(inner);
        // The peer may wait for a block. A bell that is broken shows where the connection is driven.
        let _ = self.bell.ring_if_asleep();
    }

    /// Whether nobody held it yet.
    fn hold(&self, segment: u32, block: u32) -> bool {
        lock(&self.inner).held.insert((segment, block))
    }

    fn is_held(&self, segment: u32) -> bool {
        lock(&self.inner).held.iter().any(|(held, _)| *held == segment)
    }
}

/// A payload in a block of the peer's, which goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Borrowed {
    block: PeerBlock,
    returner: Arc<Returner>,
    place: (u32, u32),
}

impl Borrowed {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.block.bytes()
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.returner.give_back(self.place.0, self.place.1);
    }
}

/// A payload that is too long for a vector of a ring's: where its bytes are.
#[derive(Debug)]
pub(crate) enum Long {
    /// Copied out, or being made.
    Buffer(Buffer),
    /// In place, in the peer's memory.
    Borrowed(Borrowed),
    /// In this side's own bulk memory, to be sent.
    Own(OwnBlock),
}

impl Long {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Long::Buffer(buffer) => buffer.bytes(),
            Long::Borrowed(borrowed) => borrowed.bytes(),
            Long::Own(block) => block.bytes(),
        }
    }
}

/// Room for a payload that is written in place and sent without a copy: in bulk memory, where the connection has
/// it and the payload is too long for a ring; else in a buffer.
///
/// It begins as zeros, or as what an earlier payload of this connection left there. Dropped unsent it is
/// given back.
#[derive(Debug)]
pub struct Reserved(Room);

#[derive(Debug)]
enum Room {
    Block(OwnBlock),
    Bytes(Vec<u8>),
}

impl Reserved {
    pub(crate) fn new(block: Option<OwnBlock>, bytes: usize) -> Reserved {
        Reserved(block.map_or_else(|| Room::Bytes(vec![0; bytes]), Room::Block))
    }

    /// Makes the payload shorter.
    pub fn truncate(&mut self, bytes: usize) {
        match &mut self.0 {
            Room::Block(block) => block.truncate(bytes),
            Room::Bytes(buffer) => buffer.truncate(bytes),
        }
    }

    /// The block, or the bytes.
    pub(crate) fn into_parts(self) -> Result<OwnBlock, Vec<u8>> {
        match self.0 {
            Room::Block(block) => Ok(block),
            Room::Bytes(bytes) => Err(bytes),
        }
    }
}

impl Deref for Reserved {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Room::Block(block) => block.bytes(),
            Room::Bytes(bytes) => bytes,
        }
    }
}

impl DerefMut for Reserved {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Room::Block(block) => block.bytes_mut(),
            Room::Bytes(bytes) => bytes,
        }
    }
}

impl From<Reserved> for Payload {
    fn from(reserved: Reserved) -> Payload {
        match reserved.into_parts() {
            Ok(block) => Payload::from_long(Long::Own(block)),
            Err(bytes) => bytes.into(),
        }
    }
}

/// The bulk memory of the peer, and what its socket brings.
#[derive(Debug)]
pub(crate) struct BulkIn {
    announcements: Mutex<Announcements>,
    returner: Arc<Returner>,
    in_place: Option<CooperativePeers>,
    /// A segment was looked at since the last sweep, or is new.
    in_use: AtomicBool,
    /// See [`BulkIn::take_touched`].
    touched: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Announcements {
    socket: ControlSocket,
    /// Whether the handshake agreed on bulk memory.
    agreed: bool,
    segments: BTreeMap<u32, Announced>,
    next: u32,
    bytes: u64,
    bytes_max: u64,
    account: Option<Arc<Account>>,
}

#[derive(Debug)]
struct Announced {
    segment: PeerSegment,
    /// Looked at since the last sweep.
    used: bool,
    _charge: Charge,
}

impl BulkIn {
    /// `bytes_max` is the most that the peer may have announced at a time; `None` where bulk memory was not
    /// agreed on, and nothing may come on the socket.
    pub(crate) fn new(
        own: OwnMemory,
        bell: Arc<Bell<Doorbell>>,
        socket: Arc<UnixStream>,
        bytes_max: Option<u64>,
        terms: &BulkTerms,
    ) -> BulkIn {
        let returning = Returning { returns: Returns::new(own), held: HashSet::new() };
        let announcements = Announcements {
            socket: ControlSocket::over(socket),
            agreed: bytes_max.is_some(),
            segments: BTreeMap::new(),
            next: 0,
            bytes: 0,
            bytes_max: bytes_max.unwrap_or(0),
            account: terms.account.clone(),
        };
        BulkIn {
            announcements: Mutex::new(announcements),
            returner: Arc::new(Returner { inner: Mutex::new(returning), bell }),
            in_place: terms.in_place,
            in_use: AtomicBool::new(false),
            touched: Arc::default(),
        }
    }

    /// Whether bulk memory of either side was used since the last time that somebody asked.
    #[inline]
    pub(crate) fn take_touched(&self) -> bool {
        let touched = self.touched.load(Ordering::Relaxed);
        if touched {
            self.touched.store(false, Ordering::Relaxed);
        }
        touched
    }

    /// Takes what has come on the socket.
    ///
    /// # Errors
    ///
    /// [`Broken::Ended`] when the peer has closed it.
    pub(crate) fn look_at_socket(&self) -> Result<(), Broken> {
        let mut announcements = lock(&self.announcements);
        let looked = announcements.read(&self.returner);
        if !announcements.segments.is_empty() {
            self.in_use.store(true, Ordering::Relaxed);
        }
        looked
    }

    /// The payload that a descriptor tells of: copied out, and the block given back; or borrowed in place.
    pub(crate) fn payload(&self, bulk: BulkDescriptor) -> Result<Long, Broken> {
        let no_block =
            || misbehaved(WireError::BadBlock, "a descriptor of a block that is not there");
        let mut announcements = lock(&self.announcements);
        if !announcements.agreed {
            let detail = "a bulk descriptor, and bulk memory was not agreed on";
            return Err(misbehaved(WireError::BadExtension, detail));
        }
        if !announcements.segments.contains_key(&bulk.segment) {
            // It was announced before the descriptor was sent, so it is there to be read. The end of
            // the socket may be, too: that is for others to find.
            match announcements.read(&self.returner) {
                Ok(()) | Err(Broken::Ended) => {}
                Err(broken) => return Err(broken),
            }
        }
        self.in_use.store(true, Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
        let found = announcements.segments.get_mut(&bulk.segment).ok_or_else(no_block)?;
        found.used = true;
        let length = usize::try_from(bulk.length).map_err(|_| no_block())?;
        let BulkDescriptor { segment, block, .. } = bulk;
        let Some(token) = self.in_place else {
            let copy = found.segment.copy_out(block, length).ok_or_else(no_block)?;
            drop(announcements);
            self.returner.give_back(segment, block);
            return Ok(Long::Buffer(copy));
        };
        let lent = found.segment.borrow(token, block, length).ok_or_else(no_block)?;
        if !self.returner.hold(segment, block) {
            let detail = "it lent a block that it has not got back";
            return Err(misbehaved(WireError::BadBlock, detail));
        }
        let returner = Arc::clone(&self.returner);
        Ok(Long::Borrowed(Borrowed { block: lent, returner, place: (segment, block) }))
    }

    /// Takes this process's hold off the pages of segments that were not looked at since the last time.
    pub(crate) fn sweep(&self) {
        let mut in_use = false;
        for announced in lock(&self.announcements).segments.values_mut() {
            if std::mem::replace(&mut announced.used, false) {
                in_use = true;
            } else {
                announced.segment.let_go();
            }
        }
        self.in_use.store(in_use, Ordering::Relaxed);
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }
}

/// Without bulk memory the socket carries nothing but the peer's end.
fn look_for_end(socket: &UnixStream) -> Result<(), Broken> {
    match platform::receive(socket, &mut [0]) {
        Ok(0) => Err(Broken::Ended),
        Ok(_) => {
            let detail = "bytes came on the socket of a connection without bulk memory";
            Err(misbehaved(WireError::UnexpectedMessage, detail))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Announcements {
    fn read(&mut self, returner: &Returner) -> Result<(), Broken> {
        if !self.agreed {
            return look_for_end(self.socket.socket());
        }
        for _ in 0..FRAMES_AT_ONCE {
            match self.socket.try_receive() {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => self.take(message, returner)?,
                Err(ControlError::Ended) => return Err(Broken::Ended),
                Err(ControlError::Io(error)) => return Err(error.into()),
                Err(ControlError::Misbehaved(peer)) => return Err(Broken::Misbehaved(peer)),
            }
        }
        Err(misbehaved(WireError::UnexpectedMessage, "it announces without end"))
    }

    fn take(&mut self, message: Message, returner: &Returner) -> Result<(), Broken> {
        let Message { header, payload, descriptors } = message;
        if header.flags != Flags::NONE || header.id != MessageId::CONNECTION {
            return Err(misbehaved(WireError::BadFlags, "an announcement has no flags and id 0"));
        }
        match header.kind {
            Kind::SEGMENT => self.announced(&payload, descriptors),
            Kind::SEGMENT_RETIRED => self.retired(&payload, &descriptors, returner),
            _ => {
                let detail = "only announcements of bulk memory belong on this socket";
                Err(misbehaved(WireError::UnexpectedMessage, detail))
            }
        }
    }

    fn announced(&mut self, payload: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), Broken> {
        let announced = SegmentAnnounced::decode(payload)
            .map_err(|_| misbehaved(WireError::BadMessage, "an announcement cannot be read"))?;
        let [file] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|other| {
            let error = if other.is_empty() {
                WireError::MissingDescriptors
            } else {
                WireError::SurplusDescriptors
            };
            misbehaved(error, "a bulk segment comes with one descriptor")
        })?;
        if announced.segment != self.next {
            return Err(misbehaved(WireError::BadSegment, "bulk segments are numbered in turn"));
        }
        let bytes = announced.bytes();
        if self.bytes + bytes > self.bytes_max {
            let detail = "it announces more bulk memory than one side may have";
            return Err(misbehaved(WireError::QuotaBulk, detail));
        }
        let Some(charge) = Charge::new(self.account.as_ref(), bytes) else {
            let detail = "its user has all the bulk memory that it may have here";
            return Err(misbehaved(WireError::QuotaBulk, detail));
        };
        let block_bytes = usize::try_from(announced.block_bytes()).unwrap_or(usize::MAX);
        let shape = BulkShape { block_bytes, blocks: announced.blocks };
        let segment = PeerSegment::import(file, shape).map_err(|_| {
            misbehaved(WireError::BadSegment, "a bulk segment is unsealed or of the wrong length")
        })?;
        self.segments.insert(self.next, Announced { segment, used: true, _charge: charge });
        self.bytes += bytes;
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    fn retired(
        &mut self,
        payload: &[u8],
        descriptors: &[OwnedFd],
        returner: &Returner,
    ) -> Result<(), Broken> {
        if !descriptors.is_empty() {
            let detail = "a retired segment comes with no descriptor";
            return Err(misbehaved(WireError::SurplusDescriptors, detail));
        }
        let retired = SegmentRetired::decode(payload)
            .map_err(|_| misbehaved(WireError::BadMessage, "a retirement cannot be read"))?;
        if returner.is_held(retired.segment) {
            return Err(misbehaved(WireError::BadSegment, "it retired a segment that is lent"));
        }
        let Some(gone) = self.segments.remove(&retired.segment) else {
            return Err(misbehaved(
                WireError::BadSegment,
                "it retired a segment that is not there",
            ));
        };
        self.bytes -= gone.segment.bytes() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_is_charged_up_to_its_bound_and_given_back() {
        let account = Arc::new(Account::new(100));
        let first = Charge::new(Some(&account), 60);
        assert!(first.is_some());
        assert!(Charge::new(Some(&account), 41).is_none());
        let second = Charge::new(Some(&account), 40);
        assert_eq!(account.used(), 100);
        drop(first);
        assert_eq!(account.used(), 40);
        drop(second);
        assert!(Charge::new(Some(&account), u64::MAX).is_none());
        assert_eq!(account.used(), 0);
    }
}
