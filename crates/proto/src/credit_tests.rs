use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn credit_frames_round_trip_and_bad_ones_are_refused() {
    let credit = Credit { items: 3, bytes: 0x0102_0304 };
    assert_eq!(credit.encode(), [3, 0, 0, 0, 4, 3, 2, 1]);
    assert_eq!(Credit::decode(&credit.encode()), Ok(credit));
    for bad in [&[][..], &[1; 7], &[1; 9], &[0; 8]] {
        assert_eq!(Credit::decode(bad), Err(CreditError::Malformed));
    }
}

#[test]
fn window_that_is_granted_twice_or_overflows_is_refused_and_changes_nothing() {
    let mut credit = SendCredit::new();
    for too_much in [
        Credit { items: 1, bytes: 0 },
        Credit { items: 0, bytes: 1 },
        Credit { items: u32::MAX, bytes: u32::MAX },
    ] {
        assert_eq!(credit.grant(too_much), Err(CreditError::Overflow));
        assert_eq!(credit, SendCredit::new());
    }
    assert!(credit.take(10));
    assert_eq!(credit.grant(Credit { items: 1, bytes: 10 }), Ok(()));
    assert_eq!(credit.grant(Credit { items: 1, bytes: 10 }), Err(CreditError::Overflow));
}

#[test]
fn item_longer_than_the_window_passes_alone() {
    let (mut send, mut receive) = (SendCredit::new(), ReceiveCredit::new());
    let long = Credit::WINDOW.bytes + 5;
    assert!(send.take(long) && receive.receive(long).is_ok());
    assert!(!send.take(0), "nothing more until it was taken");
    assert_eq!(receive.receive(0), Err(CreditError::Exceeded));
    receive.take(long);
    assert!(receive.is_due());
    send.grant(receive.give_back()).unwrap();
    assert_eq!(send, SendCredit::new());
    assert_eq!(receive, ReceiveCredit::new());
}

#[test]
fn receiver_that_takes_nothing_stops_its_sender_at_the_window() {
    let mut send = SendCredit::new();
    let sent = (0..1000).take_while(|_| send.take(1)).count();
    assert_eq!(sent, Credit::WINDOW.items as usize);
}

/// One step of a stream whose frames are on the way in order.
#[derive(Debug, Clone)]
enum Step {
    Send(u32),
    Arrive,
    Take,
    GiveBack,
    CreditArrives,
    /// The stream ends for one side: what is on the way to it is thrown away.
    Cancel,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..100_000_u32).prop_map(Step::Send),
        4 => Just(Step::Arrive),
        4 => Just(Step::Take),
        2 => Just(Step::GiveBack),
        2 => Just(Step::CreditArrives),
        1 => Just(Step::Cancel),
    ]
}

proptest! {
    #[test]
    fn credit_is_conserved_over_every_interleaving(steps in prop::collection::vec(step(), 0..400)) {
        let (mut send, mut receive) = (SendCredit::new(), ReceiveCredit::new());
        let (mut way, mut held) = (VecDeque::new(), VecDeque::new());
        let mut back: VecDeque<Credit> = VecDeque::new();
        for step in steps {
            match step {
                Step::Send(bytes) => {
                    let may = send.may_send();
                    prop_assert_eq!(send.take(bytes), may);
                    if may {
                        way.push_back(bytes);
                    }
                }
                Step::Arrive => if let Some(bytes) = way.pop_front() {
                    prop_assert_eq!(receive.receive(bytes), Ok(()));
                    held.push_back(bytes);
                },
                Step::Take => if let Some(bytes) = held.pop_front() {
                    receive.take(bytes);
                },
                Step::GiveBack => if receive.is_due() {
                    back.push_back(receive.give_back());
                },
                Step::CreditArrives => if let Some(credit) = back.pop_front() {
                    prop_assert_eq!(send.grant(credit), Ok(()));
                },
                Step::Cancel => {
                    // Its accounts go with it; the next stream begins anew.
                    (send, receive) = (SendCredit::new(), ReceiveCredit::new());
                    way.clear();
                    held.clear();
                    back.clear();
                }
            }
            let sum = |queue: &VecDeque<u32>| queue.iter().map(|&bytes| i64::from(bytes)).sum::<i64>();
            let back_items: u32 = back.iter().map(|credit| credit.items).sum();
            let back_bytes: i64 = back.iter().map(|credit| i64::from(credit.bytes)).sum();
            let items = send.items + back_items + receive.taken_items + (way.len() + held.len()) as u32;
            let bytes = send.bytes + back_bytes + i64::from(receive.taken_bytes) + sum(&way) + sum(&held);
            prop_assert_eq!(items, Credit::WINDOW.items);
            prop_assert_eq!(bytes, i64::from(Credit::WINDOW.bytes));
        }
    }

    #[test]
    fn stream_whose_reader_reads_never_stalls(lengths in prop::collection::vec(0..400_000_u32, 1..200)) {
        let (mut send, mut receive) = (SendCredit::new(), ReceiveCredit::new());
        let mut passed = Vec::new();
        for &bytes in &lengths {
            prop_assert!(send.take(bytes), "there is credit whenever all that came was taken");
            receive.receive(bytes).unwrap();
            receive.take(bytes);
            if receive.is_due() {
                send.grant(receive.give_back()).unwrap();
            }
            passed.push(bytes);
        }
        prop_assert_eq!(passed, lengths);
    }
}
