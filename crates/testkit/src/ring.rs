//! Both rings of a connection, worked by hand.

use std::os::fd::OwnedFd;

use lapwing_shm::{Consumer, OwnMemory, PeerMemory, layout};

/// This side's ring and words, to be written with anything, and the peer's ring, to be read.
///
/// Records are written word by word and honestly unless a test asks for more: first the body, then the
/// next record's commit word, then this one's.
#[derive(Debug)]
pub struct RawRing {
    own: OwnMemory,
    doorbell: OwnedFd,
    peer_doorbell: OwnedFd,
    consumer: Consumer,
    position: u64,
    armed: u64,
}

impl RawRing {
    /// From this side's half and the peer's, whose segment is checked.
    ///
    /// # Panics
    ///
    /// If the peer's segment is not fit.
    #[must_use]
    pub fn new(
        own: OwnMemory,
        doorbell: OwnedFd,
        peer_segment: OwnedFd,
        peer_doorbell: OwnedFd,
        peer_ring_bytes: u32,
    ) -> RawRing {
        let peer = PeerMemory::import(peer_segment, peer_ring_bytes).expect("a good segment");
        let consumer = Consumer::new(own.clone(), peer);
        RawRing { own, doorbell, peer_doorbell, consumer, position: 0, armed: 0 }
    }

    /// Where the next record will start.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of this side's ring.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        self.own.ring_bytes().into()
    }

    /// Publishes `body` as an honest producer would, but for looking whether there is room, and wakes
    /// the peer.
    pub fn put(&mut self, body: &[u8]) {
        let end = self.position + layout::record_span(body.len()) as u64;
        self.put_with_commit(body, end);
    }

    /// Publishes `body` under any commit word, and wakes the peer. The next record starts where an
    /// honest commit word would have said.
    pub fn put_with_commit(&mut self, body: &[u8], commit: u64) {
        let end = self.position + layout::record_span(body.len()) as u64;
        let mut at = self.position + layout::COMMIT_BYTES as u64;
        for chunk in body.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.own.scribble(self.offset(at), u64::from_le_bytes(word));
            at += 8;
        }
        self.own.scribble(self.offset(end), 0);
        self.own.scribble(self.offset(self.position), commit);
        self.position = end;
        self.wake_peer();
    }

    /// Where `position` lies in the segment. The ring is mapped twice, so words never wrap inside.
    fn offset(&self, position: u64) -> usize {
        layout::RING + (position & (self.ring_bytes() - 1)) as usize
    }

    /// Stores any word of this side's segment.
    pub fn scribble(&self, offset: usize, value: u64) {
        self.own.scribble(offset, value);
    }

    /// Stores the word that says how far this side has read.
    pub fn say_consumed(&self, position: u64) {
        self.own.scribble(layout::CONSUMED, position);
    }

    /// Stores the sleep word.
    pub fn say_armed(&self, epoch: u64) {
        self.own.scribble(layout::ARMED, epoch);
    }

    /// Rings the peer's doorbell, whether it sleeps or not.
    pub fn wake_peer(&self) {
        let _ = rustix::io::write(&self.peer_doorbell, &0_u64.to_ne_bytes());
    }

    /// This side's doorbell, as the peer rings it.
    #[must_use]
    pub fn doorbell(&self) -> &OwnedFd {
        &self.doorbell
    }

    /// The peer's doorbell.
    #[must_use]
    pub fn peer_doorbell(&self) -> &OwnedFd {
        &self.peer_doorbell
    }

    /// The body of the peer's next record with its padding, given back to the peer at once.
    ///
    /// # Panics
    ///
    /// If its commit word is impossible.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let record = self.consumer.peek().expect("the peer writes good commit words")?;
        let mut body = Vec::new();
        record.append(0, record.body_bytes_max(), &mut body);
        record.release();
        // A peer that waits for room is told at every record.
        if self.consumer.publish() {
            self.wake_peer();
        }
        Some(body)
    }

    /// Whether the peer has published a record that was not taken yet.
    #[must_use]
    pub fn has_record(&self) -> bool {
        self.consumer.has_record()
    }

    /// Makes the sleep word odd, in a new epoch.
    pub fn arm(&mut self) {
        self.armed += if self.armed.is_multiple_of(2) { 1 } else { 2 };
        self.say_armed(self.armed);
    }
}
