//! Speed of both suites on one core, beside the limits that the machine sets: copying, hashing and AES alone.
//!
//! Prints one JSON object: medians in GB/s over chunks of 512 KiB. Everything is measured in turns in one process, so
//! that the figures compare even on a machine whose speed varies.
//!
//! usage: cargo run --release --package snowmelt-chunk --example suites [-- ROUNDS]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest;
use serde_json::json;
use snowmelt_chunk::{DEFAULT_CHUNK_SIZE, Salt, Sealed, Suite};

const CHUNK: usize = DEFAULT_CHUNK_SIZE as usize;
/// 64 MiB: more than a processor's caches hold, so that memory counts too.
const CHUNKS: usize = 128;
const SUITES: [Suite; 2] = [Suite::Blake3Gcm, Suite::Sha256Ctr];

/// Seconds of every round, by what was measured.
#[derive(Default)]
struct Times(BTreeMap<String, Vec<f64>>);

impl Times {
    /// Times one pass of `work` over all chunks.
    fn pass(&mut self, name: impl Into<String>, mut work: impl FnMut(usize)) {
        let started = Instant::now();
        (0..CHUNKS).for_each(&mut work);
        self.0.entry(name.into()).or_default().push(started.elapsed().as_secs_f64());
    }

    /// The median of each, in GB/s.
    fn speeds(self) -> BTreeMap<String, f64> {
        let speed = |mut seconds: Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            let median = seconds[seconds.len() / 2];
            ((CHUNK * CHUNKS) as f64 / median / 1e7).round() / 100.0
        };
        self.0.into_iter().map(|(name, seconds)| (name, speed(seconds))).collect()
    }
}

fn main() {
    let rounds: usize = match std::env::args().nth(1).map(|text| text.parse()) {
        None => 15,
        Some(Ok(rounds)) if rounds > 0 => rounds,
        Some(_) => {
            eprintln!("usage: suites [ROUNDS]");
            std::process::exit(2);
        }
    };
    let plaintexts: Vec<Vec<u8>> = (0..CHUNKS)
        .map(|number| {
            let mut bytes = vec![0; CHUNK];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
            bytes
        })
        .collect();
    let mut target = vec![0; CHUNK];
    let mut times = Times::default();
    // The first round touches every page and lets the processor find its pace; it does not count.
    let mut warm_up = Times::default();
    let mut ciphertexts = vec![vec![0; CHUNK]; CHUNKS];
    for round in 0..=rounds {
        let times = if round == 0 { &mut warm_up } else { &mut times };
        limits(times, &plaintexts, &mut target);
        for suite in SUITES {
            suite_round(times, suite, &plaintexts, &mut ciphertexts, &mut target);
        }
    }
    let report =
        json!({ "unit": "GB/s", "chunk_bytes": CHUNK, "chunks": CHUNKS, "rounds": rounds, "median": times.speeds() });
    println!("{report:#}");
}

fn suite_round(
    times: &mut Times,
    suite: Suite,
    plaintexts: &[Vec<u8>],
    ciphertexts: &mut [Vec<u8>],
    opened: &mut [u8],
) {
    let salt = Salt::from_bytes([7; 32]);
    let mut sealed: Vec<Sealed> = Vec::with_capacity(CHUNKS);
    times.pass(format!("{suite} seal"), |index| {
        sealed.push(suite.seal(&salt, &plaintexts[index], &mut ciphertexts[index]));
    });
    times.pass(format!("{suite} verify id"), |index| {
        assert_eq!(suite.id_of(&ciphertexts[index]), sealed[index].id);
    });
    times.pass(format!("{suite} open"), |index| {
        suite.open(&sealed[index].secret, &ciphertexts[index], opened).expect("what was sealed opens");
        black_box(&*opened);
    });
    times.pass(format!("{suite} verify id and open"), |index| {
        assert_eq!(suite.id_of(&ciphertexts[index]), sealed[index].id);
        suite.open(&sealed[index].secret, &ciphertexts[index], opened).expect("what was sealed opens");
        black_box(&*opened);
    });
    assert_eq!(opened, plaintexts[CHUNKS - 1], "the last chunk opened is the last one sealed");
}

/// What no suite can be faster than.
fn limits(times: &mut Times, chunks: &[Vec<u8>], target: &mut [u8]) {
    times.pass("limit: memory copy", |index| {
        target.copy_from_slice(&chunks[index]);
        black_box(&*target);
    });
    times.pass("limit: SHA-256", |index| {
        black_box(digest::digest(&digest::SHA256, &chunks[index]));
    });
    times.pass("limit: BLAKE3", |index| {
        black_box(blake3::hash(&chunks[index]));
    });
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("an AES-256 key has 32 bytes"));
    times.pass("limit: AES-256-GCM in place", |_| {
        // Measures speed; what is encrypted here twice under one nonce is never kept.
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), target).expect("a chunk is within GCM's limit");
        black_box(tag.as_ref());
    });
}
