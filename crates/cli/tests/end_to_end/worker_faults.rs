//! What happens to a worker's disk, and costs no sandbox more than a fetch.

use std::path::PathBuf;

use crate::machine::Worker;
use crate::world::{World, tool, wait_until};

/// A file system in memory in a world, of that size.
fn small_disk(world: &World, size: &str) -> PathBuf {
    let folder = world.path("small-disk");
    std::fs::create_dir(&folder).unwrap();
    tool("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", folder.to_str().unwrap()]);
    folder
}

/// Fills it but for that many bytes.
fn fill(disk: &std::path::Path, but_for: u64) -> PathBuf {
    let filler = disk.join("filler");
    let room = rustix::fs::statvfs(disk).unwrap();
    let bytes = room.f_bavail * room.f_frsize - but_for;
    std::fs::write(&filler, vec![0xee; usize::try_from(bytes).unwrap()]).unwrap();
    filler
}

#[test]
fn a_full_disk_means_memory_only_until_there_is_room() {
    let world = World::with_small();
    let read = |what: &str| world.run(&[], &["sh", "-c", &format!("cat {what} | md5sum")]).success().stdout();
    let whole = |what: &str| {
        let arguments = ["--use-worker", "never", "run", "small", "sh", "-c", &format!("cat {what} | md5sum")];
        world.snowmelt(arguments).success().stdout()
    };
    let disk = small_disk(&world, "32m");
    let folder = disk.join("chunks-of-worker");
    let worker = Worker::start(&world, &["--disk", folder.to_str().unwrap()]);
    // Its budget is a gibibyte. Small chunks find room now and then, which is no reason to complain anew.
    let filler = fill(&disk, 1 << 20);
    assert_eq!(read("/data/pattern"), whole("/data/pattern"));
    wait_until("it is noticed", || world.worker_status()["unkept"].as_u64().unwrap() > 1);
    assert!(worker.metric("snowmelt_worker_unkept_chunks_total") > 1);
    let status = world.snowmelt(["worker", "status"]).success().stdout();
    assert!(status.contains("chunks not taken"), "{status}");
    let log = || std::fs::read_to_string(world.path("worker.log")).unwrap();
    assert_eq!(log().matches("chunks are not kept on disk").count(), 1, "{}", log());
    // Memory has them.
    let fetched = worker.metric("snowmelt_worker_fetch_seconds_count");
    assert_eq!(read("/data/pattern"), whole("/data/pattern"));
    assert_eq!(worker.metric("snowmelt_worker_fetch_seconds_count"), fetched);

    std::fs::remove_file(filler).unwrap();
    let before = world.worker_status();
    assert_eq!(read("/odd/many/*"), whole("/odd/many/*"));
    wait_until("new chunks are on disk", || world.worker_status()["disk"][0].as_u64() > before["disk"][0].as_u64());
    assert_eq!(log().matches("chunks are not kept on disk").count(), 1, "{}", log());
    worker.stop();
    // What is there is whole, and what was not taken is fetched again and kept.
    let worker = Worker::start(&world, &["--disk", folder.to_str().unwrap()]);
    assert!(worker.ready["disk"][0].as_u64() > before["disk"][0].as_u64());
    for what in ["/data/pattern", "/odd/many/*"] {
        assert_eq!(read(what), whole(what));
    }
    wait_until("all are on disk", || {
        let status = world.worker_status();
        status["disk"][0].as_u64().unwrap() >= worker.metric("snowmelt_worker_memory_chunks")
    });
    let status = world.worker_status();
    assert_eq!((&status["unkept"], &status["damaged"]), (&0.into(), &0.into()));
    worker.stop();
    tool("umount", &[disk.to_str().unwrap()]);
    world.assert_nothing_left();
}
