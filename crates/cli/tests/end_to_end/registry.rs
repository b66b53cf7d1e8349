//! A real registry on a free port, one for each test that needs it.

use std::path::PathBuf;
use std::process::Command;

use crate::world::{World, repository, tool};

pub struct Registry {
    directory: PathBuf,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Registry {
    pub fn start(world: &World) -> Self {
        Self::start_in(world.path("registry"))
    }

    /// One that wants a user and a password: `lovelace`, of which this file has the hash.
    pub fn start_with_password(world: &World, user: &str, password: &str) -> Self {
        assert_eq!(password, "lovelace");
        let directory = world.path("registry");
        std::fs::create_dir_all(&directory).unwrap();
        let hash = "$2b$05$abcdefghijklmnopqrstuuugyJgZetmHGvxwCJ1rpgM8bgT8KJ8.i";
        std::fs::write(directory.join("htpasswd"), format!("{user}:{hash}\n")).unwrap();
        Self::start_in(directory)
    }

    fn start_in(directory: PathBuf) -> Self {
        let script = repository().join("scripts/registry");
        let address = tool(script.to_str().unwrap(), &["start", directory.to_str().unwrap()]).trim().to_owned();
        Self { directory, address }
    }

    /// Copies an image into the registry; returns its source reference.
    pub fn push(&self, image: &str, name: &str) -> String {
        let target = format!("docker://{}/{name}", self.address);
        tool("skopeo", &["copy", "--quiet", "--dest-tls-verify=false", image, &target]);
        target
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = Command::new(repository().join("scripts/registry")).arg("stop").arg(&self.directory).status();
    }
}
