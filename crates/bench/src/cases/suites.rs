//! The two suites of algorithms, per core.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use snowmelt_chunk::{Salt, Suite};

use crate::Bench;
use crate::measure::Samples;
use crate::report::Section;

const CHUNK: usize = 512 << 10;
/// More than a processor's caches hold, so that memory counts too.
const CHUNKS: usize = 128;

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let mut section = Section::new(
        "Suites",
        "One thread, chunks of 512 KiB, 64 MiB in all. Seal is what a publish does to a chunk; check is done once, when a \
         chunk enters a worker; open each time it is decrypted.",
        &["suite", "seal", "check", "open", "check and open"],
    );
    let chunks: Vec<Vec<u8>> = (0..CHUNKS)
        .map(|number| (0..CHUNK).map(|index| (index * 7 + (index >> 9) + number * 131) as u8).collect())
        .collect();
    let salt = Salt::from_bytes([7; 32]);
    for (name, suite) in [("blake3-gcm (default)", Suite::Blake3Gcm), ("sha256-ctr", Suite::Sha256Ctr)] {
        let mut ciphertexts = vec![vec![0; CHUNK]; CHUNKS];
        let mut opened = vec![0; CHUNK];
        let mut samples: [Samples; 3] = Default::default();
        for _ in 0..bench.samples {
            let started = Instant::now();
            let sealed: Vec<_> = chunks
                .iter()
                .zip(&mut ciphertexts)
                .map(|(plaintext, ciphertext)| suite.seal(&salt, plaintext, ciphertext))
                .collect();
            samples[0].add(started.elapsed());

            let started = Instant::now();
            for (ciphertext, sealed) in ciphertexts.iter().zip(&sealed) {
                ensure!(
                    suite.id_of(ciphertext) == sealed.id,
                    "{name}: a chunk has another id than it was sealed under"
                );
            }
            samples[1].add(started.elapsed());

            let started = Instant::now();
            for (ciphertext, sealed) in ciphertexts.iter().zip(&sealed) {
                suite.open(&sealed.secret, ciphertext, &mut opened)?;
                black_box(&opened);
            }
            samples[2].add(started.elapsed());
        }
        let speed = |seconds: f64| format!("{:.1} GB/s", (CHUNK * CHUNKS) as f64 / seconds / 1e9);
        let [seal, check, open] = samples.each_ref().map(Samples::median);
        section.row([name.to_owned(), speed(seal), speed(check), speed(open), speed(check + open)]);
    }
    let mut target = vec![0; CHUNK];
    let mut copies = Samples::default();
    for _ in 0..bench.samples {
        let started = Instant::now();
        for chunk in &chunks {
            target.copy_from_slice(chunk);
            black_box(&target);
        }
        copies.add(started.elapsed());
    }
    let speed = (CHUNK * CHUNKS) as f64 / copies.median() / 1e9;
    section.row(["copy in memory".to_owned(), String::new(), String::new(), format!("{speed:.1} GB/s"), String::new()]);
    Ok(vec![section])
}
