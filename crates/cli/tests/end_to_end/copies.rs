//! Copies between stores, what images take, and scrubbing.

use crate::world::{World, test_image};

#[test]
fn a_copy_runs_from_the_other_store() {
    let mut world = World::with_small();
    let to = world.store_url("second");
    let copied = world.json(&["cp", "small", "copy:v1", "--to", &to]);
    assert_eq!(copied["new_chunks"], copied["distinct_chunks"]);
    let again = world.json(&["cp", "small", "--to", &to]);
    assert_eq!((&again["new_chunks"], &again["present_chunks"]), (&0.into(), &copied["distinct_chunks"]));
    world.snowmelt(["cp", "small", "--to", "https://127.0.0.1:9/x"]).failure(1, &["127.0.0.1:9"]);
    // As one may well say it, where a command copies from one place to another.
    world.snowmelt(["cp", "small", "s3://images"]).failure(2, &["that is a store: say --to s3://images"]);
    let store = world.objects("store");
    for (path, _) in store.list() {
        store.remove(&path);
    }
    world.set("SNOWMELT_STORE", to);
    for image in ["copy:v1", "small"] {
        assert_eq!(world.snowmelt(["run", image, "--", "echo", "here"]).success().stdout(), "here\n");
    }
}

#[test]
fn what_images_take_adds_up() {
    let world = World::with_small();
    world.snowmelt(["publish", &test_image("small"), "same"]).success();
    world.snowmelt(["publish", &test_image("small"), "small", "--tenant", "other"]).success();
    let own = world.json(&["du", "small"]);
    // The image itself has some chunks more than once.
    let once = world.json(&["inspect", "small"])["stored_bytes"].as_u64().unwrap();
    assert_eq!(own["logical_bytes"], 2 * once);
    assert!(own["stored_bytes"].as_u64().unwrap() < once, "{own}");
    assert_eq!(own["freed_bytes"], 0);
    let both = world.json(&["du", "small", "same"]);
    assert_eq!(both["freed_bytes"], both["stored_bytes"]);
    let all = world.json(&["du", "--all-tenants", "small", "same"]);
    assert_eq!((&all["freed_bytes"], all["tenants"].as_array().unwrap().len()), (&0.into(), 2));
    assert_eq!((&all["logical_bytes"], &all["stored_bytes"]), (&(3 * once).into(), &own["stored_bytes"]));
    assert_eq!(all["tenants"][0]["unique_bytes"], 0);
    let text = world.snowmelt(["du", "--all-tenants", "small"]).success().stdout();
    assert!(text.contains("other/small:latest") && text.contains("would free 0 B"), "{text}");
    world.snowmelt(["du", "missing"]).failure(1, &["missing", "snowmelt images"]);
}

#[test]
fn scrubbing_names_every_image_that_has_a_damaged_chunk() {
    let world = World::with_small();
    world.snowmelt(["publish", &test_image("small"), "small", "--tenant", "other"]).success();
    world.snowmelt(["scrub", "--all-tenants"]).success();
    let victim = world.chunk_files().remove(0);
    world.damage_stored(&victim);
    let chunk = victim.file_name().unwrap().to_str().unwrap();
    let found = world.snowmelt(["scrub", "--all-tenants", "--bandwidth", "1GiB"]).failure(1, &[chunk]);
    for image in ["default/small:latest", "other/small:latest"] {
        assert!(found.stdout().contains(image), "{}", found.stdout());
    }
    assert!(found.stdout().contains("--repair"), "{}", found.stdout());
    world.snowmelt(["publish", &test_image("small"), "small", "--repair"]).success();
    world.snowmelt(["scrub", "--all-tenants"]).success();
}
