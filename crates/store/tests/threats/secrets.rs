//! Key material in logs, core files and swap.

use snowmelt_chunk::{ChunkId, Scope};
use snowmelt_store::readback::verify;
use snowmelt_store::{SeenNames, Sharing};

use crate::captured_log::capture;
use crate::world::*;

#[test]
fn no_log_shows_a_secret() {
    let log = capture();
    let mut secrets = vec![SALT_SECRET.to_vec(), CONTENT.to_vec(), VARIABLE.into()];
    for world in World::both() {
        let seen = SeenNames::new(&world.folder.path().join("cache"));
        let published = world.publish(0, "app", &[CONTENT, b"more"]);
        let image = world.open_seeing(0, "app", Some(&seen)).unwrap();
        verify(&image.store, &image.manifest, 2, &|_| {}).unwrap();
        for record in image.manifest.records() {
            secrets.push(image.manifest.chunk(record.slot).unwrap().1.key.to_vec());
        }
        let file = std::fs::read_to_string(world.folder.path().join("keys/alice/alice.key")).unwrap();
        secrets.push(file.trim().parse::<ChunkId>().unwrap().0.to_vec());
        tracing::trace!(?image, ?published, store = ?world.store, keys = ?world.keys, "shown on purpose");
        world.put(&chunk_path(&image.manifest.records()[0].id), b"damaged");
        let damage = verify(&image.store, &image.manifest, 2, &|_| {}).unwrap();
        tracing::error!(?damage);
        tracing::error!(refused = ?world.open(1, "app").unwrap_err());
        let sharing = Sharing { secret: &SALT_SECRET, scope: Scope::Everyone, zone: "z".into(), class: String::new() };
        tracing::trace!(?sharing);
    }
    assert!(log.text().contains("shown on purpose"));
    for secret in secrets {
        log.assert_shows_nothing_of(&secret);
    }
}

#[test]
fn what_an_open_image_holds_is_neither_swapped_nor_dumped() {
    let world = World::in_memory();
    world.publish(0, "app", &[CONTENT]);
    let image = world.open(0, "app").unwrap();
    let address = image.manifest.metadata().as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = false;
    let flags = maps.lines().find_map(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let numbers = range.map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
        if let Some((Ok(start), Ok(end))) = numbers {
            found = (start..end).contains(&address);
        }
        line.strip_prefix("VmFlags:").filter(|_| found)
    });
    let flags: Vec<_> = flags.unwrap().split_whitespace().collect();
    assert!(flags.contains(&"dd"), "it would be in a core file: {flags:?}");
    assert!(flags.contains(&"lo"), "it could be swapped: {flags:?}");
}
