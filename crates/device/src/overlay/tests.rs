//! The overlay against a model, killed at any step.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicI64;

use proptest::prelude::*;

use super::*;

/// Has the overlay fail after so many steps, for good, as if its process had been killed there.
pub(super) struct KillSwitch(AtomicI64);

impl Default for KillSwitch {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MAX))
    }
}

impl KillSwitch {
    fn arm(&self, steps: i64) {
        self.0.store(steps, Ordering::Relaxed);
    }

    pub(super) fn is_armed(&self) -> bool {
        self.0.load(Ordering::Relaxed) < i64::MAX / 2
    }

    pub(super) fn step(&self) -> Result<(), &'static str> {
        if self.0.fetch_sub(1, Ordering::Relaxed) > 0 { Ok(()) } else { Err("killed") }
    }
}

const KEY: [u8; 32] = [9; 32];
/// Two regions and a bit.
const PAGES: u64 = 2 * REGION_PAGES + 40;
const SIZE: u64 = PAGES * PAGE;

fn overlay(folder: &Path, budget_bytes: u64) -> Overlay {
    Overlay::new("test", folder, budget_bytes, SIZE).unwrap()
}

fn successor(overlay: Overlay) -> Overlay {
    let handover = overlay.handover(&KEY).unwrap();
    drop(overlay);
    Overlay::resume("test", handover, &KEY, 1 << 30, SIZE).unwrap()
}

fn page(byte: u8) -> Vec<u8> {
    (0..PAGE).map(|at| byte.wrapping_add(at as u8)).collect()
}

fn read(overlay: &Overlay, page: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; PAGE as usize];
    overlay.read_over(page * PAGE, &mut bytes).unwrap();
    bytes
}

#[derive(Clone, Debug)]
enum Step {
    Pages { first: u64, count: u64, byte: u8 },
    Part { page: u64, within: usize, length: usize, byte: u8 },
    Zero { first: u64, count: u64 },
}

impl Step {
    /// Pages that it touches, and what they are after it.
    fn apply(&self, model: &[Vec<u8>]) -> Vec<(u64, Vec<u8>)> {
        match *self {
            Self::Pages { first, count, byte } => {
                (first..first + count).map(|at| (at, page(byte.wrapping_add(at as u8)))).collect()
            }
            Self::Part { page, within, length, byte } => {
                let mut bytes = model[page as usize].clone();
                bytes[within..within + length].fill(byte);
                vec![(page, bytes)]
            }
            Self::Zero { first, count } => (first..first + count).map(|at| (at, vec![0; PAGE as usize])).collect(),
        }
    }

    fn run(&self, overlay: &Overlay, base: &[Vec<u8>]) -> Result<(), Error> {
        match *self {
            Self::Pages { first, .. } => {
                let bytes: Vec<u8> = self.apply(base).into_iter().flat_map(|(_, bytes)| bytes).collect();
                overlay.write_pages(first, &bytes)
            }
            Self::Part { page, within, length, byte } => {
                let image: &[u8; PAGE as usize] = base[page as usize].as_slice().try_into().unwrap();
                let base = (!overlay.covers(&(page * PAGE..(page + 1) * PAGE))).then_some(image);
                overlay.write_within(page, within, &vec![byte; length], base)
            }
            Self::Zero { first, count } => overlay.zero_pages(first..first + count),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(Step, Option<i64>)>> {
    // Around the border of two regions, so that steps overlap.
    let places = REGION_PAGES - 12..REGION_PAGES + 4;
    let step =
        prop_oneof![
            (places.clone(), 1..8_u64, any::<u8>()).prop_map(|(first, count, byte)| Step::Pages { first, count, byte }),
            (places.clone(), 0..4000_usize, 1..96_usize, any::<u8>())
                .prop_map(|(page, within, length, byte)| Step::Part { page, within, length, byte }),
            (places, 1..8_u64).prop_map(|(first, count)| Step::Zero { first, count }),
        ];
    let kill = prop_oneof![1 => Just(None), 2 => (0..20_i64).prop_map(Some)];
    proptest::collection::vec((step, kill), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    /// Killed at any step, each page is what it was or what it was to become; and done again, the step has its effect.
    #[test]
    fn a_successor_finds_each_page_whole(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let base: Vec<Vec<u8>> = (0..PAGES).map(|at| page((at as u8).wrapping_mul(7))).collect();
        let mut model = base.clone();
        let mut overlay = overlay(folder.path(), 1 << 30);
        let mut nonces = std::collections::HashSet::new();
        let look = |overlay: &Overlay, at: u64| {
            let mut bytes = base[at as usize].clone();
            overlay.read_over(at * PAGE, &mut bytes).map(|()| bytes)
        };
        for (step, kill) in steps {
            let after = step.apply(&model);
            if let Some(steps) = kill {
                overlay.kill.arm(steps);
                let done = step.run(&overlay, &base);
                let is_dead = overlay.kill.step().is_err();
                prop_assert!(done.is_ok() || is_dead);
                overlay = successor(overlay);
                for (at, bytes) in &after {
                    let found = look(&overlay, *at).unwrap();
                    prop_assert!(found == *bytes || (done.is_err() && found == model[*at as usize]), "page {at}");
                }
            }
            step.run(&overlay, &base).unwrap();
            for (at, bytes) in after {
                model[at as usize] = bytes;
            }
            let next = overlay.states.take_nonces(1).unwrap();
            prop_assert!(nonces.insert(next), "a nonce came twice");
            for (at, bytes) in (0..).zip(&model).skip(REGION_PAGES as usize - 16).take(32) {
                prop_assert!(look(&overlay, at).unwrap() == *bytes, "page {at}");
            }
        }
        let used = overlay.used_bytes();
        prop_assert_eq!(successor(overlay).used_bytes(), used, "counted again");
    }
}

#[test]
fn nonces_are_unique_over_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut overlay = overlay(folder.path(), 1 << 30);
    let mut seen = std::collections::HashSet::new();
    for round in 0..20 {
        overlay.kill.arm(round);
        let _ = overlay.write_pages(3, &[7; 3 * PAGE as usize]);
        for state in overlay.states.region(0, 3..6).unwrap_or(&[]) {
            if let State::Stored { nonce, .. } = State::of(state.load(Ordering::Acquire)) {
                seen.insert(nonce);
            }
        }
        let next = overlay.states.take_nonces(1).unwrap();
        assert!(seen.iter().all(|nonce| *nonce < next), "taken before used");
        overlay = successor(overlay);
    }
    assert!(seen.len() > 20);
}

#[test]
fn slots_that_are_not_needed_are_given_back() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let budget = 64 * PAGE;
    let overlay = overlay(folder.path(), 1 << 30);
    let small = Overlay { budget_pages: budget / PAGE, ..overlay };
    for round in 0..20_u8 {
        for first in (0..REGION_PAGES).step_by(64) {
            small.zero_pages(0..REGION_PAGES).unwrap();
            small.write_pages(first, &vec![round; 64 * PAGE as usize]).unwrap();
            small.write_pages(first, &vec![round + 1; 64 * PAGE as usize]).unwrap();
            small.write_pages(first, &vec![round + 2; 64 * PAGE as usize]).unwrap();
        }
    }
    let taken = small.slots.file.metadata().unwrap().blocks() * 512;
    assert!(taken <= budget + (FEW_STALE + 64) * PAGE, "{taken} bytes");
    assert_eq!(small.used_bytes(), budget);
}

#[test]
fn stale_slots_are_bounded_when_all_is_written_again_and_again() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mut overlay = overlay(folder.path(), SIZE);
    for round in 0..3_u8 {
        for first in (0..PAGES).step_by(8) {
            overlay.write_pages(first, &vec![round; 8 * PAGE as usize]).unwrap();
        }
        let taken = overlay.slots.file.metadata().unwrap().blocks() * 512;
        assert!(taken <= SIZE + (FEW_STALE + 16) * PAGE, "{taken} bytes in round {round}");
        overlay = successor(overlay);
        overlay.budget_pages = PAGES;
    }
    assert_eq!(read(&overlay, PAGES - 1), vec![2; PAGE as usize]);
}

#[test]
fn who_was_taken_over_writes_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let old = overlay(folder.path(), 1 << 20);
    old.write_pages(0, &page(1)).unwrap();
    let handover = old.handover(&KEY).unwrap();
    let new = Overlay::resume("test", handover, &KEY, 1 << 20, SIZE).unwrap();
    assert!(old.write_pages(0, &page(2)).is_err());
    assert!(old.zero_pages(0..1).is_err());
    assert_eq!(read(&new, 0), page(1));
    new.write_pages(0, &page(3)).unwrap();
    new.stop_writes();
    assert!(new.write_within(0, 0, &[1], None).is_err());
    assert_eq!(read(&new, 0), page(3));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = overlay(folder.path(), 1 << 20);
    ours.write_pages(1, &page(1)).unwrap();
    let resume = |overlay: &Overlay, change: &dyn Fn(&mut OverlayHandover), key: &[u8; 32], size: u64| {
        let mut handover = overlay.handover(&KEY).unwrap();
        change(&mut handover);
        Overlay::resume("test", handover, key, 1 << 20, size).map(drop).unwrap_err().to_string()
    };
    let wrong_key = resume(&ours, &|_| (), &[8; 32], SIZE);
    assert!(wrong_key.contains("sealed under another key"), "{wrong_key}");
    ours.write_pages(1, &page(1)).expect("a wrong key takes nothing away");
    assert!(resume(&ours, &|_| (), &KEY, SIZE + REGION_PAGES * PAGE).contains("length"));
    assert!(resume(&ours, &|_| (), &KEY, SIZE - PAGE).contains("pages"));
    let other = overlay(folder.path(), 1 << 20);
    let swapped = resume(&ours, &|handover| handover.states = other.handover(&KEY).unwrap().states, &KEY, SIZE);
    assert!(swapped.contains("another overlay"), "{swapped}");
    // States that no overlay writes.
    for word in [u64::MAX - 1, 1 << 62, 1 << 63, 1000] {
        let damaged = overlay(folder.path(), 1 << 20);
        damaged.states.region_to_write(0, 5..6)[0].store(word, Ordering::Relaxed);
        let mut page_of_it = [0; 10];
        let _ = damaged.read_over(5 * PAGE, &mut page_of_it);
        assert!(resume(&damaged, &|_| (), &KEY, SIZE).contains("page 5"), "{word:x}");
    }
    let past_the_end = overlay(folder.path(), 1 << 20);
    let within = (PAGES % REGION_PAGES) as usize;
    past_the_end.states.region_to_write(2, within..within + 1)[0].store(ZERO, Ordering::Relaxed);
    assert!(resume(&past_the_end, &|_| (), &KEY, SIZE).contains("page"));
}
