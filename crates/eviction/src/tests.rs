#![allow(clippy::unwrap_used)]
use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn all(budget: u64) -> Vec<(&'static str, Box<dyn Eviction<u32>>)> {
    vec![
        ("LRU", Box::new(Lru::new(budget))),
        ("LRU-2", Box::new(LruK::new(budget, 4))),
        ("S3-FIFO", Box::new(S3Fifo::new(budget))),
        ("W-TinyLFU", Box::new(WTinyLfu::new(budget, 100))),
    ]
}

/// Asks for a key and offers it where it is not kept. Whether it was.
fn ask(policy: &mut dyn Eviction<u32>, key: u32, bytes: u64) -> bool {
    policy.touch(key) || {
        policy.offer(key, bytes, &mut Vec::new());
        false
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u32, u64),
    Remove(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..60_u32, 0..300_u64).prop_map(|(key, bytes)| Step::Ask(key, bytes)),
        1 => (0..60_u32).prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 0..600)
}

proptest! {
    /// Whoever does what the policy says has what the policy believes, and never more than the budget.
    #[test]
    fn what_is_told_to_go_is_what_goes(steps in steps(), budget in 0..2000_u64) {
        for (name, mut policy) in all(budget) {
            let mut kept: HashMap<u32, u64> = HashMap::new();
            for step in &steps {
                match *step {
                    Step::Remove(key) => {
                        policy.remove(key);
                        kept.remove(&key);
                    }
                    Step::Ask(key, bytes) => {
                        prop_assert_eq!(policy.touch(key), kept.contains_key(&key), "{}", name);
                        if kept.contains_key(&key) {
                            continue;
                        }
                        let mut evicted = Vec::new();
                        policy.offer(key, bytes, &mut evicted);
                        kept.insert(key, bytes);
                        let distinct: HashSet<u32> = evicted.iter().copied().collect();
                        prop_assert_eq!(distinct.len(), evicted.len(), "{} evicts twice", name);
                        for victim in evicted {
                            prop_assert!(kept.remove(&victim).is_some(), "{} evicts what is not there", name);
                        }
                    }
                }
                prop_assert_eq!(policy.used_bytes(), kept.values().sum::<u64>(), "{}", name);
                prop_assert!(policy.used_bytes() <= budget, "{}", name);
            }
        }
    }
}

#[test]
fn one_scan_takes_what_is_hot_from_lru_only() {
    for (name, mut policy) in all(100) {
        for _ in 0..20 {
            for key in 0..80 {
                ask(&mut *policy, key, 1);
            }
        }
        for key in 1000..2000 {
            assert!(!ask(&mut *policy, key, 1), "{name}");
        }
        let hot = (0..80).filter(|key| policy.touch(*key)).count();
        if name == "LRU" {
            assert_eq!(hot, 0);
        } else {
            assert!(hot >= 60, "{name} keeps {hot} of 80");
        }
    }
}

#[test]
fn what_becomes_hot_gets_its_room() {
    for (name, mut policy) in all(100) {
        for _ in 0..20 {
            for key in 0..100 {
                ask(&mut *policy, key, 1);
            }
        }
        for _ in 0..60 {
            for key in 1000..1080 {
                ask(&mut *policy, key, 1);
            }
        }
        let hot = (1000..1080).filter(|key| policy.touch(*key)).count();
        assert!(hot >= 70, "{name} keeps {hot} of 80");
    }
}

#[test]
fn what_is_larger_than_the_budget_goes_at_once() {
    for (name, mut policy) in all(100) {
        let mut evicted = Vec::new();
        policy.offer(1, 101, &mut evicted);
        assert_eq!((evicted, policy.used_bytes()), (vec![1], 0), "{name}");
    }
}
