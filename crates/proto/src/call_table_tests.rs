use std::collections::HashMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn table_that_is_full_hands_the_value_back() {
    let mut table = CallTable::with_capacity(2);
    let first = table.insert("a").unwrap();
    table.insert("b").unwrap();
    assert_eq!(table.insert("c"), Err(Full("c")));
    assert_eq!(table.remove(first), Some("a"));
    assert!(table.insert("c").is_ok());
    assert_eq!(table.len(), 2);
    assert_eq!(CallTable::with_capacity(0).insert(1), Err(Full(1)));
}

#[test]
fn late_and_forged_ids_reach_no_other_call() {
    let mut table = CallTable::with_capacity(8);
    let old = table.insert(1).unwrap();
    assert_eq!(table.remove(old), Some(1));
    let young = table.insert(2).unwrap();
    assert_eq!(old.get() as u32, young.get() as u32, "the slot is used again");
    assert_eq!(table.find(old), Lookup::Ended);
    assert_eq!(table.remove(old), None);
    assert_eq!(table.find(young), Lookup::Live(&mut 2));
    for forged in [0, 1, young.get() + (1 << 32), young.get() + 1, u64::MAX] {
        assert_eq!(table.find(MessageId::new(forged)), Lookup::NeverIssued, "{forged:#x}");
        assert_eq!(table.remove(MessageId::new(forged)), None);
    }
    assert_eq!(table.remove(young), Some(2));
    let next = MessageId::new(young.get() + (1 << 32));
    assert_eq!(table.find(next), Lookup::NeverIssued, "a free slot has not issued it yet");
}

#[test]
fn slot_whose_generation_would_wrap_is_retired() {
    let mut table = CallTable::with_capacity(1);
    let first = table.insert(1).unwrap();
    table.remove(first).unwrap();
    table.slots[0].generation = u32::MAX;
    let last = table.insert(2).unwrap();
    assert_eq!(last.get(), u64::from(u32::MAX) << 32);
    assert_eq!(table.remove(last), Some(2));
    assert_eq!(table.find(last), Lookup::Ended);
    assert_eq!(table.find(first), Lookup::Ended);
    assert_eq!(table.find(MessageId::new(0)), Lookup::NeverIssued);
    let fresh = table.insert(3).unwrap();
    assert_eq!(fresh.get(), 1 << 32 | 1, "a new slot keeps the capacity");
    assert_eq!(table.find(last), Lookup::Ended);
}

#[test]
fn table_allocates_nothing_after_warm_up() {
    let mut table = CallTable::with_capacity(1024);
    let ids: Vec<_> = (0..4).map(|value| table.insert(value).unwrap()).collect();
    ids.into_iter().for_each(|id| assert!(table.remove(id).is_some()));
    let warm = table.slots.capacity();
    for value in 0..1000 {
        let id = table.insert(value).unwrap();
        assert_eq!(table.remove(id), Some(value));
    }
    assert_eq!(table.slots.capacity(), warm);
    assert_eq!(table.slots.len(), 4);
}

#[test]
fn drain_ends_what_it_gives_and_keeps_the_rest() {
    let mut table = CallTable::with_capacity(8);
    let ids: Vec<_> = (0..4).map(|value| table.insert(value).unwrap()).collect();
    assert_eq!(table.remove(ids[1]), Some(1));
    assert_eq!(table.drain().take(2).map(|(_, value)| value).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(table.iter_mut().map(|(id, _)| id).collect::<Vec<_>>(), [ids[3]]);
    assert_eq!(table.drain().collect::<Vec<_>>(), [(ids[3], 3)]);
    assert!(table.is_empty());
    assert!(ids.into_iter().all(|id| table.find(id) == Lookup::Ended));
}

#[derive(Debug, Clone)]
enum Step {
    Insert,
    Remove(prop::sample::Index),
    Find(prop::sample::Index),
    Forge(u64),
    Drain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Insert),
        6 => any::<prop::sample::Index>().prop_map(Step::Remove),
        6 => any::<prop::sample::Index>().prop_map(Step::Find),
        // Slots and generations near those in use, and any number at all.
        2 => (0u64..8, 0u64..16).prop_map(|(slot, turn)| Step::Forge(turn << 32 | slot)),
        1 => any::<u64>().prop_map(Step::Forge),
        1 => Just(Step::Drain),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn table_acts_as_a_map_that_remembers_what_it_issued(steps in steps(), capacity in 0u32..6) {
        let mut table = CallTable::with_capacity(capacity);
        let mut live = HashMap::new();
        let mut issued = Vec::new();
        for (turn, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert => match table.insert(turn) {
                    Ok(id) => {
                        prop_assert!(!issued.contains(&id) && id != MessageId::CONNECTION);
                        issued.push(id);
                        live.insert(id, turn);
                    }
                    Err(Full(value)) => {
                        prop_assert_eq!((value, live.len()), (turn, capacity as usize));
                    }
                },
                Step::Remove(index) if !issued.is_empty() => {
                    let id = *index.get(&issued);
                    prop_assert_eq!(table.remove(id), live.remove(&id));
                }
                Step::Find(index) if !issued.is_empty() => {
                    let id = *index.get(&issued);
                    match live.get_mut(&id) {
                        Some(value) => prop_assert_eq!(table.find(id), Lookup::Live(value)),
                        None => prop_assert_eq!(table.find(id), Lookup::Ended),
                    }
                }
                Step::Forge(number) => {
                    let id = MessageId::new(number);
                    let never = table.find(id) == Lookup::NeverIssued;
                    prop_assert_eq!(never, !issued.contains(&id));
                }
                Step::Drain => {
                    prop_assert_eq!(table.drain().collect::<HashMap<_, _>>(), live.clone());
                    live.clear();
                }
                Step::Remove(_) | Step::Find(_) => {}
            }
            prop_assert_eq!(table.len(), live.len());
            prop_assert_eq!(table.iter_mut().count(), live.len());
        }
    }
}
