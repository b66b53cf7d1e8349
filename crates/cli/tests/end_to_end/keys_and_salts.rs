//! Rotation of keys and salts, and with whom chunks are shared.

use crate::stores::only_on_files;
use crate::world::{World, test_image};

#[test]
fn images_open_without_the_old_key_after_its_rotation() {
    only_on_files!();
    let world = World::with_small();
    let before = world.chunk_files();
    let rotated = world.json(&["keys", "rotate"]);
    assert_eq!((&rotated["sealed"], &rotated["failed"]), (&1.into(), &serde_json::json!([])));
    let old = rotated["kept_keys"][0]["file"].as_str().unwrap();
    let status = world.json(&["keys", "status"]);
    assert_eq!(status.as_array().unwrap().len(), 1, "{status}");
    assert_eq!((&status[0]["images"], &status[0]["is_current"]), (&1.into(), &true.into()));
    std::fs::remove_file(old).unwrap();
    world.run(&[], &["true"]).success();
    assert_eq!(world.chunk_files(), before, "no chunk is touched");
    assert_eq!(world.json(&["keys", "rotate", "--keep-key"])["already_current"], 1);
}

#[test]
fn mistakes_with_keys_are_explained() {
    let world = World::with_small();
    world.snowmelt(["keys", "rotate", "--keys", "awskms:alias/x"]).failure(1, &["awskms:alias/x", "--keep-key"]);
    world.snowmelt(["keys", "status", "--keys", "nowhere"]).failure(2, &["awskms:KEY"]);
    world.snowmelt(["keys", "rotate", "--keys", "local", "--tenant", "nobody", "--keep-key"]).failure(1, &["nobody"]);
    world.snowmelt(["publish", "dir:/nowhere", "x", "--share", "nobody"]).failure(2, &["layer:NAME"]);
}

#[test]
fn new_salts_share_no_chunk_with_old_ones() {
    let world = World::with_small();
    let status = world.json(&["salt", "status"]);
    assert_eq!((&status["epoch"], &status["most_shared"]["images"]), (&0.into(), &1.into()));
    let chunks = world.chunk_files().len();
    assert_eq!(status["rotation"]["chunks"], chunks);
    assert_eq!(world.json(&["salt", "rotate"])["epoch"], 1);
    let published = world.json(&["publish", &test_image("small"), "again"]);
    assert_eq!(published["present_chunks"], 0);
    assert_eq!(world.chunk_files().len(), 2 * chunks);
    world.run(&[], &["true"]).success();
    let inspected = world.json(&["inspect", "again"]);
    assert_eq!(inspected["salt"]["epoch"], 1);
    assert_eq!(world.json(&["salt", "status"])["domains"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_shared_by_a_tenant_is_shared_by_nobody_else() {
    let world = World::with_small();
    let source = test_image("small");
    for options in [&["--share", "tenant"][..], &["--class", "rare"], &["--zone", "eu-1"]] {
        let mut arguments = vec!["publish", &source, "other"];
        arguments.extend(options);
        assert_eq!(world.json(&arguments)["present_chunks"], 0, "{options:?}");
        // With themselves they do.
        assert_eq!(world.json(&arguments)["new_chunks"], 0, "{options:?}");
    }
    let of_other = ["publish", &source, "other", "--share", "tenant", "--tenant", "other"];
    assert_eq!(world.json(&of_other)["present_chunks"], 0);
    assert_eq!(world.json(&["publish", &source, "other", "--tenant", "other"])["new_chunks"], 0);
    let hidden = world.json(&["publish", &source, "hidden", "--hide-existing"]);
    assert!(hidden.get("new_chunks").is_none() && hidden.get("present_chunks").is_none(), "{hidden}");
}
