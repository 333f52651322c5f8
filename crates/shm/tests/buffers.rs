//! Buffers that are kept for the next payload.

use lapwing_shm::{Buffer, KeepBuffers, has_kept_buffers, sweep_buffers};

/// Alone in its process, to which the buffers that are kept belong.
#[test]
fn buffers_grow_are_kept_for_the_next_and_go_back_when_unused() {
    drop(Buffer::zeroed(100));
    assert!(!has_kept_buffers(), "nobody keeps any");
    let keeper = KeepBuffers::new();
    let mut buffer = Buffer::new();
    assert!(buffer.bytes().is_empty() && buffer.bytes_mut().is_empty());
    let mut expected = Vec::new();
    for n in 0..50_u8 {
        let piece = vec![n; 7_000];
        buffer.extend(&piece);
        expected.extend(piece);
    }
    assert_eq!(buffer.bytes(), expected);
    buffer.truncate(3);
    assert_eq!(buffer.bytes(), [0; 3]);
    let address = buffer.bytes().as_ptr();
    drop(buffer);
    let next = Buffer::zeroed(300_000);
    assert_eq!(next.bytes().as_ptr(), address);
    assert_eq!(next.bytes().len(), 300_000);
    drop(next);
    sweep_buffers();
    assert!(has_kept_buffers(), "used since the last sweep");
    sweep_buffers();
    sweep_buffers();
    assert!(!has_kept_buffers());
    drop(Buffer::zeroed(100));
    assert!(has_kept_buffers());
    let other = KeepBuffers::new();
    drop(keeper);
    assert!(!has_kept_buffers(), "somebody is done");
    drop(other);
}
